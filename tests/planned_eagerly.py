"""Shared by the tests of planned graphs: a real capture and a real plan, run by an interpreter instead of compiled kernels.

Capture, joint-graph passes, partition, facts, plan, extraction and verification are those of the product. Only Inductor's
code generation is left out, so a case takes a fraction of a second and the numbers are those of PyTorch's own kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx

from memcompile.codegen.inductor.joint import JointGraph
from memcompile.codegen.inductor.partition import default_partition, extract
from memcompile.codegen.inductor.trial import lower_graphs
from memcompile.compiling.dryrun import predict_graphs
from memcompile.compiling.unchanged import check_unchanged
from memcompile.machine.device import DeviceModel
from memcompile.passes.schedule.check import verify
from memcompile.passes.schedule.rematerialize import apply
from memcompile.runtime.transfers.sources import Mover, memory_for, source_of
from memcompile.solvers.schedule.problem import RematSchedule, RematSolution
from memcompile.step.cost import CostModel
from memcompile.step.facts import Facts, StepGraphs, gather_facts
from memcompile.step.fxutil import outputs_of
from memcompile.step.lowered import Lowered

DEVICE = DeviceModel("a machine that never changes", 1e10, {"float32": 1e11}, 1e9, 1e-6, 0.0)
COSTS = CostModel(DEVICE)
Choose = Callable[[Facts], RematSchedule]


@dataclass
class Planned:
    """What became of one capture."""

    facts: Facts
    schedule: RematSchedule
    joint: JointGraph
    graphs: StepGraphs


@dataclass
class Planner:
    """A Dynamo backend that plans every graph by ``choose`` and interprets the result.

    ``lowering``: how it is known what is materialised: the trial lowering, or its (much faster) model. ``mover``: runs moves.
    """

    choose: Choose
    lowering: Callable[[StepGraphs], Lowered] = predict_graphs
    planned: list[Planned] = field(default_factory=list)
    mover: Mover | None = None

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        import torch._functorch.config as functorch_config
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.custom_graph_pass import CustomPartitionerFn

        planner = self

        class Partitioner(CustomPartitionerFn):
            def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Any:
                return planner.partition(gm, joint_inputs, **kwargs)

            def uuid(self) -> None:
                return None

        settings = {"custom_partitioner_fn": Partitioner(), "fx_graph_cache": False, "fx_graph_remote_cache": False}
        with functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True):
            compiled = compile_fx(gm, list(inputs), inner_compile=self.inner_compile, config_patches=settings)
            return cast("Callable[..., Any]", compiled)

    def inner_compile(self, graph: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        if kwargs.get("is_inference"):
            graph = self.plan(StepGraphs(graph, None, len(outputs_of(graph.graph)))).forward
        return interpreted(graph, inputs, **kwargs)

    def partition(self, gm: fx.GraphModule, joint_inputs: Sequence[object], *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        new = self.plan(default_partition(gm, joint_inputs, num_fwd_outputs, **kwargs))
        return new.forward, new.backward

    def plan(self, graphs: StepGraphs) -> StepGraphs:
        lowered = self.lowering(graphs)
        facts = gather_facts(graphs, lowered.traces, COSTS, lowered.peak.entry_bytes)
        schedule = self.choose(facts)
        joint = apply(facts, schedule, tiers=("disk",), mover=self.mover)
        new = extract(joint, graphs)
        check_unchanged(graphs, new)
        verify(facts, RematSolution(schedule, 0, 0.0, 0.0, "heuristic", "test", 0.0), joint, graphs, new)
        self.planned.append(Planned(facts, schedule, joint, new))
        return new


def unplanned(facts: Facts) -> RematSchedule:
    """The base order."""
    return RematSchedule(tuple(range(len(facts.problem.ops))), facts.problem.boundary)


def with_lowering(graphs: StepGraphs) -> Lowered:
    """The trial lowering as ``Planner.lowering``."""
    return lower_graphs(graphs)


def interpreted(graph: fx.GraphModule, _inputs: Sequence[Any], **_kwargs: Any) -> Any:
    """Stands in for Inductor's code generation."""

    def run(arguments: list[Any]) -> Any:
        given = list(arguments)
        arguments.clear()
        return _Interpreter(graph).run(*given)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


class _Interpreter(fx.Interpreter):
    """Eager execution; Inductor's random numbers as what they are, a function of a seed that was drawn once; and moves."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if str(target) == "prims.inductor_random.default":
            size, seed, mode = args
            generator = torch.Generator().manual_seed(int(seed))
            return getattr(torch, mode)(size, generator=generator)
        if str(target).startswith("memcompile.swap_") and target is not torch.ops.memcompile.swap_out.default:
            return _moved(target, *args)
        return super().call_function(target, args, kwargs)


def _moved(target: Any, *args: Any) -> torch.Tensor:
    """The steps of a move after the first as lowered code runs them: they write memory, and return it."""
    if target is torch.ops.memcompile.swap_in.default:
        ticket, key = args
        y: torch.Tensor = memory_for(source_of(key), ticket.device)
        torch.ops.memcompile.swap_in_(ticket, y, key)
        return y
    getattr(torch.ops.memcompile, f"{target._schema.name.split('::')[1]}_")(*args)
    written: torch.Tensor = args[1] if target is torch.ops.memcompile.swap_out_wait.default else args[0]
    return written
