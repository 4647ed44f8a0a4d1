"""Source lines are the user's: never PyTorch's or ours, whatever the model is made of and however it is captured."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import memcompile
from memcompile.codegen.dump import kernels_of
from memcompile.compiling.dryrun import captured
from memcompile.errors import BudgetInfeasibleError
from memcompile.step.fxutil import source_of


class Mixed(nn.Module):
    """Functions of PyTorch's that are made of others, and its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
        self.tail = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GELU())
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.tail(self.conv(x)), scale_factor=2, mode="bilinear")
        x = x.flatten(2).transpose(1, 2)
        out: Tensor = self.attention(x, x, x)[0]
        return out


PLAIN = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 3, 1)))


def _sources(module: nn.Module, x: Tensor, how: str) -> set[str]:
    """Of the nodes of a graph that know where they come from."""
    if how == "dry":
        with torch.no_grad():
            graph = captured(module.eval(), {}, args=(x,), training=False)[0].forward.graph
    else:
        found: list[fx.Graph] = []

        def backend(gm: fx.GraphModule, _inputs: object) -> object:
            found.append(gm.graph)
            return gm.forward

        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(module.eval(), backend=backend)(x)
        graph = found[0]
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    return {source_of(node) for node in nodes if node.meta.get("stack_trace") or node.meta.get("nn_module_stack")}


@pytest.mark.parametrize("how", ["dry", "compiled"])
def test_lines_are_the_users(how: str) -> None:
    sources = _sources(Mixed(), torch.randn(1, 3, 8, 8), how)
    assert sources and all(re.fullmatch(r"test_frames\.py:\d+", source) for source in sources), sources


@pytest.mark.parametrize("how", ["dry", "compiled"])
def test_modules_stand_in_where_no_line_is_the_users(how: str) -> None:
    assert _sources(PLAIN, torch.randn(1, 3, 8, 8), how) == {"0 (Conv2d)", "1.0 (ReLU)", "1.1 (Conv2d)"}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_a_budget_that_is_too_small(batch: int, training: bool) -> None:
    """No batch of 1 is to be smaller, and no line is ours."""
    model = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 8)).train(False)
    with torch.set_grad_enabled(training), pytest.raises(BudgetInfeasibleError) as caught:
        memcompile.plan(model, torch.randn(batch, 8), options={"memory_budget": 16, "lower": False})
    assert ("batch" in caught.value.next_lever) == (batch > 1)
    assert ".py:" not in str(caught.value)


def test_lines_of_kernels_are_the_users() -> None:
    lines = [
        f"# Source Nodes: [x], File: {torch.nn.functional.__file__}:5823 in pad",
        "# File: /home/me/model.py:12 in forward",
    ]
    text = "\n".join([*lines, "cpp_fused_add_0 = async_compile.cpp_pybinding(['const float*'], r'''", "int x;", "''')"])
    (kernel,) = kernels_of(text)
    assert kernel.source_lines == ("model.py:12",)
