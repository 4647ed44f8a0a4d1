"""Chains of views in one form: the same elements, in no more views."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from memcompile.passes.rows.arrangement import Arrangement, Step


def apply(tensor: torch.Tensor, steps: tuple[Step, ...]) -> torch.Tensor:
    for kind, numbers in steps:
        tensor = tensor.view(numbers) if kind == "view" else tensor.permute(numbers)
    return tensor


def viewable(tensor: torch.Tensor, shape: tuple[int, ...]) -> bool:
    try:
        tensor.view(shape)
    except RuntimeError:
        return False
    return True


@st.composite
def shapes(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """A shape of ``size`` elements, ones among its lengths."""
    lengths: list[int] = []
    while size > 1:
        length = draw(st.sampled_from([d for d in range(2, size + 1) if size % d == 0]))
        lengths.append(length)
        size //= length
    for _ in range(draw(st.integers(0, 2))):
        lengths.insert(draw(st.integers(0, len(lengths))), 1)
    return tuple(lengths)


@given(st.data())
def test_the_form_has_the_same_elements(data: st.DataObject) -> None:
    """Of a tensor with gaps between its elements, too: what was a view stays one."""
    size = data.draw(st.sampled_from([1, 6, 24, 60]))
    source = data.draw(shapes(size))
    gaps = data.draw(st.tuples(*(st.integers(1, 2) for _ in source)))
    whole = torch.arange(size * math.prod(gaps)).view([n * gap for n, gap in zip(source, gaps, strict=True)])
    tensor = whole[tuple(slice(None, None, gap) for gap in gaps)]
    found, arrangement = tensor, Arrangement(source)
    for _ in range(data.draw(st.integers(0, 5))):
        if data.draw(st.booleans()):
            order = data.draw(st.permutations(range(found.dim())))
            found = found.permute(order)
            arrangement.permute(order)
        else:
            shape = data.draw(shapes(size))
            if not viewable(found, shape):
                continue
            before = arrangement.shape
            if arrangement.reshape(shape):
                found = found.view(shape)
            else:
                assert arrangement.shape == before
        assert arrangement.shape == tuple(found.shape)
    steps = arrangement.steps()
    assert len(steps) <= 3
    assert torch.equal(apply(tensor, steps).reshape(-1), found.reshape(-1))
    assert tuple(apply(tensor, steps).shape) == tuple(found.shape)


def steps(source: tuple[int, ...], *views: tuple[str, tuple[int, ...]]) -> tuple[Step, ...]:
    arrangement = Arrangement(source)
    for kind, numbers in views:
        if kind == "permute":
            arrangement.permute(numbers)
        else:
            assert math.prod(numbers) == math.prod(source)
            assert arrangement.reshape(numbers)
    return arrangement.steps()


def test_what_einsum_writes() -> None:
    assert steps((2, 32, 16), ("view", (2, 32, 16, 1)), ("view", (1, 64, 16))) == (("view", (1, 64, 16)),)
    assert steps((1, 64, 4), ("view", (2, 32, 1, 4)), ("permute", (0, 1, 3, 2)), ("view", (2, 32, 4))) == (
        ("view", (2, 32, 4)),
    )
    assert steps((4, 8), ("permute", (1, 0)), ("permute", (1, 0))) == ()


def test_permutations_stay_one_step() -> None:
    assert steps((2, 3, 4), ("permute", (2, 0, 1)), ("view", (4, 2, 3))) == (("permute", (2, 0, 1)),)
    assert steps((1, 6, 4), ("view", (6, 4)), ("permute", (1, 0)), ("view", (1, 4, 6))) == (("permute", (0, 2, 1)),)
    assert steps((6, 4), ("permute", (1, 0)), ("view", (1, 4, 6))) == (("permute", (1, 0)), ("view", (1, 4, 6)))


def test_what_is_merged_stays_merged() -> None:
    assert steps((2, 3, 4), ("view", (6, 4)), ("permute", (1, 0))) == (("view", (6, 4)), ("permute", (1, 0)))


def test_an_uneven_cut_is_refused() -> None:
    arrangement = Arrangement((6, 4))
    assert not arrangement.reshape((4, 6))
    assert arrangement.shape == (6, 4)
