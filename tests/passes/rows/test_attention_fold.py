"""Attention in the ranks of its heads: the same numbers, or a reason why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memcompile.passes.rows.attention_fold import _laid_out
from memcompile.passes.rows.canonical import canonicalise
from memcompile.step.rewriting import Rewrite, value_of
from tests.captured import captured
from tests.passes.rows.test_canonical import assert_same_numbers, traced
from tests.steps import relative_error

BATCH, HEADS, TOKENS, KEYS, RANK, HEAD = 2, 3, 8, 12, 4, 16
GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


FACTORS = [random(HEADS, RANK, HEAD) for _ in range(3)]
INPUTS = [random(BATCH, HEADS, TOKENS, RANK), *(random(BATCH, HEADS, KEYS, RANK) for _ in range(2))]


def heads(ranks: Sequence[Tensor], width: int = HEAD) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values."""
    q, k, v = [rank @ factor[..., :width] for rank, factor in zip(ranks, FACTORS, strict=True)]
    return q, k, v


def plain(*ranks: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(ranks))


def with_a_mask(*ranks: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(
        *heads(ranks), attn_mask=torch.linspace(-2, 1, KEYS, dtype=ranks[0].dtype).expand(TOKENS, -1)
    )


@pytest.mark.parametrize("biases", ["none", "head", "all"])
@pytest.mark.parametrize("keywords", [{}, {"is_causal": True}, {"scale": 0.7}])
def test_the_numbers_stay(biases: str, keywords: dict[str, Any]) -> None:
    """With a bias for each head, with one for all of them, and without."""
    shape = {"none": (), "head": (HEADS, 1, HEAD), "all": (HEAD,)}[biases]
    added = [random(*shape) for _ in range(3)]

    def attention(*ranks: Tensor) -> Tensor:
        q, k, v = heads(ranks) if not shape else [h + b for h, b in zip(heads(ranks), added, strict=True)]
        return F.scaled_dot_product_attention(q, k, v, **keywords)

    module = captured(attention, *INPUTS, train=False)
    (outcome,) = assert_same_numbers(module)
    assert isinstance(outcome, Rewrite)
    assert outcome.what == f"attends in {RANK} of {HEAD} dimensions"
    wide = [
        node for node in module.graph.nodes if getattr(node.meta.get("val"), "shape", ())[-2:] in ((TOKENS, HEAD), (KEYS, HEAD))
    ]
    assert all(value.meta["val"].shape[-2] == TOKENS for value in wide), "keys and values of full width are not made"


def test_a_mask_stays() -> None:
    (outcome,) = assert_same_numbers(captured(with_a_mask, *INPUTS, train=False))
    assert isinstance(outcome, Rewrite)


def mask_and_bias(*ranks: Tensor) -> Tensor:
    q, k, v = heads(ranks)
    return F.scaled_dot_product_attention(
        q, k, v + torch.ones(HEAD, dtype=v.dtype), attn_mask=torch.zeros(TOKENS, KEYS, dtype=v.dtype)
    )


def keys_are_returned(*ranks: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = heads(ranks)
    return F.scaled_dot_product_attention(q, k, v), k


def as_wide_as_the_rank(*ranks: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*heads(ranks, RANK))


def other_ranks(*ranks: Tensor) -> Tensor:
    q, k, _ = heads(ranks)
    return F.scaled_dot_product_attention(q, k, ranks[2][..., :3] @ FACTORS[2][:, :3])


@pytest.mark.parametrize(
    ("function", "train", "why"),
    [
        (mask_and_bias, False, "a mask may hide every key"),
        (keys_are_returned, False, "used elsewhere"),
        (as_wide_as_the_rank, False, "the ranks 4 and 4 of keys and values are not one that is below 4"),
        (other_ranks, False, "the ranks 4 and 3"),
        (plain, True, "its backward reads"),
    ],
)
def test_refusals_say_why(function: Callable[..., object], train: bool, why: str) -> None:
    inputs = [t.clone().requires_grad_(train) for t in INPUTS]
    outcomes = canonicalise(captured(function, *inputs, train=train))
    (refusal,) = (outcome for outcome in outcomes if outcome.kind == "attention")
    assert not isinstance(refusal, Rewrite)
    assert why in refusal.why


@pytest.mark.parametrize("between", [torch.mul, torch.add])
def test_rotated_heads_are_left_alone(between: Callable[..., Any]) -> None:
    """What stands between factors and attention and is no bias (RoPE, positions) is no pattern at all."""
    angles = random(TOKENS, HEAD)

    def rotated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        made = heads((q, k[:, :, :TOKENS], v[:, :, :TOKENS]))
        return F.scaled_dot_product_attention(*(between(h, angles) for h in made))

    assert not assert_same_numbers(captured(rotated, *INPUTS, train=False))


def test_results_get_the_strides_of_what_they_replace() -> None:
    module = traced(lambda x: (x + 1, x.transpose(1, 2).contiguous().transpose(1, 2)), random(2, 3, 4, 5))
    outputs: Any = module.graph.output_node().args[0]
    plain, like = outputs
    found = _laid_out(plain, like)
    assert value_of(plain).stride() != value_of(like).stride() == value_of(found).stride()
    module.graph.output_node().args = ((plain, found),)
    module.recompile()
    assert torch.equal(*module(random(2, 3, 4, 5)))


def test_the_expected_numbers_are_those_of_the_formula() -> None:
    """softmax(s q' Pk^T) Pv Vv + bv, written down."""
    (pq, pk, pv), (vq, vk, vv) = INPUTS, FACTORS
    bq, bk, bv = (random(HEADS, 1, HEAD) for _ in range(3))
    asked = pq @ (vq @ vk.mT) + bq @ vk.mT
    found = torch.softmax(asked @ pk.mT / HEAD**0.5, -1) @ pv @ vv + bv
    expected = F.scaled_dot_product_attention(pq @ vq + bq, pk @ vk + bk, pv @ vv + bv)
    assert relative_error(found, expected) < 1e-12
