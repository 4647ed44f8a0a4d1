"""The lines of lowered code: each kind that this PyTorch writes is known, and one that is not is an error."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.codegen import memory_planning
from torch._inductor.codegen.wrapper import PythonWrapperCodegen, WrapperLine

import memcompile
from memcompile.codegen.inductor import lines
from memcompile.codegen.inductor.text_lines import Statement, statements
from memcompile.errors import UnknownLineError

BASES = {"MemoryPlanningLine", "PoolMemoryPlanningLine"}
NEVER_SILENT = {"ConditionalLine", "AllocFromPoolLine", "DeallocFromPoolLine"}
"""Those of FX wrappers and of Inductor's own pools (``memory_planning``): an error."""


def classes(base: type) -> set[str]:
    subclasses: list[type] = base.__subclasses__()
    return {base.__name__} | set().union(*(classes(cls) for cls in subclasses))


def test_every_class_of_lines_is_counted_or_known_to_be_harmless() -> None:
    assert memory_planning.AllocFromPoolLine.__name__ in classes(WrapperLine)
    source = ast.parse(Path(lines.__file__).read_text())
    reader = next(node for node in ast.walk(source) if isinstance(node, ast.FunctionDef) and node.name == "read")
    counted = {node.value for node in ast.walk(reader) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not counted & lines._HARMLESS
    own = {name for name in classes(WrapperLine) if not name.startswith("_")} - BASES - NEVER_SILENT - {"WrapperLine"}
    assert own - counted - lines._HARMLESS == set()
    assert not NEVER_SILENT & (counted | lines._HARMLESS)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("# a comment; del buf0", []),
        ("", []),
        ("del buf0, buf1", [Statement("free", names=("buf0", "buf1"))]),
        ("buf2 = None; del buf1", [Statement("free", names=("buf1",))]),
        ("if not (u0 <= 256):", []),
        ("    raise RuntimeError('u0 <= 256; del buf0')", []),
        ("u0_end = min(u0, 256) if u0 >= 0 else 256", []),
        ("stream0 = get_raw_stream(0)", []),
        ("primals_1 = copy_if_misaligned(primals_1)", []),
        ("assert_alignment(buf5, 16, 'torch.ops.cond')", []),
        ("assert not buf3.isnan().any().item()", [Statement("check", names=("buf3",))]),
        ("buf4 = [None] * 1", []),
        ("if buf3.item():", []),
        ("true_graph_0_args = [buf1, s0, reinterpret_tensor(buf2, (4, ), (1, ), 0)]", ["collect", "buf1", "s0", "buf2"]),
        (
            "buf4 = true_graph_0(true_graph_0_args)",
            [Statement("call", "buf4", ("true_graph_0_args",), "true_graph_0", ("buf4",))],
        ),
        (
            "(buf3[0], buf3[1]) = body_0(body_0_args)",
            [Statement("loop", "buf3", ("body_0_args",), "body_0", ("buf3",))],
        ),
        (
            "(buf1, buf2,) = self.partitions[1](partition1_args)",
            [Statement("call", "buf1", ("partition1_args",), "partition_1", ("buf1", "buf2"))],
        ),
        ("buf3[0] = buf1", [Statement("assign", "buf3", ("buf1",))]),
        ("buf3[1] = reinterpret_tensor(buf0, (4, 2), (2, 1), 0)", [Statement("assign", "buf3", ("buf0",))]),
        ("buf3[1] = reinterpret_tensor(buf0, (4, ), (1, ), 8).clone()", [Statement("assign", "buf3", ("buf0",))]),
        ("buf3[0] = torch.stack(buf3[2], dim=0)", [Statement("many", "buf3")]),
        ("buf5.copy_(buf4, False)", [Statement("kernel", "buf5")]),
        ("workspace_0.zero_()", [Statement("kernel", "workspace_0")]),
        ("buf6 = workspace_0[0 * 8 : 1 * 8].view(2, 4).sum(dim=0)", [Statement("reduce", "buf6", ("workspace_0",))]),
        ("buf7 = empty_strided_cpu((4, ), (1, ), torch.float32)", ["unknown"]),
        ("u0 = torch.ones(3)", ["unknown"]),
        ("buf8 = my_kernel(buf7)", ["unknown"]),
        ("inductor_ops.resize_storage_bytes_(buf1, 64)", ["unknown"]),
    ],
)
def test_what_a_line_of_text_does(line: str, expected: list[Any]) -> None:
    found = statements(line)
    if expected and isinstance(expected[0], str):
        assert [found[0].effect, *found[0].names] == expected
    else:
        assert found == expected


@pytest.mark.parametrize("written", ["buf99 = torch.empty(3)", object()], ids=["text", "a line of a new class"])
def test_an_unknown_line_is_an_error_that_names_it(written: Any, monkeypatch: pytest.MonkeyPatch, fresh_dynamo: None) -> None:
    codegen_free: Any = PythonWrapperCodegen.codegen_free

    def codegen_and_more(wrapper: Any, buffer: Any) -> None:
        codegen_free(wrapper, buffer)
        wrapper.writeline(written)

    monkeypatch.setattr(PythonWrapperCodegen, "codegen_free", codegen_and_more)
    with pytest.raises(UnknownLineError) as caught:
        memcompile.plan(lambda x: (x @ x).sin() @ x, torch.randn(8, 8), options={"memory_budget": "90%"})
    assert torch.__version__ in str(caught.value)
    assert (written if isinstance(written, str) else "object") in str(caught.value)
