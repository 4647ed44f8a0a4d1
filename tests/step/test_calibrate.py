"""What the lowered code holds above the model becomes an op's workspace: at the op, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from memcompile.solvers.schedule.problem import Op, RematProblem, RematSchedule, Storage
from memcompile.step.calibrate import base_names, calibrated, crowded, fused
from memcompile.step.facts import Facts, Half, OpFacts, StepGraphs
from memcompile.step.trace import Event, GraphTrace, TracedBuffer, step_peak

NAMES = ("a", "b", "c")


def chain(backward: bool = True) -> Facts:
    """a -> b -> c, 100 bytes each; all of them in the backward, or all in the forward."""
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    for name in NAMES:
        nodes.append(graph.create_node("call_function", len, (nodes[-1],) if nodes else (), name=name))
    storages = tuple(Storage(name, 100, is_output=name == "c") for name in NAMES)
    ops = tuple(Op(name, (i - 1,) if i else (), (i,), 1.0) for i, name in enumerate(NAMES))
    half: Half = "backward" if backward else "forward"
    facts = tuple(OpFacts(half, (node,), ((node, i),), "") for i, node in enumerate(nodes))
    graphs = StepGraphs(fx.GraphModule({}, graph), None, 1)
    problem = RematProblem(storages, ops, boundary=0 if backward else 3)
    return Facts(graphs, problem, facts, tuple(nodes), {node: i for i, node in enumerate(nodes)})


SCHEDULE = RematSchedule((0, 1, 2), 0)


def lowered(*events: tuple[Any, ...]) -> dict[str, Any]:
    """A backward that does ``events``: ("alloc", buffer, bytes, origins...), ("free", buffer), ("kernel", name)."""
    read, buffers = [], {}
    for kind, name, *rest in events:
        read.append(Event(kind, name, rest[0] if rest else 0))
        if kind == "alloc":
            buffers[name] = TracedBuffer(name, rest[0], tuple(rest[1:]))
    trace = GraphTrace((), (), (), (), tuple(read), buffers)
    peak = step_peak(GraphTrace((), (), (), (), (), {}), trace)
    return {"traces": {"forward": GraphTrace((), (), (), (), (), {}), "backward": trace}, "peak": peak}


def workspaces(facts: Facts) -> tuple[int, ...]:
    return tuple(op.workspace_bytes for op in facts.problem.ops)


def run(facts: Facts, budget: int, *events: tuple[Any, ...]) -> Facts:
    return calibrated(facts, SCHEDULE, base_names(facts), budget_bytes=budget, **lowered(*events))


EXACT = (
    ("alloc", "buf0", 100, "a"),
    ("kernel", "k0"),
    ("alloc", "buf1", 100, "b"),
    ("kernel", "k1"),
    ("free", "buf0"),
    ("alloc", "buf2", 100, "c"),
    ("kernel", "k2"),
)


def test_a_model_that_is_exact_stays() -> None:
    facts = chain()
    assert run(facts, 100, *EXACT) is facts


def test_names_of_the_unplanned_backward() -> None:
    assert base_names(chain()) == {("backward", name): i for i, name in enumerate(NAMES)}
    assert base_names(chain(backward=False)) == {}


def test_bytes_above_the_model_become_workspace_of_that_op() -> None:
    held = [event for event in EXACT if event != ("free", "buf0")]  # a lives on: c runs beside it
    assert workspaces(run(chain(), 100, *held)) == (0, 0, 100)


def test_a_temporary_belongs_to_the_kernel_it_is_made_for() -> None:
    with_copy = (*EXACT[:3], ("alloc", "copy", 40, "b"), EXACT[3], ("free", "copy"), *EXACT[4:])
    assert workspaces(run(chain(), 100, *with_copy)) == (0, 40, 0)


def test_a_kernel_under_a_new_name_belongs_to_the_op_that_has_none() -> None:
    renamed = (
        *EXACT[:2],
        ("alloc", "buf1", 100, "a_and_b"),
        ("alloc", "scratch", 40),
        *EXACT[3:4],
        ("free", "scratch"),
        *EXACT[4:],
    )
    assert workspaces(run(chain(), 100, *renamed)) == (0, 40, 0)


def test_far_below_the_budget_nothing_is_compared() -> None:
    held = [event for event in EXACT if event != ("free", "buf0")]
    facts = chain()
    assert run(facts, 1000, *held) is facts


def test_workspaces_add_up() -> None:
    facts = chain()
    ops = tuple(replace(op, workspace_bytes=7) for op in facts.problem.ops)
    facts = replace(facts, problem=replace(facts.problem, ops=ops))
    held = [event for event in EXACT if event != ("free", "buf0")]
    assert workspaces(run(facts, 100, *held)) == (7, 7, 100)


def test_what_runs_before_its_turn_says_nothing() -> None:
    """c's buffer is filled in a's kernel, where 500 bytes more are alive: that is no property of c."""
    early = (
        ("alloc", "buf2", 100, "c"),
        ("alloc", "other", 500),
        ("alloc", "buf0", 100, "a"),
        ("kernel", "k0"),
        ("free", "other"),
        ("alloc", "buf1", 100, "b"),
        ("kernel", "k1"),
        ("free", "buf0"),
    )
    assert workspaces(run(chain(), 100, *early)) == (600, 100, 0)


def one_kernel(facts: Facts, *ops: int) -> Facts:
    return replace(facts, ops=tuple(replace(op, loops=(0 if i in ops else i + 1, 0)) for i, op in enumerate(facts.ops)))


def test_what_one_kernel_reads_and_writes_is_alive_together() -> None:
    """a and b in one kernel: a's buffer is still there, and b's already."""
    facts = one_kernel(chain(backward=False), 0, 1)
    assert workspaces(fused(facts, replace(SCHEDULE, split=3), 150)) == (100, 0, 0)
    assert workspaces(fused(one_kernel(facts, 0, 1, 2), replace(SCHEDULE, split=3), 150)) == (200, 100, 100)


def test_kernels_within_the_budget_stay() -> None:
    facts = one_kernel(chain(backward=False), 0, 1)
    assert fused(facts, replace(SCHEDULE, split=3), 200) is facts
    assert crowded(facts, replace(SCHEDULE, split=3), 200) == frozenset()


def test_loops_of_a_function_that_holds_too_much_are_kept_apart() -> None:
    facts = chain(backward=False)
    facts = replace(facts, ops=tuple(replace(op, loops=(0 if i < 2 else 1, i)) for i, op in enumerate(facts.ops)))
    assert fused(facts, replace(SCHEDULE, split=3), 150) is facts
    assert crowded(facts, replace(SCHEDULE, split=3), 150) == {0, 1}


def test_ops_apart_are_no_kernel() -> None:
    """Another kernel runs between them; and of the backward of another step nothing is known."""
    facts = one_kernel(chain(backward=False), 0, 2)
    assert fused(facts, replace(SCHEDULE, split=3), 150) is facts
    unknown = replace(facts, ops=tuple(replace(op, loops=None) for op in facts.ops))
    assert fused(unknown, replace(SCHEDULE, split=3), 150) is unknown
