"""The repro script of a graph: it runs on its own and plans the same graph."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memcompile.compiling.repro import repro_script
from memcompile.options import Options

ROOT = Path(__file__).resolve().parents[2]


class Tagger(nn.Module):
    """An index input, a parameter, a strided input, a checkpointed region and a captured submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 4)

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        x = self.embedding(tokens) * scale
        x = checkpoint(lambda y: self.layer(y).tanh(), x, use_reentrant=False)
        total: Tensor = x.square().sum()
        return total


def captured(model: nn.Module, *args: Tensor) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """The graph that Dynamo hands to a backend, with its inputs."""
    found = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        found.append((gm, inputs))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend)(*args)
    torch._dynamo.reset()
    assert len(found) == 1
    return found[0]


@pytest.mark.slow
def test_the_script_runs_and_reports_the_same_graph(tmp_path: Path) -> None:
    gm, inputs = captured(Tagger(), torch.tensor([[1, 2, 3]]), torch.ones(4, 3).t())
    text = repro_script(gm, inputs, Options.from_mapping({"memory_budget": "1GiB"}))
    assert "'memory_budget': 1073741824" in text
    assert "tensor((3, 4), (1, 3), " in text, "strides are kept"
    assert "parameter=True" in text
    script = tmp_path / "repro.py"
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=_environment(), timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "memcompile  graph 0  train  cpu  budget 1.00 GiB   fits" in done.stdout


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_numbers_among_the_inputs() -> None:
    gm, inputs = captured(nn.Linear(2, 2), torch.ones(3, 2))
    text = repro_script(gm, [*inputs, 5], Options())
    assert "        5,\n" in text
    assert "options={})" in text
    compile(text, "repro.py", "exec")
