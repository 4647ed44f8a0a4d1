"""The prediction of what Inductor materialises, against what it does: tiny models, peaks and materialised bytes.

The bounds are the errors seen when the model was made, with a little room: a new PyTorch that fuses differently shows here.
Copies that change the layout of a convolution's input are not predicted: small pictures show that most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import memcompile
from memcompile.codegen.inductor.compile import compile_graph
from memcompile.codegen.inductor.dry import fake_code
from memcompile.codegen.inductor.fusion_groups import Loops, _share_loops
from memcompile.codegen.inductor.fusion_model import loops_of, product_of
from memcompile.codegen.inductor.partition import default_partition
from memcompile.codegen.inductor.trial import lower_graphs
from memcompile.compiling.dryrun import predict_graphs
from memcompile.step.facts import StepGraphs, _made_at, _results
from memcompile.step.fxutil import node_bytes
from memcompile.step.trace import GraphTrace


def gpt2() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=64, n_layer=2, n_head=4, use_cache=False, bos_token_id=0)
    return _named_loss(GPT2LMHeadModel(config), "ForCausalLM"), _tokens()


def bert() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
    )
    return _named_loss(BertForMaskedLM(config), "ForMaskedLM"), _tokens()


def llama() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=176,
        use_cache=False,
        bos_token_id=0,
    )
    return _named_loss(LlamaForCausalLM(config), "ForCausalLM"), _tokens()


def _named_loss(model: Any, kind: str) -> nn.Module:
    model.loss_type = kind
    return model  # type: ignore[no-any-return]


def _tokens() -> dict[str, Tensor]:
    tokens = torch.zeros(4, 64, dtype=torch.long)
    return {"input_ids": tokens, "labels": tokens}


class Residual(nn.Module):
    """Two residual blocks of convolutions with batch norm, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 24, 24, 3, padding=1, bias=False) for i in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(24) for _ in range(5))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.convs[0](x)))
        for i in (1, 3):
            y = F.relu(self.norms[i](self.convs[i](x)))
            x = F.relu(x + self.norms[i + 1](self.convs[i + 1](y)))
        return F.cross_entropy(self.head(x.mean((2, 3))), labels)


class Hourglass(nn.Module):
    """One level of a U-Net: down, up again, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.low = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 32, 3, padding=1)
        self.lift, self.last = nn.ConvTranspose2d(32, 24, 2, stride=2), nn.Conv2d(48, 10, 3, padding=1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        skip = F.silu(self.first(x))
        low = F.dropout(F.silu(self.low(F.max_pool2d(skip, 2))), 0.1)
        scores: Tensor = self.last(torch.cat((skip, self.lift(low)), 1))
        return F.cross_entropy(scores.mean((2, 3)), labels)


class Gates(nn.Module):
    """An LSTM cell, unrolled."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.input, self.state = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros_like(x[0])
        for x_t in x.unbind(0):
            i, f, g, o = (self.input(x_t) + self.state(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h.square().mean()


def _images(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    return model, {"x": torch.randn(4, 3, 32, 32), "labels": torch.zeros(4, dtype=torch.long)}


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, dict[str, Tensor]]], float]] = {
    "gpt2": (gpt2, 0.02),
    "bert": (bert, 0.05),
    "llama": (llama, 0.04),
    "residual": (lambda: _images(Residual()), 0.06),
    "hourglass": (lambda: _images(Hourglass()), 0.07),
    "gates": (lambda: (Gates(), {"x": torch.randn(6, 64, 32)}), 0.04),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_predicted_peak_and_buffers_are_close_to_the_lowered_ones(name: str) -> None:
    build, tolerance = MODELS[name]
    torch.manual_seed(0)
    model, batch = build()
    graphs = partitioned(model.train(), batch)
    exact, predicted = lower_graphs(graphs), predict_graphs(graphs)
    assert predicted.peak.entry_bytes == exact.peak.entry_bytes
    assert predicted.peak.peak_bytes == pytest.approx(exact.peak.peak_bytes, rel=tolerance)
    assert predicted.peak.saved_bytes == pytest.approx(exact.peak.saved_bytes, rel=tolerance)
    assert graphs.backward is not None
    forward = graphs.forward.graph
    made, guessed = (materialised(lowered.traces[0], forward) for lowered in (exact, predicted))
    assert guessed == pytest.approx(made, rel=0.1)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_is_predicted_of_a_plan_is_what_was_planned(name: str) -> None:
    """Lowering keeps to the plan, and so does its model: one plan is enough."""
    torch.manual_seed(0)
    model, batch = MODELS[name][0]()
    graph = memcompile.plan(model.train(), **batch, options={"memory_budget": "75%", "lower": False}).graphs[0]
    assert graph.plan["exact_peak_bytes"] == pytest.approx(graph.plan["model_peak_bytes"], rel=0.01)
    assert len(graph.plan["targets"]) == 1


def materialised(trace: GraphTrace, graph: fx.Graph) -> int:
    """Bytes of the values of ``graph`` that get a buffer."""
    return sum(node_bytes(result) for node in _made_at(trace, graph) if node.op == "call_function" for result in _results(node))


def partitioned(model: nn.Module, batch: dict[str, Tensor]) -> StepGraphs:
    """Forward and backward as plain torch.compile splits them."""
    found: list[StepGraphs] = []

    def partition(
        gm: fx.GraphModule, inputs: Sequence[object], *, num_fwd_outputs: int, **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        graphs = default_partition(gm, inputs, num_fwd_outputs, **kwargs)
        found.append(graphs)
        assert graphs.backward is not None
        return graphs.forward, graphs.backward

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_graph(gm, inputs, partition, fake_code(lambda graph: graph), {})

    torch._dynamo.reset()
    torch.compile(model, backend=backend)(**batch)
    torch._dynamo.reset()
    assert len(found) == 1
    return found[0]


def test_which_loops_are_shared() -> None:
    elementwise, rows, columns = Loops((4, 6), ()), Loops((4,), (6,)), Loops((6,), (4,))
    assert _share_loops(elementwise, Loops((24,), ()), depends=True)
    assert not _share_loops(elementwise, Loops((4, 5), ()), depends=True)
    assert _share_loops(elementwise, rows, depends=True), "a reduction over the inner dimension follows in the same loops"
    assert not _share_loops(elementwise, columns, depends=True)
    assert _share_loops(rows, elementwise, depends=True), "softmax: the rows are shared"
    assert not _share_loops(Loops((), (24,)), elementwise, depends=True), "nothing can start before a full reduction has ended"


def test_a_matrix_product_with_one_reader_joins_the_addition() -> None:
    graph = fx.Graph()
    a, b = (graph.placeholder(name) for name in "ab")
    product = graph.call_function(torch.ops.aten.mm.default, (a, b))
    total = graph.call_function(torch.ops.aten.add.Tensor, (a, product))
    for node in (a, b, product, total):
        node.meta["val"] = torch.empty(3, 3, device="meta")
    assert product_of(total) is product
    graph.output((total, product))
    assert product_of(total) is None


@pytest.mark.parametrize("dim", [0, -1, [0], [-1], []])
def test_a_scalar_is_reduced_over_nothing(dim: int | list[int]) -> None:
    """PyTorch lets a tensor without dimensions be reduced over its dimension 0."""
    graph = fx.Graph()
    source = graph.placeholder("x")
    source.meta["val"] = torch.empty(())
    reduced = graph.call_function(torch.ops.aten.amax.default, (source, dim))
    reduced.meta["val"] = torch.empty(())
    assert loops_of(reduced) == Loops((), ())
