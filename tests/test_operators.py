"""A fixed part of ``make operators``: samples of PyTorch's own operators, modules and optimizers, planned at the smallest budget.

Two samples of each entry of ``CHOSEN``, which are operators of every kind and those that failed once, forward and backward
against eager.
"""

from __future__ import annotations

import pytest
import torch

from tests.operators.cases import Sample, entries
from tests.operators.compare import differences
from tests.operators.judge import Judge

CHOSEN = {
    "op": [
        "add",
        "addmm",
        "atan2",
        "baddbmm",
        "bernoulli",
        "cat",
        "cdist",
        "clamp",
        "cumprod",
        "cumsum",
        "einsum",
        "nn.functional.embedding",
        "expand_as",
        "fft.rfft",
        "gather",
        "index_copy",
        "index_put",
        "linalg.cholesky",
        "linalg.solve",
        "logsumexp",
        "masked_fill",
        "matmul",
        "max.reduction_with_dim",
        "nn.functional.conv2d",
        "nn.functional.dropout",
        "nn.functional.gelu",
        "nn.functional.layer_norm",
        "nn.functional.max_pool2d",
        "nonzero",
        "prod",
        "scatter_add",
        "sort",
        "split",
        "std_mean",
        "take_along_dim",
        "unfold_copy",
        "view_as_complex",
        "where",
    ],
    "module": ["nn.BatchNorm2d", "nn.LSTM", "nn.MultiheadAttention"],
    "optim": ["SGD", "Adam"],
    "hop": ["cond.simple", "map.simple"],
    "custom": ["NumpyCubeCustomOp", "NumpySplitCopyCustomOp"],
    "autograd": ["NumpyMulAutogradFunction", "NumpySortAutogradFunction"],
}


def chosen(source: str) -> list[Sample]:
    """The first two samples of each chosen entry of a source."""
    return [s for entry in entries((source,)) if entry.name in CHOSEN[source] for s in entry.samples()[:2]]


@pytest.mark.parametrize("source", CHOSEN)
def test_samples_of_pytorch_planned_at_the_smallest_budget(source: str, fresh_dynamo: None) -> None:
    judge = Judge("planned", "smallest", batch=8, witness=False)
    failed = [v.row() for v in judge.judge(chosen(source)) if v.result != "same"]
    assert not failed, failed


def test_all_chosen_entries_are_there() -> None:
    for source, names in CHOSEN.items():
        assert {entry.name for entry in entries((source,))} >= set(names)


def test_the_comparison_sees_what_is_wrong() -> None:
    """Numbers, nan, integers, shapes and what is missing; and not what rounding does."""
    good = {"a": torch.linspace(1, 2, 9), "i": torch.arange(3)}
    assert not differences(good, good, None)
    assert not differences({**good, "a": good["a"] * (1 + 1e-7)}, good, None)
    for name, value in {
        "a": good["a"] * (1 + 1e-5),
        "i": torch.tensor([0, 1, 3]),
    }.items():
        assert set(differences({**good, name: value}, good, None)) == {name}
    spoilt = good["a"].clone()
    spoilt[3] = torch.nan
    assert "nan" in differences({**good, "a": spoilt}, good, None)["a"]
    assert "shape" in differences({**good, "a": good["a"][:4]}, good, None)["a"]
    assert "dtype" in differences({**good, "a": good["a"].double()}, good, None)["a"]
    assert set(differences(good, {**good, "0.grad t0": good["a"]}, None)) == {"0.grad t0"}
    assert not differences({**good, "0.grad t0": torch.zeros(3)}, good, None)
    assert set(differences({"a": good["a"], "b": good["i"]}, good, None)) == {"i", "b"}


def test_the_comparison_allows_what_eager_is_off_itself() -> None:
    exact = {"a": torch.full((4,), 1.0, dtype=torch.float64)}
    eager = {"a": torch.full((4,), 1.001)}
    assert not differences({"a": torch.full((4,), 0.999)}, eager, exact)
    assert differences({"a": torch.full((4,), 0.99)}, eager, exact)
