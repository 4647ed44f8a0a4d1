"""Regions that run block by block against the same graph as a whole, and what they look like."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

from memcompile.passes.rows.low_rank import rewrite_inference, rewrite_training
from memcompile.streaming.program import LostProgramError, Program
from memcompile.streaming.rules import NotRowLocalError, RowAxes, carried, contracted, demanded, through_view
from tests.captured import captured
from tests.streamed import TOOLS, blocks_of, traced


def pair(source: int, rank: int, target: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(source, rank, bias=False), nn.Linear(rank, target))


class FeedForward(nn.Module):
    """Pre-norm, low-rank, gated or not; ``x + down(act(up(norm(x))))``."""

    def __init__(self, width: int = 8, hidden: int = 48, rank: int = 4, gated: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = pair(width, rank, hidden), pair(hidden, rank, width)
        self.gate = pair(width, rank, hidden) if gated else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        up = self.up(y)
        out: torch.Tensor = x + self.down(F.gelu(up) if self.gate is None else F.silu(self.gate(y)) * up)
        return out


class Attention(nn.Module):
    """Low-rank queries, keys, values and output, then a norm of the sum."""

    def __init__(self, width: int = 8, rank: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.parts = nn.ModuleList(pair(width, rank, width) for _ in range(4))
        self.heads, self.norm = heads, nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        query, key, value = (p(x).view(batch, length, self.heads, -1).transpose(1, 2) for p in self.parts[:3])
        y = F.scaled_dot_product_attention(query, key, value)
        out: torch.Tensor = self.norm(x + self.parts[3](y.transpose(1, 2).reshape(batch, length, width)))
        return out


def node_of(graph: fx.GraphModule, name: str) -> fx.Node:
    found: fx.Node = next(node for node in graph.graph.nodes if node.name == name)
    return found


def runs(graph: fx.GraphModule) -> list[fx.Node]:
    return graph.graph.find_nodes(op="call_function", target=torch.ops.memcompile.stream_rows.default)


def assert_same(graph: fx.GraphModule, expected: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    found = graph(*inputs)
    for one, other in zip(found if isinstance(found, tuple | list) else [found], expected, strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# -- rules


@pytest.mark.parametrize(
    ("source", "rows", "target", "expected"),
    [
        ((4, 6, 8), RowAxes(0, 1), (24, 8), RowAxes(0, 0)),
        ((24, 8), RowAxes(0, 0), (4, 6, 8), RowAxes(0, 1)),
        ((24, 8), RowAxes(0, 0, 6), (4, 6, 8), RowAxes(0, 0)),
        ((4, 6, 8), RowAxes(0, 0), (24, 8), RowAxes(0, 0, 6)),
        ((1, 24, 8), RowAxes(0, 1), (24, 2, 4), RowAxes(0, 0)),
        ((24, 2, 4), RowAxes(0, 0), (1, 24, 8), RowAxes(0, 1)),
        ((24, 8), RowAxes(0, 0), (48, 4), RowAxes(0, 0, 2)),
        ((3, 24, 8), RowAxes(1, 1), (3, 4, 6, 8), RowAxes(1, 2)),
        ((24, 8), RowAxes(0, 0), (8, 24), RowAxes(0, 1, 8)),
        ((24, 8), RowAxes(0, 0, 3), (192,), RowAxes(0, 0, 24)),
    ],
)
def test_rows_through_a_view(source: tuple[int, ...], rows: RowAxes, target: tuple[int, ...], expected: RowAxes) -> None:
    assert through_view(source, rows, target) == expected


@pytest.mark.parametrize(("target", "rows"), [((8, 24), RowAxes(1, 1)), ((36, 16), RowAxes(0, 0))])
def test_a_view_that_takes_rows_apart(target: tuple[int, int], rows: RowAxes) -> None:
    with pytest.raises(NotRowLocalError):
        through_view((24, 24), rows, target)


def test_a_product_has_the_rows_of_its_left_operand() -> None:
    graph = traced(lambda x, w: x @ w, torch.randn(6, 4), torch.randn(4, 3))
    product = node_of(graph, "mm")
    left: Any
    right: Any
    left, right = product.args
    assert demanded(product, RowAxes(0, 0)) == {left: RowAxes(0, 0), right: None}
    assert carried(product, left, RowAxes(0, 0), 6) == RowAxes(0, 0)
    with pytest.raises(NotRowLocalError):
        carried(product, right, RowAxes(0, 0), 4)


def test_a_product_of_a_transpose_sums_over_rows() -> None:
    graph = traced(lambda x, y: x.t() @ y, torch.randn(6, 4), torch.randn(6, 3))
    product = node_of(graph, "mm")
    left: Any
    right: Any
    left, right = product.args
    assert contracted(product, right, RowAxes(0, 0)) == {left: RowAxes(1, 1), right: RowAxes(0, 0)}


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.cumsum(0), "cumsum works along the rows"),
        (lambda x: x.softmax(0), "mixes rows"),
        (lambda x: x + x.sum(0), "mixes rows"),
        (lambda x: x.sort(0)[0], "sort"),
        (lambda x: F.dropout(x), ""),
    ],
)
def test_what_is_not_row_local(function: Callable[[torch.Tensor], torch.Tensor], reason: str) -> None:
    graph = traced(function, torch.randn(6, 4))
    x = graph.graph.find_nodes(op="placeholder")[0]
    with pytest.raises(NotRowLocalError):
        for node in graph.graph.nodes:
            if node.op == "call_function" and tuple(getattr(node.meta["val"], "shape", ())) == (6, 4):
                demanded(node, RowAxes(0, 0))
        carried(next(iter(x.users)), x, RowAxes(0, 0), 6)
        raise AssertionError(reason)


# -- inference


@pytest.mark.parametrize("length", [16, 19])
@pytest.mark.parametrize("gated", [False, True])
def test_a_feed_forward_network_runs_block_by_block(gated: bool, length: int) -> None:
    model, x = FeedForward(gated=gated).double(), torch.randn(4, length, 8, dtype=torch.double)
    graph = traced(model, x)
    with blocks_of(4 * 1024):
        done = rewrite_inference(graph, TOOLS)
    (streamed,) = done.streamed
    assert streamed.program.total == 4 * length
    assert streamed.program.block < streamed.program.total
    whole = {tuple(n.meta["val"].shape) for n in graph.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)}
    assert (4 * length, 48) not in whole
    assert_same(graph, [model(x)], [x])


def test_attention_runs_item_by_item_and_the_rest_row_by_row() -> None:
    model = nn.Sequential(Attention(), FeedForward(), Attention(), FeedForward()).double()
    x = torch.randn(6, 16, 8, dtype=torch.double)
    graph = traced(model, x)
    with blocks_of(2 * 1024):
        done = rewrite_inference(graph, TOOLS)
    totals = [streamed.program.total for streamed in done.streamed]
    assert totals.count(6) == 2
    assert totals.count(96) >= 2
    assert_same(graph, [model(x)], [x])


def test_a_result_is_written_over_an_operand_that_dies() -> None:
    model = nn.Sequential(Attention(), FeedForward(), Attention(), FeedForward()).double()
    graph = traced(model, torch.randn(6, 16, 8, dtype=torch.double))
    with blocks_of(2 * 1024):
        streamed = rewrite_inference(graph, TOOLS).streamed
    rows = [one.program for one in streamed if one.program.total == 96]
    over = [program.in_place != (None,) for program in rows]
    assert not over[0], "the first operand is the user's"
    assert all(over[1:])


def test_a_dense_network_and_a_small_one_are_left_alone() -> None:
    dense = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)).double()
    graph = traced(dense, torch.randn(64, 8, dtype=torch.double))
    with blocks_of(1024):
        assert not rewrite_inference(graph, TOOLS).streamed
    graph = traced(FeedForward(), torch.randn(4, 16, 8))
    assert not rewrite_inference(graph, TOOLS).streamed


def test_what_mixes_rows_ends_a_region() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = pair(8, 4, 48), pair(48, 4, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.up(x)
            out: torch.Tensor = self.down(hidden - hidden.mean(0, keepdim=True))
            return out

    model, x = Mixed().double(), torch.randn(64, 8, dtype=torch.double)
    graph = traced(model, x)
    with blocks_of(1024):
        done = rewrite_inference(graph, TOOLS)
    assert node_of(graph, "mean").all_input_nodes[0].meta["val"].shape == (64, 48), "the mean reads all of the hidden"
    assert done is not None
    assert_same(graph, [model(x)], [x])


def test_a_hidden_that_is_returned_stays_whole() -> None:
    class Returned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = pair(8, 4, 48), pair(48, 4, 8)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = self.up(x).relu()
            return self.down(hidden), hidden

    model, x = Returned().double(), torch.randn(64, 8, dtype=torch.double)
    graph = traced(model, x)
    with blocks_of(1024):
        done = rewrite_inference(graph, TOOLS)
    assert done is not None
    assert_same(graph, model(x), [x])


def test_a_program_that_is_gone() -> None:
    with pytest.raises(LostProgramError, match="compile the model here"):
        torch.ops.memcompile.stream_rows("none", [torch.zeros(2)])


LAYERS = st.lists(
    st.sampled_from(["ffn", "gated", "attention", "pair", "norm", "scale", "flat", "heads"]), min_size=1, max_size=5
)


class Random(nn.Module):
    """A chain of low-rank layers in several spellings."""

    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.kinds = kinds
        made: dict[str, Callable[[], nn.Module]] = {
            "ffn": FeedForward,
            "gated": lambda: FeedForward(gated=True),
            "attention": Attention,
        }
        self.layers = nn.ModuleList(made.get(kind, lambda: pair(8, 2, 8))() for kind in kinds)
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            match kind:
                case "norm":
                    x = F.layer_norm(x, (8,)) + x.amax(-1, keepdim=True)
                case "scale":
                    x = layer(x) * self.weight + x * x.mean(-1, keepdim=True)
                case "flat":
                    x = layer(x.reshape(-1, 8)).tanh().view(x.shape)
                case "heads":
                    heads = layer(x).view(*x.shape[:2], 2, 4).transpose(1, 2)
                    x = x + heads.softmax(-1).transpose(1, 2).reshape(x.shape)
                case _:
                    x = layer(x)
        return x


@settings(max_examples=40, deadline=None)
@given(LAYERS, st.integers(1, 5), st.integers(2, 9), st.sampled_from([256, 1024, 4096]))
def test_random_networks_give_the_same(kinds: list[str], batch: int, length: int, block_bytes: int) -> None:
    torch.manual_seed(0)
    model, x = Random(kinds).double(), torch.randn(batch, length, 8, dtype=torch.double)
    graph = traced(model, x)
    with blocks_of(block_bytes):
        done = rewrite_inference(graph, TOOLS)
    assert done is not None
    assert_same(graph, [model(x)], [x])


# -- training


class Loss(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x).pow(2).sum()
        return out


def streamed_joint(model: nn.Module, x: torch.Tensor, block_bytes: int) -> tuple[fx.GraphModule, tuple[Program, ...]]:
    """The joint graph, streamed, checked against itself before."""
    graph = captured(model, x, train=True)
    inputs = [torch.randn(n.meta["val"].shape, dtype=n.meta["val"].dtype) for n in graph.graph.find_nodes(op="placeholder")]
    names = [str(n.target) for n in graph.graph.find_nodes(op="placeholder")]
    count = sum(name.startswith("primals") for name in names)
    call: Callable[[], Any] = lambda: graph(inputs[:count], inputs[count:])  # noqa: E731
    expected = call()
    with blocks_of(block_bytes):
        done = rewrite_training(graph, TOOLS)
    for one, other in zip(call(), expected, strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    return graph, tuple(streamed.program for streamed in done.streamed)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("length", [16, 19])
def test_a_training_step_keeps_nothing_of_the_hidden(gated: bool, length: int) -> None:
    model = Loss(FeedForward(gated=gated), FeedForward(gated=gated)).double()
    graph, programs = streamed_joint(model, torch.randn(4, length, 8, dtype=torch.double), 4 * 1024)
    assert len(programs) == 4
    shapes = {math.prod(n.meta["val"].shape) for n in graph.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)}
    assert 4 * length * 48 not in shapes
    assert any(port.axis is None for program in programs for port in program.results), "gradients of weights are sums"


def test_statistics_of_the_hidden_cross_into_the_backward() -> None:
    class Normed(FeedForward):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = x + self.down(F.layer_norm(self.up(x), (48,)))
            return out

    _, programs = streamed_joint(Loss(Normed()).double(), torch.randn(64, 8, dtype=torch.double), 4 * 1024)
    assert len(programs) == 2


def test_a_mask_of_dropout_crosses_as_it_is_saved() -> None:
    class Dropped(FeedForward):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = x + self.down(F.dropout(F.gelu(self.up(x)), 0.1))
            return out

    graph = captured(Loss(Dropped()).double(), torch.randn(64, 8, dtype=torch.double), train=True)
    with blocks_of(8 * 1024):
        done = rewrite_training(graph, TOOLS)
    assert len(done.streamed) == 2
    for streamed in done.streamed:
        wide = [port.dtype for port in streamed.program.operands if port.shape == (64, 48)]
        assert wide == [torch.bool]
