"""Streaming without Inductor: graphs as the passes see them, bodies that run eagerly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from memcompile.codegen.fused import fuse
from memcompile.passes.rows import low_rank
from memcompile.streaming.program import RowBlock


def eagerly(graph: fx.GraphModule) -> RowBlock:
    """A body that runs as it is written."""
    return RowBlock(lambda _workspace: lambda tensors: graph(*tensors), 0, 0)


TOOLS = low_rank.RowTools(eagerly, fuse)


@contextlib.contextmanager
def blocks_of(size_bytes: int) -> Iterator[None]:
    """Small graphs have small blocks."""
    with mock.patch.dict(low_rank.BLOCK_BYTES, cpu=size_bytes):
        yield


def traced(function: Callable[..., object], *inputs: torch.Tensor) -> fx.GraphModule:
    """The graph of a function with the decompositions of Inductor, on fake tensors."""
    from torch._inductor.decomposition import select_decomp_table

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fakes = [mode.from_tensor(tensor) for tensor in inputs]
    with torch.no_grad():
        graph = make_fx(lambda *tensors: _tuple(function(*tensors)), decomposition_table=select_decomp_table())(*fakes)
    graph.graph.eliminate_dead_code()
    return graph


def _tuple(outputs: object) -> tuple[object, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)
