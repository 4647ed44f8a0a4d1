"""Cuts of runs of blocks into kernels and library calls."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcompile.codegen.cpp.choose import SLACK, Cost, Cut, best_cut, cuts

COSTS = st.builds(Cost, st.integers(1, 9).map(float), st.integers(1, 9))


def every_cut(count: int, apart: list[Cost], together: dict[tuple[int, int], Cost]) -> list[Cut]:
    """All there are, by brute force: where one part ends, and which are kernels."""
    found = []
    for edges in itertools.product([False, True], repeat=count - 1):
        bounds = [0, *(i + 1 for i, edge in enumerate(edges) if edge), count]
        parts = list(itertools.pairwise(bounds))
        for kernels in itertools.product([False, True], repeat=len(parts)):
            cut: Cut | None = Cut()
            for (begin, end), kernel in zip(parts, kernels, strict=True):
                if kernel and (begin, end) in together:
                    cut = cut and cut.then(together[begin, end], (begin, end))
                elif not kernel and end == begin + 1:
                    cut = cut and cut.then(apart[begin])
                else:
                    cut = None
            found += [cut] if cut else []
    return found


@given(st.data(), st.integers(1, 5))
def test_the_front_is_that_of_all_cuts(data: st.DataObject, count: int) -> None:
    spans = [(begin, end) for begin in range(count) for end in range(begin + 1, count + 1)]
    apart = [data.draw(COSTS) for _ in range(count)]
    together = {span: data.draw(COSTS) for span in spans}
    front = cuts(count, apart.__getitem__, lambda begin, end: together[begin, end])
    everything = {(cut.seconds, cut.peak_bytes) for cut in every_cut(count, apart, together)}
    best = [
        (seconds, peak)
        for seconds, peak in everything
        if not any(s <= seconds and p <= peak and (s, p) != (seconds, peak) for s, p in everything)
    ]
    assert [(cut.seconds, cut.peak_bytes) for cut in front] == sorted(best)
    for cut in front:
        alone = [Cut(0.0, 0).then(apart[i]) for i in range(count) if not any(b <= i < e for b, e in cut.parts)]
        inside = [Cut(0.0, 0).then(together[part]) for part in cut.parts]
        assert cut.seconds == sum(part.seconds for part in (*alone, *inside))
        assert cut.peak_bytes == max(part.peak_bytes for part in (*alone, *inside))


def test_a_block_that_has_no_kernel_parts_the_run() -> None:
    apart = [None, Cost(5.0, 5), None]
    (cut,) = cuts(3, apart.__getitem__, lambda begin, end: None if begin <= 1 < end or begin == 1 else Cost(1.0, 1))
    assert cut.parts == ((0, 1), (2, 3))


FRONT = [Cut(1.0, 100), Cut(2.0, 42), Cut(3.0, 41), Cut(9.0, 7)]


@pytest.mark.parametrize(
    ("limit", "allowed", "best"),
    [
        (100, None, 0),  # the fastest that fits
        (41, 1.0, 2),  # the limit counts, not the time
        (6, None, 3),  # nothing fits: the smallest
        (None, None, 0),  # the fastest
        (None, 4.0, 1),  # near the smallest, and faster
        (None, 9.0, 3),
        (None, 0.5, 0),  # nothing is as fast
    ],
)
def test_what_is_asked_for_chooses_the_cut(limit: int | None, allowed: float | None, best: int) -> None:
    assert FRONT[1].peak_bytes < SLACK * FRONT[2].peak_bytes
    assert best_cut(FRONT, limit, allowed) is FRONT[best]
