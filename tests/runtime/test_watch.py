"""What a step allocates beside its graphs, as the profiler sees it."""

from __future__ import annotations

import pytest
import torch

from memcompile.runtime.profile import Profile, beside, peak_of_calls, whole
from memcompile.runtime.watch import AllocationEvent, Watch, levels


def test_the_highest_level_between_marks() -> None:
    events = [(5, 1, 100), (12, 2, 30), (14, 2, -30), (25, 1, -100), (26, 9, -7), (31, 3, 50)]
    found = levels([10, 20, 30, 40], [AllocationEvent(*event) for event in events])
    assert found == [130, 100, 50, 50], "what was not seen to be made is not counted as it goes"


def test_a_watch_ends_with_the_backward() -> None:
    """Inside of it the profiler would go on: threads get it back as it was."""
    weight = torch.ones(1000, requires_grad=True)
    watch = Watch.begin()
    assert watch is not None and Watch.begin() is None, "one at a time"
    found: list[list[int] | None] = []
    watch.mark()
    product = weight * 2
    watch.mark()
    watch.after = lambda: found.append(watch.end("cpu"))
    torch.autograd.backward(product.sum())
    assert not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    ((before, after),) = [levels for levels in found if levels is not None]
    assert 4000 <= before < 5000 and 8000 <= after < 13000
    with torch.autograd.profiler.profile(use_cpu=True):
        pass
    product = weight * 2
    torch.autograd.backward(product.sum())
    assert len(found) == 1


def test_what_is_alive_beside_the_graphs() -> None:
    profiles = [Profile({1: 10}, held_bytes=50, forward_peak_bytes=70, backward_peak_bytes=90, gradient_bytes=10)] * 2
    events = [("forward", 0), ("returned", 0), ("forward", 1), ("returned", 1), ("backward", 1), ("over", 1), ("backward", 0)]
    events.append(("over", 0))
    seen = [60, 57, 110, 100, 130, 60, 140, 0]
    assert beside(profiles, events, seen) == (0, 7, 0, 0, 0, 0, 50, 0)
    assert peak_of_calls(profiles, events) == 10 + 50 + 80
    assert peak_of_calls(profiles, events, (0, 0, 0, 0, 0, 0, 50, 0)) == 10 + 10 + 80 + 50
    assert peak_of_calls(profiles, events[:4]) == peak_of_calls(profiles, events), "backwards are still to come"
    assert whole(events[:3], [True, True])[3:] == [("backward", 1), ("over", 1), ("backward", 0), ("over", 0)]


@pytest.mark.parametrize("owner", [0, 5])
def test_gradients_of_the_same_parameters_are_made_once(owner: int) -> None:
    profile = Profile({1: 10}, 50, 70, 90, gradient_bytes=30, owner=owner)
    events = [("forward", 0), ("returned", 0), ("forward", 1), ("returned", 1), ("forward", 2), ("returned", 2)]
    held, made = [100, 50, 0], [0, 1, 1] if owner else [0, 1, 2]
    assert peak_of_calls([profile] * 3, events) == max(10 + 80 + h + 30 * m for h, m in zip(held, made, strict=True))
