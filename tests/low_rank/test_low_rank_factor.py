"""The factors: exact at full rank, and at lower ones better than anything else of the same rank."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import memcompile
from memcompile import LowRankLinear
from memcompile.errors import InvalidOptionError
from memcompile.low_rank.factor import Factors, decompose
from tests.steps import relative_error

SHAPES = [(24, 16), (16, 24), (20, 20)]


def samples(rows: int, features: int, seed: int = 0) -> Tensor:
    """Inputs with a few strong directions, as activations have."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(features, features, generator=generator, dtype=torch.float64)
    return torch.randn(rows, features, generator=generator, dtype=torch.float64) @ (
        mix * torch.logspace(0, -3, features)[:, None]
    )


def weight_of(out_features: int, in_features: int, seed: int = 1) -> Tensor:
    return torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(factors: Factors) -> Tensor:
    return factors.second @ factors.first


def improved(weight: Tensor, x: Tensor, factors: Factors) -> float:
    """The output's squared error after alternating least squares from ``factors``: each half is solved for the other exactly."""
    second, first, whole = factors.second, factors.first, torch.linalg.lstsq(x, x @ weight.T).solution.T
    for _ in range(20):
        second = torch.linalg.lstsq(x @ first.T, x @ weight.T).solution.T
        first = torch.linalg.lstsq(second, whole).solution
    return (x @ (weight - second @ first).T).square().sum().item()


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_exact(shape: tuple[int, int]) -> None:
    weight = weight_of(*shape)
    x = samples(7, shape[1])  # fewer rows than features: the inputs leave directions open
    for gram in (None, x.T @ x):
        factors = decompose(weight, gram).truncated(min(shape))
        assert relative_error(product(factors), weight) < 1e-9
        assert factors.energy_kept == pytest.approx(1.0)
        assert factors.weight_error < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_plain_truncation_has_the_known_error(shape: tuple[int, int], rank: int) -> None:
    """Eckart and Young: the error of the best is the norm of the singular values that are cut off."""
    weight = weight_of(*shape)
    factors = decompose(weight).truncated(rank)
    values = torch.linalg.svdvals(weight)
    best = (values[rank:].norm() / values.norm()).item()
    assert (weight - product(factors)).norm() / weight.norm() == pytest.approx(best)
    assert factors.weight_error == pytest.approx(best)
    assert factors.energy_kept == pytest.approx(1 - best**2)
    assert factors.output_error is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [9, 200])
def test_nothing_of_the_same_rank_has_a_smaller_output_error(shape: tuple[int, int], rows: int) -> None:
    weight, x, rank = weight_of(*shape), samples(rows, shape[1]), 4
    factors = decompose(weight, x.T @ x).truncated(rank)
    found = (x @ (weight - product(factors)).T).square().sum().item()
    bound = torch.linalg.svdvals(x @ weight.T)[rank:].square().sum().item()  # of any output of this rank
    assert found == pytest.approx(bound, rel=1e-5)
    assert found <= improved(weight, x, factors) * (1 + 1e-5)
    generator = torch.Generator().manual_seed(3)
    for scale in (1e-3, 1e-2, 1e-1):
        second = factors.second + scale * torch.randn(factors.second.shape, generator=generator, dtype=torch.float64)
        first = factors.first + scale * torch.randn(factors.first.shape, generator=generator, dtype=torch.float64)
        assert found <= (x @ (weight - second @ first).T).square().sum().item()
    plain = decompose(weight).truncated(rank)
    assert found < 0.7 * (x @ (weight - product(plain)).T).square().sum().item()
    assert factors.output_error == pytest.approx((found**0.5) / (x @ weight.T).norm().item())
    assert factors.output_error is not None
    assert factors.energy_kept == pytest.approx(1 - factors.output_error**2, abs=1e-6)
    assert factors.weight_error >= plain.weight_error


def test_a_gram_matrix_that_rounding_made_indefinite() -> None:
    weight, x = weight_of(24, 16), samples(9, 16)
    gram = (x.T @ x).float().double()  # as a sum in float32 leaves it
    assert torch.linalg.cholesky_ex(gram + 1e-8 * gram.diagonal().mean() * torch.eye(16)).info > 0
    factors = decompose(weight, gram).truncated(4)
    found = (x @ (weight - product(factors)).T).norm().item()
    assert found == pytest.approx(torch.linalg.svdvals(x @ weight.T)[4:].norm().item(), rel=1e-4)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.integers(0, 1000), st.data())
def test_optimal_for_any_shape(out_features: int, in_features: int, rows: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(out_features, in_features)))
    weight, x = weight_of(out_features, in_features, seed), samples(rows, in_features, seed + 1)
    factors = decompose(weight, x.T @ x).truncated(rank)
    found = (x @ (weight - product(factors)).T).norm().item()
    bound = torch.linalg.svdvals(x @ weight.T)[rank:].norm().item()
    assert found <= bound + 2e-3 * (x @ weight.T).norm().item()
    assert 0 <= factors.energy_kept <= 1 + 1e-12


def test_a_weight_of_low_rank_and_a_weight_of_zeros() -> None:
    weight = weight_of(12, 3) @ weight_of(3, 10)
    factors = decompose(weight).truncated(3)
    assert relative_error(product(factors), weight) < 1e-12
    zeros = decompose(torch.zeros(6, 5), torch.eye(5)).truncated(2)
    assert torch.equal(zeros.second @ zeros.first, torch.zeros(6, 5))
    assert (zeros.energy_kept, zeros.weight_error, zeros.output_error) == (1.0, 0.0, 0.0)


def test_inputs_of_zeros_say_nothing() -> None:
    weight = weight_of(8, 8)
    blind, plain = decompose(weight, torch.zeros(8, 8)).truncated(3), decompose(weight).truncated(3)
    assert torch.equal(product(blind), product(plain))
    assert blind.output_error is None


def test_one_learning_rate_suits_both_factors() -> None:
    x = samples(40, 16)
    factors = decompose(weight_of(24, 16), x.T @ x).truncated(5)
    assert torch.allclose(factors.first.norm(dim=1), factors.second.norm(dim=0))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.filterwarnings("error")
def test_half_precision_is_factored_exactly_and_stored_rounded(dtype: torch.dtype, rounding: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 24).to(dtype)
    x = torch.randn(5, 16, dtype=dtype)
    layer = LowRankLinear.from_linear(linear, 16)
    assert layer.first.dtype == layer.second.dtype == layer(x).dtype == dtype
    assert relative_error(layer(x), linear(x)) < rounding
    factors = decompose(linear.weight.detach()).truncated(16)
    assert factors.weight_error < rounding
    assert dtype is torch.float32 or factors.weight_error > 1e-5  # what is stored, not what was computed


def test_layer_keeps_what_the_dense_one_had() -> None:
    linear = nn.Linear(16, 24).double().eval()
    linear.weight.requires_grad_(False)
    layer = LowRankLinear.from_linear(linear, 4)
    assert (layer.in_features, layer.out_features, layer.rank) == (16, 24, 4)
    assert layer.bias is linear.bias
    assert not layer.training
    assert not layer.first.requires_grad and not layer.second.requires_grad
    assert layer.first.dtype == torch.float64
    assert layer.first.is_contiguous() and layer.second.is_contiguous()
    assert repr(layer) == "LowRankLinear(in_features=16, out_features=24, rank=4, bias=True)"
    assert LowRankLinear.from_linear(nn.Linear(4, 4, bias=False), 2).bias is None


def test_back_to_dense() -> None:
    torch.manual_seed(0)
    layer = LowRankLinear.from_linear(nn.Linear(16, 24), 4).eval()
    dense = layer.to_linear()
    x = torch.randn(2, 3, 16)
    assert type(dense) is nn.Linear and not dense.training
    assert dense.bias is layer.bias
    assert relative_error(dense(x), layer(x)) < 1e-6
    assert torch.equal(layer.weight, layer.second @ layer.first)


def test_state_dict_round_trip() -> None:
    layer = LowRankLinear.from_linear(nn.Linear(16, 24), 4)
    other = LowRankLinear(16, 24, 4)
    assert list(layer.state_dict()) == ["first", "second", "bias"]
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 16)
    assert torch.equal(other(x), layer(x))


def test_new_layers_have_the_variance_of_linear_ones() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 64)
    low, dense = LowRankLinear(64, 512, 32)(x).var().item(), nn.Linear(64, 512)(x).var().item()
    assert low == pytest.approx(dense, rel=0.2)


def test_gradients_flow() -> None:
    layer = LowRankLinear.from_linear(nn.Linear(6, 5), 3).double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


@pytest.mark.parametrize("rank", [0, -1, 5, True, 2.0])
def test_ranks_that_a_layer_cannot_have(rank: object) -> None:
    with pytest.raises(InvalidOptionError, match="a whole number from 1 to 4"):
        LowRankLinear.from_linear(nn.Linear(6, 4), rank)  # type: ignore[arg-type]


def test_the_package_loads_without_torch() -> None:
    assert memcompile.LowRankLinear is LowRankLinear
    with pytest.raises(AttributeError, match="no attribute 'LowRank'"):
        _ = memcompile.LowRank
