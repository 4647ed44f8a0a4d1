"""A graph that is planned again for another step keeps alive what the code of each plan finds by name."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx

from memcompile.compiling.compiled_graph import CompiledGraph
from memcompile.runtime.arena import BLOCKS, Arena
from memcompile.runtime.ledger import LEDGER
from memcompile.streaming.program import PROGRAMS, LostProgramError

CPU = torch.device("cpu")


class Named:
    """Stands for a program or a storage that moves."""

    def __init__(self, key: str) -> None:
        self.key = key


class Planned:
    """A session that is done: the code of each one looks for what that session made, as lowered code does at run time."""

    made = 0

    def __init__(self, _gm: object, _args: object, _options: object, _device: object, **_kwargs: object) -> None:
        number = Planned.made = Planned.made + 1
        self.options = self.device = self.graphs = None
        self.room = SimpleNamespace()
        self.inputs: list[Any] = []
        self.tensors = [PARAMETER]
        self.placing = SimpleNamespace(arena=Arena(CPU))
        self.arena_key = BLOCKS.add(self.placing.arena)
        self.keys = [f"{kind} {number}" for kind in ("streamed", "inverted", "tiled")]
        streamed, inverted, tiled = (SimpleNamespace(program=PROGRAMS.add(Named(key))) for key in self.keys)
        self.low_rank, self.inverted = SimpleNamespace(streamed=[streamed]), SimpleNamespace(blocks=[inverted])
        self.tiled = SimpleNamespace(patched=[tiled])
        chosen = SimpleNamespace(joint=SimpleNamespace(moved=(Named("moved"),)))
        self.outcome = SimpleNamespace(budget_bytes=1, chosen=chosen)

    def compile(self) -> CompiledGraph:
        keys, arena_key = self.keys, self.arena_key

        def lowered(*_args: object) -> list[str]:
            assert arena_key in BLOCKS.arenas
            return [PROGRAMS[key].key for key in keys]

        entry = SimpleNamespace(report=SimpleNamespace(kind="inference", graph_id="0"))
        return CompiledGraph(lowered, entry, self, fx.symbolic_trace(torch.nn.ReLU()))


PARAMETER = torch.nn.Parameter(torch.ones(2))


@pytest.fixture(autouse=True)
def no_books(monkeypatch):
    """The stand-ins have no report that the ledger could count."""
    monkeypatch.setattr(LEDGER, "ran", lambda *_: None)


def test_every_variant_keeps_what_its_code_finds_by_name():
    """Gradients come and go between evaluations, so that an inference graph has a plan with and one without them."""
    graph = Planned(None, (), None, None).compile()
    PARAMETER.grad = None
    first = graph()
    PARAMETER.grad = torch.ones(2)
    second = graph()
    assert first != second
    for gradient, expected in ((None, first), (torch.ones(2), second)) * 2:
        gc.collect()
        PARAMETER.grad = gradient
        assert graph() == expected
    assert Planned.made >= 2


def test_what_a_graph_kept_goes_with_it():
    graph = Planned(None, (), None, None).compile()
    PARAMETER.grad = None
    graph()
    PARAMETER.grad = torch.ones(2)
    (*_, key) = graph()
    del graph
    gc.collect()
    PARAMETER.grad = None
    with pytest.raises(LostProgramError):
        PROGRAMS[key]
