"""A graph that is planned again for another step keeps alive what the code of each plan finds by name."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from memcompile.compiling.compiled_graph import CompiledGraph
from memcompile.options import Options
from memcompile.runtime.arena import BLOCKS, GraphArena
from memcompile.runtime.ledger import LEDGER
from memcompile.streaming.program import PROGRAMS, LostProgramError

CPU = torch.device("cpu")


class Named:
    """Stands for a program or a storage that moves."""

    def __init__(self, key: str) -> None:
        self.key = key


def compiled() -> CompiledGraph:
    """A graph whose code looks for what its compilation made, as lowered code does at run time."""
    MADE[0] += 1
    arena = GraphArena(CPU)
    arena_key = BLOCKS.add(arena)
    books: Any = PROGRAMS
    programs = [books.add(Named(f"{kind} {MADE[0]}")) for kind in ("streamed", "tiled")]
    keys = [program.key for program in programs]

    def lowered(*_args: object) -> list[str]:
        assert arena_key in BLOCKS.arenas
        return [PROGRAMS[key].key for key in keys]

    report = SimpleNamespace(kind="inference", graph_id="0")
    entry: Any = SimpleNamespace(report=report, share=None, places=(), sized=None)
    return CompiledGraph(lowered, entry, [arena, *programs], [PARAMETER], True, Options(), lambda *_: compiled())


MADE = [0]
PARAMETER = torch.nn.Parameter(torch.ones(2))


@pytest.fixture(autouse=True)
def no_books(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins have no report that the ledger could count."""
    monkeypatch.setattr(LEDGER, "ran", lambda *_: None)


def test_every_variant_keeps_what_its_code_finds_by_name() -> None:
    """Gradients come and go between evaluations, so that an inference graph has a plan with and one without them."""
    graph = compiled()
    PARAMETER.grad = None
    first = graph()
    PARAMETER.grad = torch.ones(2)
    second = graph()
    assert first != second
    for gradient, expected in ((None, first), (torch.ones(2), second)) * 2:
        gc.collect()
        PARAMETER.grad = gradient
        assert graph() == expected
    assert MADE[0] >= 2


def test_what_a_graph_kept_goes_with_it() -> None:
    graph = compiled()
    PARAMETER.grad = None
    graph()
    PARAMETER.grad = torch.ones(2)
    (*_, key) = graph()
    del graph
    gc.collect()
    PARAMETER.grad = None
    with pytest.raises(LostProgramError):
        PROGRAMS[key]
