"""Calibration: every layer is made right for what it reads, and the model is as before."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memcompile
from memcompile import LowRankLinear
from memcompile.errors import CalibrationError
from memcompile.low_rank.layers import linear_layers
from tests.steps import relative_error


class Branches(nn.Module):
    """Query, key and value read one tensor, which is then written to before `late` reads it; `unused` reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(12, 10), nn.Linear(12, 10), nn.Linear(12, 8)
        self.late, self.unused, self.dead = nn.Linear(12, 9), nn.Linear(7, 7), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        out = self.query(x).sum() + self.key(input=x).sum() + self.value(x).sum()
        x.mul_(torch.linspace(-1, 3, 12)).tanh_()
        found: Tensor = out + self.late(x).sum() + self.late(2 * x).sum() + self.dead(torch.zeros(3, 8)).sum()
        return found


def test_every_layer_is_calibrated_on_what_it_reads() -> None:
    torch.manual_seed(0)
    model = Branches()
    batches = [torch.randn(5, 12), torch.randn(2, 3, 12)]
    seen: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_children()}
    with torch.no_grad():
        for batch in batches:
            x = batch + 1
            late = (x * torch.linspace(-1, 3, 12)).tanh()
            for name, tensor in (("query", x), ("key", x), ("value", x), ("late", late), ("late", 2 * late)):
                seen[name].append(tensor.reshape(-1, 12))
    dense = copy.deepcopy(model)
    report = memcompile.compress(model, rank=2, calibration=batches)
    rows = {layer.name: layer for layer in report.layers}
    linear: Any
    new: Any
    for name in ("query", "key", "value", "late"):
        x = torch.cat(seen[name]).double()
        linear, new, layer = dense.get_submodule(name), model.get_submodule(name), rows[name]
        best = LowRankLinear.from_linear(linear, 2, x.T @ x)
        assert relative_error(new.weight, best.weight) < 1e-4
        missing = x @ (linear.weight - new.weight).double().T
        assert layer.output_error == pytest.approx((missing.norm() / (x @ linear.weight.double().T).norm()).item(), rel=1e-5)
    for name in ("unused", "dead"):
        assert rows[name].reason == "calibration does not reach it (plain SVD)"
        assert rows[name].output_error is None
        linear, new = dense.get_submodule(name), model.get_submodule(name)
        plain = LowRankLinear.from_linear(linear, 2)
        assert relative_error(new.weight, plain.weight) < 1e-6
    assert "note: calibration does not reach it (plain SVD): unused, dead" in str(report)


def test_layers_with_one_input_share_one_matrix() -> None:
    from memcompile.low_rank.calibration import as_calls, collect_grams

    model = Branches()
    layers = linear_layers(model)
    grams = {layer.names[0]: gram for layer, gram in collect_grams(model, layers, as_calls([torch.randn(4, 12)] * 2)).items()}
    assert grams["query"] is grams["key"] is grams["value"]
    assert not torch.allclose(grams["late"], grams["query"])


@pytest.mark.parametrize("batch", [torch.ones(3, 6), (torch.ones(3, 6),), [torch.ones(3, 6)], {"input": torch.ones(3, 6)}])
def test_forms_of_batches(batch: object) -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    assert memcompile.compress(model, rank=1, calibration=iter([batch])).layers[0].output_error is not None


def test_calibration_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(), nn.BatchNorm1d(6), nn.Linear(6, 6))
    model[1].eval()
    flags = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())

    def batches() -> Iterator[Tensor]:
        yield torch.randn(4, 6)
        assert torch.is_grad_enabled() is False and not model.training
        raise KeyError("the data ends here")

    with pytest.raises(KeyError, match="the data ends here"):
        memcompile.compress(model, rank=1, calibration=batches())
    assert [module.training for module in model.modules()] == flags
    assert type(model[0]) is type(model[3]) is nn.Linear
    assert not model[0]._forward_pre_hooks
    assert torch.is_grad_enabled()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    memcompile.compress(model, rank=1, calibration=[torch.randn(4, 6)])
    assert [module.training for module in model.modules()] == flags
    norm: Any = model[2]
    assert torch.equal(norm.running_mean, state["2.running_mean"])


def test_inputs_that_are_not_finite() -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    with pytest.raises(CalibrationError, match="what comes into '0' is not finite"):
        memcompile.compress(model, rank=1, calibration=[torch.full((2, 6), float("nan"))])
    assert type(model[0]) is nn.Linear
