"""The private places of PyTorch that ``codegen`` attaches to, each looked at: does it exist, does it still look the same?

A PyTorch without one of them would fail in the middle of a compilation, or worse, plan with wrong numbers. ``require_seams``
says so first. Only imports and signatures: nothing is compiled.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

import torch

from memcompile.errors import UnsupportedTorchError
from memcompile.machine.support import BEYOND_TORCH, OLDEST_TORCH

Seam = tuple[str, bool, str]
"""(name, whether it is as expected, what it is used for or what is wrong)."""


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a module of torch. ``parameters``: of the function that have to be there; ``members``: of the class."""

    module: str
    name: str
    use: str
    parameters: tuple[str, ...] = ()
    members: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The dotted name, without "torch."."""
        return f"{self.module.removeprefix('torch.')}.{self.name}"


EVERYWHERE = ("torch._subclasses.fake_tensor.", "torch._ops.")
"""What graphs of PyTorch are made of: any file may ask about it."""
ELSEWHERE = (
    "codegen/cpp/build.py",
    "runtime/region.py",
    "runtime/stored.py",
    "runtime/watch.py",
    "step/symbols.py",
)
"""The files outside of this folder that touch private parts of the compiler, of the profiler or of the allocator."""

PLACES = (
    *(
        Place("torch._subclasses.fake_tensor", name, "tensors without memory")
        for name in ("FakeTensor", "FakeTensorMode", "DataDependentOutputException", "DynamicOutputShapeException")
    ),
    Place("torch._ops", "OpOverload", "operators of graphs"),
    *(Place("torch._C._profiler", name, "measures peaks") for name in ("_ExtraFields_Allocation", "_ProfilerEvent")),
    Place("torch.autograd", "_engine_run_backward", "ends the profiler once a backward returns"),
    Place("torch._C", "_current_graph_task_id", "whether a backward runs"),
    Place("torch._inductor.cpp_builder", "get_cpp_compiler", "compiles C++ kernels"),
    Place("torch._inductor.exc", "InvalidCxxCompiler", "says that there is no compiler"),
    Place(
        "torch._inductor.compile_fx",
        "compile_fx",
        "the compile pipeline",
        parameters=("model_", "example_inputs_", "inner_compile", "config_patches"),
    ),
    Place("torch._inductor.compile_fx", "compile_fx_inner", "lowers one graph"),
    Place("torch._inductor.custom_graph_pass", "CustomPartitionerFn", "splits the joint graph", members=("__call__", "uuid")),
    Place("torch._inductor.codegen.common", "device_codegens", "the wrapper class of each device"),
    Place("torch._inductor.codegen.common", "init_backend_registration", "fills device_codegens"),
    Place("torch._inductor.codegen.common", "DeviceCodegen", "the wrapper class of each device", members=("wrapper_codegen",)),
    Place(
        "torch._inductor.codegen.wrapper",
        "PythonWrapperCodegen",
        "sees each allocation of lowered code",
        members=("run_wrapper_ir_passes", "create"),
    ),
    *(
        Place("torch._inductor.codegen.wrapper", name, "a line of lowered code", members=members)
        for name, members in (
            ("AllocateLine", ("node",)),
            ("ReuseLine", ("node", "reused_as", "delete_old")),
            ("ReinterpretLine", ("node", "reused_as")),
            ("FreeIfNotReusedLine", ("node", "is_reused")),
            ("FreeLine", ("node",)),
            ("ExternKernelAllocLine", ("node",)),
            ("ExternKernelOutLine", ("node",)),
            ("KernelCallLine", ("kernel_name",)),
            ("ExternKernelMultiOutLine", ("node",)),
            ("IndexPutFallbackLine", ("node",)),
            ("ScatterFallbackLine", ("node",)),
            ("MultiOutputLine", ("result_name", "arg_name", "indices")),
            ("EnterSubgraphLine", ()),
            ("ExitSubgraphLine", ()),
        )
    ),
    Place(
        "torch._inductor.choices",
        "InductorChoices",
        "which kernels may be fused",
        members=("can_fuse_horizontal", "can_fuse_vertical"),
    ),
    Place("torch._inductor.inductor_prims", "force_stride_order", "gives a sum of images a buffer"),
    Place("torch._inductor.virtualized", "V", "the graph being lowered", members=("set_choices_handler",)),
    Place(
        "torch._inductor.graph",
        "GraphLowering",
        "the graph being lowered",
        members=("get_output_names", "try_get_buffer", "run_node"),
    ),
    Place("torch._inductor.ir", "TensorBox", "gives a storage of the plan a buffer", members=("realize",)),
    Place("torch._inductor.codegen.cpp", "CppScheduling", "which loops become one function", members=("ready_to_flush",)),
    Place(
        "torch._inductor.memory",
        "reorder_for_peak_memory",
        "the order of kernels",
        parameters=("nodes", "name_to_buf", "name_to_fused_node", "graph_inputs", "graph_outputs"),
    ),
    Place(
        "torch._inductor.memory",
        "topological_sort_lpmf",
        "an order of Inductor's",
        parameters=("nodes", "name_to_freeable_input_buf", "name_to_buf", "graph_outputs"),
    ),
    Place("torch._inductor.memory", "topological_sort_bfs", "an order of Inductor's", parameters=("nodes",)),
    Place("torch._inductor.memory", "topological_sort_dfs", "an order of Inductor's", parameters=("nodes",)),
    Place("torch._inductor.memory", "get_freeable_input_buf", "an order of Inductor's", parameters=("nodes", "graph_inputs")),
    Place(
        "torch._inductor.scheduler",
        "Scheduler",
        "the kernels of a graph",
        members=("can_buffer_be_removed_through_fusion", "get_backend"),
    ),
    Place(
        "torch._inductor.scheduler",
        "BaseSchedulerNode",
        "a kernel",
        members=(
            "unmet_dependencies",
            "ancestors",
            "read_writes",
            "get_outputs",
            "get_buffer_names",
            "used_or_aliased_buffer_names",
            "has_side_effects",
            "is_extern",
            "is_template",
        ),
    ),
    Place(
        "torch._inductor.scheduler",
        "SchedulerBuffer",
        "what a kernel writes",
        members=("node", "defining_op", "users", "get_aliases", "get_mutations"),
    ),
    Place("torch._inductor.scheduler", "NopKernelSchedulerNode", "a kernel without code"),
    Place("torch._inductor.codegen.cpp", "OuterLoopFusedSchedulerNode", "loops in one loop", members=("get_outer_nodes",)),
    Place("torch._inductor.codegen.wrapper", "can_match_buffer_size", "what may be written in place"),
    Place("torch._inductor.ir", "ExternKernelAlloc", "a library kernel that allocates"),
    Place(
        "torch._inductor.ir",
        "ExternKernelOut",
        "a library kernel that writes a buffer",
        members=("python_kernel_name", "inputs", "get_origin_node", "get_layout"),
    ),
    Place(
        "torch._inductor.lowering",
        "register_lowering",
        "teaches Inductor an op",
        parameters=("aten_fn", "type_promotion_kind"),
    ),
    Place("torch._inductor.lowering", "lowerings", "how Inductor lowers an op"),
    Place(
        "torch._inductor.ir",
        "FallbackKernel",
        "runs streamed rows; its results",
        members=("create", "require_exact_strides", "get_inputs_that_alias_output", "get_origins"),
    ),
    Place("torch._inductor.ir", "MultiOutput", "one of the results of a kernel"),
    Place("torch._inductor.sizevars", "SizeVarAllocator", "sizes that are symbols"),
    Place(
        "torch.fx.experimental.symbolic_shapes",
        "ShapeEnv",
        "sizes that are symbols",
        members=("bound_sympy", "create_symbol", "create_symintnode", "produce_guards_expression"),
    ),
    Place("torch.fx.experimental.symbolic_shapes", "SYMPY_INTERP", "what sizes are checked with"),
    Place("torch.fx.experimental.symbolic_shapes", "DimDynamic", "sizes that are symbols", members=("DYNAMIC",)),
    Place("torch._dynamo.source", "ConstantSource", "where a symbol comes from"),
    Place("torch.utils._python_dispatch", "is_traceable_wrapper_subclass", "what tensors are made of"),
    Place("torch._inductor.lowering", "empty_strided", "results and workspace of streamed rows", parameters=("size", "stride")),
    Place("torch._inductor.graph", "SubgraphLowering", "a graph inside another one"),
    Place("torch._inductor.graph", "get_donated_idxs", "saved tensors that the backward may write over"),
    Place("torch._inductor.cudagraph_utils", "BoxedDeviceIndex", "an argument of the lowering"),
    Place("torch._inductor.utils", "BoxedBool", "an argument of the lowering"),
    Place("torch._inductor.utils", "count_tangents", "inputs of the backward that stay", parameters=("fx_g",)),
    Place(
        "torch._functorch.partitioners",
        "min_cut_rematerialization_partition",
        "the partition of plain torch.compile",
        parameters=("joint_module", "_joint_inputs", "num_fwd_outputs"),
    ),
    Place(
        "torch._functorch.partitioners",
        "_extract_fwd_bwd_modules",
        "takes forward and backward out of a planned graph",
        parameters=("joint_module", "saved_values", "saved_sym_nodes", "num_fwd_outputs"),
    ),
    Place("torch._dynamo.symbolic_convert", "InstructionTranslator", "the capture under way", members=("current_tx",)),
    Place("torch._dynamo.utils", "get_debug_dir", "where TORCH_COMPILE_DEBUG writes"),
    Place("torch._dynamo.exc", "ShortenTraceback", "lets errors through Dynamo unwrapped"),
    Place("torch._dynamo.exc", "BackendCompilerFailed", "what Inductor wraps errors into"),
    Place("torch._dynamo.eval_frame", "cached_backends", "hears of torch._dynamo.reset()"),
    Place("torch._dynamo.eval_frame", "OptimizeContext", "for which model a graph runs"),
    Place("torch._dynamo.eval_frame", "OptimizedModule", "which model a report is asked for"),
    Place("torch._inductor.codegen.cpp", "TilingSelect", "which loops become vectors", members=("select_tiling",)),
    Place("torch._inductor.codegen.cpp", "KernelOpStats", "says that no loop becomes one"),
    Place("torch._inductor.pattern_matcher", "_TargetArgsExpr", "what a pattern matches", members=("_match",)),
    Place("torch._inductor.pattern_matcher", "FailedMatch", "says that a pattern does not match"),
    Place("torch._inductor.fx_passes.joint_graph", "patterns", "the patterns of attention", members=("patterns",)),
    Place("torch._guards", "TracingContext", "the compilation under way", members=("try_get",)),
    Place("torch._guards", "tracing", "compiles a block beside the compilation under way", parameters=("context",)),
    Place("torch._C._dynamo.guards", "_reinterpret_tensor", "views of an arena"),
    Place("torch._C._dynamo.guards", "_empty_strided_cpu", "allocates what lies in no arena"),
    Place("torch._C", "_storage_Use_Count", "whether an arena is in use"),
    Place("torch._C._autograd", "_get_current_graph_task_keep_graph", "whether saved tensors must survive a backward"),
    Place("torch._C", "_has_mkldnn", "whether oneDNN multiplies matrices"),
    Place("torch._subclasses.fake_tensor", "unset_fake_temporarily", "copies graphs outside of fake tensors"),
)

SETTINGS = (
    ("torch._inductor.config", "custom_partitioner_fn"),
    ("torch._inductor.config", "joint_custom_pre_pass"),
    ("torch._inductor.config", "_post_fusion_custom_pass"),
    ("torch._inductor.config", "reorder_for_locality"),
    ("torch._inductor.config", "reorder_for_peak_memory"),
    ("torch._inductor.config", "inplace_buffers"),
    ("torch._inductor.config", "cpp.simdlen"),
    ("torch._inductor.config", "triton.cudagraphs"),
    ("torch._inductor.config", "cpp_wrapper"),
    ("torch._inductor.config", "max_autotune"),
    ("torch._inductor.config", "max_autotune_gemm"),
    ("torch._inductor.config", "unbacked_symint_fallback"),
    ("torch._inductor.config", "pattern_matcher"),
    ("torch._inductor.config", "fx_graph_cache"),
    ("torch._inductor.config", "fx_graph_remote_cache"),
    ("torch._functorch.config", "enable_autograd_cache"),
    ("torch._functorch.config", "force_non_lazy_backward_lowering"),
    ("torch._functorch.config", "activation_memory_budget"),
    ("torch._functorch.config", "donated_buffer"),
)


def check_seams() -> list[Seam]:
    """Every seam with whether it is healthy, and why."""
    return [*(_check(place) for place in PLACES), *(_check_setting(*setting) for setting in SETTINGS), _check_wrapper()]


@cache
def require_seams() -> None:
    """Raise `UnsupportedTorchError` that names what is missing. Looks once per process."""
    broken = [f"{name}: {message}" for name, healthy, message in check_seams() if not healthy]
    if broken:
        raise UnsupportedTorchError(str(torch.__version__), OLDEST_TORCH, BEYOND_TORCH, detail="; ".join(broken))


def _check(place: Place) -> Seam:
    try:
        found = getattr(importlib.import_module(place.module), place.name)
    except (ImportError, AttributeError):
        return place.path, False, f"not in torch {torch.__version__} ({place.use}); {_supported()}"
    missing = [*_missing_parameters(found, place.parameters), *_missing_members(found, place.members)]
    if missing:
        return place.path, False, f"has no {', '.join(missing)} in torch {torch.__version__} ({place.use}); {_supported()}"
    return place.path, True, place.use


def _check_setting(module: str, name: str) -> Seam:
    path = f"{module.removeprefix('torch.')}.{name}"
    if hasattr(importlib.import_module(module), name):
        return path, True, "a setting"
    return path, False, f"no such setting in torch {torch.__version__}; {_supported()}"


def _check_wrapper() -> Seam:
    path, use = "_dynamo.eval_frame.OptimizeContext.__call__", "for which model a graph runs"
    try:
        from memcompile.runtime.region import wrapper_code
    except ImportError:
        return path, False, f"not in torch {torch.__version__} ({use}); {_supported()}"
    if wrapper_code() is None:
        return path, False, f"makes no function of fn, self and args in torch {torch.__version__} ({use}); {_supported()}"
    return path, True, use


def _supported() -> str:
    return f"supported are torch >= {OLDEST_TORCH} and < {BEYOND_TORCH}"


def _missing_parameters(function: Callable[..., Any], names: tuple[str, ...]) -> Iterator[str]:
    known = inspect.signature(function).parameters if names else {}
    yield from (f"parameter {name!r}" for name in names if name not in known)


def _missing_members(owner: Any, names: tuple[str, ...]) -> Iterator[str]:
    declared = {field.name for field in fields(owner)} if is_dataclass(owner) else set()
    for base in inspect.getmro(owner) if inspect.isclass(owner) else ():
        declared |= set(getattr(base, "__annotations__", {}))
    yield from (f"attribute {name!r}" for name in names if name not in declared and not hasattr(owner, name))
