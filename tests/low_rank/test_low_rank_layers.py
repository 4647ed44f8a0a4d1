"""Which layers are left alone and why, and layers that are held in several places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm
from transformers.pytorch_utils import Conv1D

import memcompile
from memcompile import LowRankLinear
from tests.steps import relative_error

l1_unstructured: Any = prune.l1_unstructured


def reason_of(model: nn.Module, name: str = "0", **settings: Any) -> str:
    """Why `compress` leaves layer ``name`` alone; what it says has to be true."""
    before = model.get_submodule(name)
    (layer,) = [layer for layer in memcompile.compress(model, **{"ratio": 0.5, **settings}).layers if layer.name == name]
    assert model.get_submodule(name) is before
    assert layer.rank is None and layer.parameters_after == layer.parameters_before
    return layer.reason


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights_are_left_alone() -> None:
    model = Tied()
    assert reason_of(model, "head") == "its weight is shared with embedding.weight"
    assert isinstance(model.body, LowRankLinear)
    flat = torch.randn(2 * 36)
    views = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    for index, layer in enumerate(views):
        layer.weight = nn.Parameter(flat[36 * index : 36 * index + 36].view(6, 6))
    assert reason_of(views, "1") == "its weight is shared with 0.weight"


def test_a_module_with_two_names_is_replaced_at_both() -> None:
    shared = nn.Linear(8, 8)
    block = nn.Sequential(shared)
    model: Any = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared), "c": block, "d": block})
    report = memcompile.compress(model, rank=2, layers="b.1")
    assert len(report.layers) == 1
    assert isinstance(model["a"], LowRankLinear)
    assert model["a"] is model["b"][1] is model["c"][0] is model["d"][0]
    assert report.model_parameters_after == 2 * 16 + 8


class Named(nn.Linear):
    pass


def hooked(register: str) -> nn.Module:
    layer = nn.Linear(6, 6)
    getattr(layer, register)(lambda *_: None)
    return layer


def patched() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


def with_extra(attribute: str, value: object) -> nn.Module:
    layer = nn.Linear(6, 6)
    setattr(layer, attribute, value)
    return layer


def with_infinity() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.weight.data[2, 3] = float("inf")
    return layer


class Wrapped(Tensor):
    pass


def wrapped() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.weight = nn.Parameter(torch.randn(6, 6).as_subclass(Wrapped))
    return layer


def integers() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.weight = nn.Parameter(torch.ones(6, 6, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Named(6, 6), "it is a Named, which may compute something else"),
        (lambda: type("Mine", (Conv1D,), {})(6, 6), "it is a Mine, which may compute something else"),
        (lambda: parametrizations.weight_norm(nn.Linear(6, 6)), "it is parametrised"),
        (
            lambda: l1_unstructured(nn.Linear(6, 6), "weight", 0.5),
            "it has hooks (forward_pre_hooks), which would be lost",
        ),
        (lambda: hooked("register_forward_hook"), "it has hooks (forward_hooks), which would be lost"),
        (lambda: hooked("register_full_backward_hook"), "it has hooks (backward_hooks), which would be lost"),
        (patched, "its forward was replaced"),
        (wrapped, "its weight is a Wrapped, not a plain parameter"),
        (lambda: with_extra("scale", nn.Parameter(torch.ones(1))), "it also holds scale"),
        (lambda: with_extra("lora", nn.Linear(6, 2, bias=False)), "it also holds lora.weight"),
        (integers, "its weight is int8"),
        (lambda: nn.Linear(6, 6).to(torch.float8_e4m3fn), "its weight is float8_e4m3fn"),
        (lambda: nn.Linear(6, 6, device="meta"), "its weight has no values: it is on the meta device"),
        (with_infinity, "its weight holds values that are not finite"),
        (lambda: nn.Linear(6, 1), "rank 1 would take 7 parameters, the weight has 6"),
    ],
)
def test_left_alone(make: Callable[[], nn.Module], reason: str) -> None:
    model = nn.Sequential(make(), nn.Linear(8, 8))
    assert reason_of(model) == reason
    assert isinstance(model[1], LowRankLinear)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_left_alone_with_a_weight_that_a_hook_makes() -> None:
    assert "forward_pre_hooks" in reason_of(nn.Sequential(weight_norm(nn.Linear(6, 6))))


def test_left_alone_when_as_large_as_before() -> None:
    assert reason_of(nn.Sequential(nn.Linear(4, 4)), ratio=1.0) == "rank 2 would take 16 parameters, the weight has 16"


def test_the_model_itself_is_left_alone() -> None:
    (layer,) = memcompile.compress(nn.Linear(6, 6), ratio=0.5).layers
    assert "LowRankLinear.from_linear makes one of it" in layer.reason


def test_code_that_reads_the_weights_of_its_layers_goes_on() -> None:
    """The fast path of `nn.TransformerEncoderLayer` hands the weights to one kernel; its attention's output is a subclass."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    report = memcompile.compress(model, rank=4)
    assert {layer.name for layer in report.compressed} == {"linear1", "linear2"}
    assert report.left_alone[0].reason.startswith("it is a NonDynamicallyQuantizableLinear")
    x = torch.randn(2, 5, 16)
    slow = model(x)
    with torch.no_grad():
        assert relative_error(model.eval()(x), slow) < 3e-6


def test_conv1d_is_the_transpose_of_linear() -> None:
    torch.manual_seed(0)
    make: Any = Conv1D
    conv, linear = make(20, 12), nn.Linear(12, 20)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.T)
        linear.bias.copy_(conv.bias)
    x = torch.randn(2, 3, 12)
    model = nn.ModuleList([conv, linear])
    report = memcompile.compress(model, rank=3)
    assert {(row.in_features, row.out_features) for row in report.layers} == {(12, 20)}
    assert relative_error(model[0](x), model[1](x)) < 1e-6
    assert relative_error(model[0](x), conv(x)) == pytest.approx(relative_error(model[1](x), linear(x)))
