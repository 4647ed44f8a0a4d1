"""The scratchpad benchmark: its networks, baselines, the paper's program, rows and table."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the benchmarks are no installed package

from benchmarks import scratchpad
from benchmarks.core.rows import read_rows
from benchmarks.scratchpad_baselines import Arena, belady, greedy, linear
from benchmarks.scratchpad_ilp import solve
from benchmarks.scratchpad_nets import NETWORKS, network, problem
from benchmarks.scratchpad_table import Row, reduction, tables
from memcompile.solvers.scratchpad.problem import ScratchpadOp, ScratchpadProblem, Tensor, check
from memcompile.solvers.scratchpad.search import plan_scratchpad
from tests.solvers.scratchpad.scratchpad_nets import chain_with_skips, fewest_bytes, problems

PARAMETERS = {
    "resnet50": 25_557_032,
    "resnext50": 25_028_904,
    "densenet121": 7_978_856,
    "r2plus1d": 31_505_325,
    "s3d": 8_320_048,
    "fcn": 32_957_013,
    "deeplabv3": 39_638_869,
    "lraspp": 3_221_538,
    "vit": 86_567_656,
    "darts": 4_718_752,
}
"""As torchvision counts them, without auxiliary heads; DARTS as its paper does (4.7 million)."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_published_parameters(name: str) -> None:
    module, _ = network(name)
    assert sum(p.numel() for p in module.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(("name", "ops", "needed"), [("resnet50", 72, 3 * 802_816), ("lraspp", 117, 1_070_160)])
def test_networks_as_operators(name: str, ops: int, needed: int) -> None:
    found = problem(name)
    check(found)
    assert (len(found.ops), found.needed_bytes) == (ops, needed)
    assert sum(tensor.is_output for tensor in found.tensors) == 1


def test_the_papers_networks_are_all_there() -> None:
    assert len(NETWORKS) == len(set(NETWORKS)) == 14


@settings(max_examples=60, deadline=None)
@given(problems(ops=7), st.integers(0, 2))
def test_baselines_never_beat_the_best(given_problem: ScratchpadProblem, more: int) -> None:
    size, order = given_problem.needed_bytes + more, range(len(given_problem.ops))
    best = fewest_bytes(given_problem, order, size)
    assert linear(given_problem, order, size, belady) >= best
    assert linear(given_problem, order, size, greedy) >= best
    everything = sum(tensor.size_bytes for tensor in given_problem.tensors)
    assert linear(given_problem, order, everything, belady) == 0


def test_belady_and_greedy_differ_where_bytes_do() -> None:
    """Large is needed last, but small suffices. Greedy takes small, which comes back at once, and then large all the same."""
    sizes = {"large": 5, "small": 2, "other": 2, "again": 1, "end": 1}
    tensors = tuple(Tensor(name, size) for name, size in sizes.items())
    ops = (
        ScratchpadOp("l", (), (0,)),
        ScratchpadOp("s", (), (1,)),
        ScratchpadOp("o", (), (2,)),
        ScratchpadOp("a", (1, 2), (3,)),
        ScratchpadOp("e", (0, 3), (4,)),
    )
    net = ScratchpadProblem(ops, tensors)
    assert linear(net, range(5), 8, belady) == 2 * 5
    assert linear(net, range(5), 8, greedy) == 2 * 2 + 2 * 5


def test_gaps_are_the_smallest_that_hold() -> None:
    net = ScratchpadProblem((), tuple(Tensor(str(i), size) for i, size in enumerate((2, 2, 2))))
    arena = Arena(net, 12, [[], [], []], {0: 0, 1: 5, 2: 9})
    assert [arena.gap(size) for size in (1, 2, 3, 4)] == [11, 7, 2, None]


@settings(max_examples=25, deadline=None)
@given(problems(ops=5), st.integers(0, 1))
def test_the_papers_program_agrees(given_problem: ScratchpadProblem, more: int) -> None:
    size = given_problem.needed_bytes + more
    if not size:
        return
    answer, ours = solve(given_problem, size, 60.0), plan_scratchpad(given_problem, size)
    assert answer.status == "optimal"
    assert answer.moved_bytes is not None and answer.bound_bytes is not None
    assert ours.bound_bytes <= answer.moved_bytes <= ours.moved_bytes
    assert answer.moved_bytes == answer.bound_bytes


def test_programs_that_are_too_large_are_not_built() -> None:
    assert solve(chain_with_skips(), 24, 10.0, most_variables=10).status == "too large"


def test_a_row_of_one_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratchpad, "problem", lambda _: chain_with_skips())
    path = tmp_path / "rows.csv"
    scratchpad.main(["--nets", "vit", "--sizes", "M_R", "--results", str(path), "--repeats", "2", "--ilp-limit", "30"])
    (row,) = read_rows(Row, path)
    assert (row.size_bytes, row.peak_bytes, row.moved_bytes, row.bound_bytes, row.ilp_bytes) == (24, 28, 32, 32, 32)
    assert min(row.default_belady, row.default_greedy, row.peak_belady, row.peak_greedy) >= 32
    scratchpad.main(["--nets", "vit", "--sizes", "M_R", "--results", str(path), "--ilp-limit", "0"])
    assert read_rows(Row, path)[0].ilp_bytes == 32
    text = tables([row, dataclasses.replace(row, peak_bytes=24, size="M_R = M_P", moved_bytes=0, default_belady=100)])
    assert "M_R = M_P: one order" in text
    assert "| vit | 12 | M_R 0 KiB |" in text


def test_reductions_are_averages_of_rows_that_move_anything() -> None:
    fields = {field.name: 0 for field in dataclasses.fields(Row)}
    row = Row(**fields)  # type: ignore[arg-type]
    made = [dataclasses.replace(row, moved_bytes=moved, default_belady=base) for moved, base in ((1, 4), (0, 4), (0, 0))]
    assert reduction(made, "default_belady") == (0.875, 2)
    assert reduction(made[2:], "default_belady") is None
