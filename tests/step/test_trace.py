"""Replay of lowered code: who holds a storage, and until when."""

from __future__ import annotations

from typing import Any

from memcompile.step.trace import Event, GraphTrace, StepPeak, step_peak


def trace(
    inputs: dict[str, int], events: list[tuple[Any, ...]], outputs: list[str], nodes: list[str] | None = None
) -> GraphTrace:
    """``events``: ("alloc", name, bytes), ("alias", name, base), ("free", name), ("kernel", name), ("workspace", name, bytes).

    ``nodes``: names of the outputs in the graph, where they are others than in the code."""
    read = []
    for kind, name, *rest in events:
        value: Any = rest[0] if rest else 0
        read.append(Event(kind, name, base=value) if kind == "alias" else Event(kind, name, value))
    return GraphTrace(tuple(inputs.items()), tuple(outputs), tuple(nodes or outputs), (None,) * len(outputs), tuple(read), {})


def live(peak: StepPeak, where: str = "forward") -> list[int]:
    return [moment.live_bytes for moment in peak.timeline if moment.where == where]


def test_inference_graph_holds_inputs_outputs_and_temporaries() -> None:
    peak = step_peak(trace({"x": 10}, [("alloc", "a", 5), ("alloc", "b", 7), ("free", "a"), ("alloc", "c", 1)], ["c"]))
    assert (peak.entry_bytes, peak.peak_bytes, live(peak)) == (10, 22, [15, 22, 18])
    assert peak.peak_moment.name == "b"
    assert dict(peak.live_at_peak) == {"x": 10, "f.a": 5, "f.b": 7}


def test_inputs_stay_with_the_caller() -> None:
    peak = step_peak(trace({"x": 10}, [("free", "x"), ("alloc", "a", 5)], ["a"]))
    assert peak.peak_bytes == 15


def test_symbols_take_no_memory() -> None:
    peak = step_peak(trace({"s0": 0, "x": 4}, [("alloc", "a", 5)], ["a"]))
    assert peak.peak_bytes == 9


def test_a_storage_dies_with_its_last_name() -> None:
    events = [("alloc", "a", 8), ("alias", "view", "a"), ("free", "a"), ("alloc", "b", 1), ("free", "view"), ("alloc", "c", 1)]
    assert live(step_peak(trace({}, events, []))) == [8, 9, 2]


def test_alias_of_what_is_unknown_is_nothing() -> None:
    assert step_peak(trace({}, [("alias", "a", "gone"), ("free", "a"), ("free", "never")], [])).peak_bytes == 0


def test_workspace_is_alive_while_its_kernel_runs() -> None:
    peak = step_peak(trace({}, [("alloc", "a", 8), ("workspace", "k", 5), ("kernel", "k"), ("alloc", "b", 1)], ["b"]))
    assert live(peak) == [8, 13, 8, 9]
    assert [m.is_kernel for m in peak.timeline] == [False, False, True, False]


FORWARD = trace(
    {"x": 100}, [("alloc", "out", 8), ("alloc", "saved", 32), ("alloc", "t", 4), ("free", "t")], ["out", "saved"], ["out", "s"]
)


def test_saved_tensors_die_where_the_backward_deletes_them() -> None:
    backward = trace({"s": 32, "tangent": 8}, [("alloc", "g", 16), ("free", "s"), ("alloc", "h", 16)], ["h"])
    peak = step_peak(FORWARD, backward)
    assert (peak.held_bytes, peak.saved_bytes) == (40, 32)
    assert (peak.forward_peak_bytes, peak.backward_peak_bytes) == (144, 164)
    assert live(peak, "backward") == [100 + 8 + 32 + 8 + 16, 100 + 8 + 8 + 16 + 16]


def test_tangents_live_to_the_end_of_the_backward() -> None:
    """The autograd engine keeps what it handed over, whatever the lowered code deletes."""
    backward = trace({"s": 32, "tangent": 8}, [("free", "s"), ("free", "tangent"), ("alloc", "g", 16)], ["g"])
    assert live(step_peak(FORWARD, backward), "backward") == [100 + 8 + 8 + 16]


def test_zeros_that_stand_for_missing_tangents_die_as_they_are_read() -> None:
    backward = trace({"s": 32, "tangent": 24}, [("free", "s"), ("free", "tangent"), ("alloc", "g", 16)], ["g"])
    assert live(step_peak(FORWARD, backward, tangents_held=False), "backward") == [100 + 8 + 16]


def test_the_gradient_of_a_loss_stays_with_the_engine() -> None:
    backward = trace({"s": 32, "tangent": 4}, [("free", "s"), ("free", "tangent"), ("alloc", "g", 16)], ["g"])
    assert live(step_peak(FORWARD, backward, tangents_held=False), "backward") == [100 + 8 + 4 + 16]


def test_user_outputs_live_to_the_end_of_the_step() -> None:
    both = trace({"x": 100}, [("alloc", "out", 8)], ["out", "out"], ["s", "s"])  # returned, and saved
    backward = trace({"s": 8, "tangent": 8}, [("free", "s"), ("free", "tangent"), ("alloc", "g", 16)], ["g"])
    peak = step_peak(both, backward)
    assert (peak.held_bytes, peak.saved_bytes) == (8, 0)
    assert live(peak, "backward") == [100 + 8 + 8 + 16]


def test_an_input_that_is_saved_counts_once() -> None:
    forward = trace({"w": 50}, [("alloc", "out", 8)], ["out", "w"], ["out", "s"])
    backward = trace({"s": 50, "tangent": 8}, [("free", "s"), ("alloc", "g", 50)], ["g"])
    peak = step_peak(forward, backward)
    assert peak.saved_bytes == 0
    assert peak.peak_bytes == 50 + 8 + 8 + 50


def test_symbols_precede_the_saved_tensors_of_the_backward() -> None:
    forward = trace({"s0": 0, "x": 10}, [("alloc", "out", 8), ("alloc", "saved", 32)], ["out", "saved", ""], ["out", "a", "s0"])
    backward = trace({"s0": 0, "a": 32, "tangent": 8}, [("free", "a"), ("alloc", "g", 16)], ["g"])
    peak = step_peak(forward, backward)
    assert live(peak, "backward") == [10 + 8 + 8 + 16]


def test_gradients_stay() -> None:
    backward = trace(
        {"s": 32, "tangent": 8}, [("alloc", "g", 16), ("free", "s"), ("alloc", "h", 64), ("free", "x")], ["g", "h"]
    )
    assert step_peak(FORWARD, backward).peak_bytes == 100 + 8 + 8 + 16 + 64


def test_tangents_come_to_life_after_the_boundary() -> None:
    """Between the halves, while other graphs run, there are none: what a graph holds then counts no tangent."""
    backward = trace({"s": 32, "tangent": 8}, [("alloc", "g", 16)], ["g"])
    peak = step_peak(FORWARD, backward)
    alive = (life for life in peak.lives if 0 < life.birth <= peak.boundary < (life.death or peak.end))
    assert peak.held_bytes == sum(life.size_bytes for life in alive)


def test_an_input_that_is_returned_is_not_held() -> None:
    peak = step_peak(trace({"x": 10}, [("alloc", "a", 5)], ["x", "a"]))
    assert (peak.held_bytes, peak.saved_bytes) == (5, 0)


def test_what_is_returned_may_be_dropped_before_the_backward() -> None:
    backward = trace({"s": 32, "tangent": 8}, [("alloc", "g", 16)], ["g"])
    held, dropped = step_peak(FORWARD, backward), step_peak(FORWARD, backward, returned_held=False)
    assert dropped.backward_peak_bytes == held.backward_peak_bytes - 8
    assert dropped.forward_peak_bytes == held.forward_peak_bytes
