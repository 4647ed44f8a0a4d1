"""What the analysis holds whole, what it loops over, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._subclasses import FakeTensorMode

from memcompile.codegen.kernel.chain import Chain, read_chain
from memcompile.codegen.triton.tile import blocks
from memcompile.errors import KernelRefusedError
from tests.codegen.triton.bodies import Case, core, ffn, gated, projection, random, rank_to_rank, rows_first


def read(case: Case) -> Chain:
    return read_chain(case.body(), case.rows)


def sweeps(case: Case) -> list[tuple[str, int, int, int]]:
    """Each loop: its kind, its columns, the products that add to residents, the results it stores."""
    return [(s.kind, s.columns, len(s.contracts), len(s.stores)) for s in read(case).sweeps]


def names(nodes: tuple[fx.Node, ...]) -> list[str]:
    return [node.name for node in nodes]


def test_the_hidden_is_looped_over_and_the_rank_space_is_resident() -> None:
    case = ffn(8, 64, 16, 256)
    assert sweeps(case) == [("project", 64, 1, 0), ("hidden", 256, 1, 0), ("emit", 64, 0, 1)]
    assert names(read(case).resident) == ["mm", "mm_1"]


def test_gate_and_up_are_projected_in_one_loop() -> None:
    assert sweeps(gated(8, 64, 16, 256)) == [("project", 64, 2, 0), ("hidden", 256, 1, 0), ("emit", 64, 0, 1)]


def test_a_narrow_hidden_is_resident_instead_of_the_rank_space() -> None:
    assert names(read(rank_to_rank(8, 256, 64)).resident) == ["addmm", "gelu"]


def test_narrow_inputs_are_loaded_whole() -> None:
    assert sweeps(rank_to_rank(8, 16, 256)) == [("hidden", 256, 1, 0)]


def test_results_in_rank_space_need_no_loop() -> None:
    assert sweeps(core(8, 64, 16)) == [("project", 64, 1, 0), ("emit", 64, 0, 1)]


def test_results_of_one_width_share_a_loop() -> None:
    assert sweeps(projection(8, 64, 16)) == [("project", 64, 1, 0), ("emit", 128, 0, 2)]


@pytest.mark.parametrize(
    ("columns", "widths"),
    [(8, [16]), (40, [32, 16]), (96, [64, 32]), (240, [256]), (384, [256, 128]), (512, [256] * 2), (1000, [256] * 4)],
)
def test_blocks_are_powers_of_two(columns: int, widths: list[int]) -> None:
    assert [width for _, width in blocks(columns)] == widths
    assert [offset for offset, _ in blocks(columns)] == [sum(widths[:i]) for i in range(len(widths))]


X, U, V = (4, 64), (64, 16), (16, 64)


@pytest.mark.parametrize(
    ("function", "others", "node", "reason"),
    [
        (lambda x, u: (torch.softmax(x @ u, 1),), [U], "_softmax", "neither a product nor a pointwise operator"),
        (lambda x, u, v: (x @ (u @ v),), [U, V], "mm", "two tensors without rows"),
        (lambda x, u: (x @ (u * 2),), [U], "mm", "is computed"),
        (lambda x, u: ((x @ u).sum(0, keepdim=True),), [U], "sum_1", "neither a product"),
        (lambda x, u: ((x @ u).double(),), [U], "_to_copy", "float64"),
        (lambda x, u: (x @ u[:, :1],), [U], "slice_1", "neither a product"),
        (lambda x, u: (x @ u, u * 2), [U], "mul", "no rows"),
        (lambda x, u, v: (F.relu(t := x @ u @ v) @ u @ v + t,), [U, V], "mm_1", "two loops need it"),
    ],
)
def test_refusals_name_the_node(
    function: Callable[..., tuple[torch.Tensor, ...]], others: list[tuple[int, ...]], node: str, reason: str
) -> None:
    case = rows_first([random(*X)], [random(*shape) for shape in others], function)
    with pytest.raises(KernelRefusedError, match=reason) as caught:
        read(case)
    assert caught.value.node == node


def test_tensors_that_are_too_wide_on_both_sides_of_a_product_are_refused() -> None:
    case = rows_first([random(4, 2000)], [random(2000, 1500)], lambda x, w: (x @ w,))
    with pytest.raises(KernelRefusedError, match="at most 1024 columns"):
        read(case)


def test_weights_beyond_32_bit_offsets_are_refused() -> None:
    with FakeTensorMode():
        operands = torch.empty(4, 64), torch.empty(64, 2**26)
    with pytest.raises(KernelRefusedError, match="32 bits") as caught:
        read(Case(lambda x, w: (x @ w,), operands, (True, False)))
    assert caught.value.node == "w_1"


def test_a_refusal_names_the_line_of_the_user() -> None:
    body = rows_first([random(*X)], [random(*U)], lambda x, u: (torch.softmax(x @ u, 1),)).body()
    for node in body.graph.nodes:
        node.meta["stack_trace"] = 'File "/home/me/model.py", line 61, in forward\n'
    with pytest.raises(KernelRefusedError, match=r"_softmax \(model.py:61\)"):
        read_chain(body, [True, False])
