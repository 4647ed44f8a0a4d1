"""Runs a stage of a module tile by tile without any compiler: the bodies are interpreted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._inductor.lowering  # max pooling is a primitive of Inductor's
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

from memcompile.passes.tiles.apply import Patched, apply
from memcompile.passes.tiles.interpreted import interpret
from memcompile.passes.tiles.network import Network, network_of
from memcompile.passes.tiles.wrapping import gather_copies
from memcompile.solvers.tiling.problem import Stage, TilingSolution


@dataclass
class Ran:
    """What came out, and what ran."""

    results: tuple[Tensor, ...] = ()
    network: Network | None = None
    patched: list[Patched] = field(default_factory=list)
    module: fx.GraphModule | None = None


def network(module: nn.Module, *inputs: Tensor) -> Network:
    """The network of a module's inference graph."""
    found: list[Network | None] = []

    def compiler(gm: fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        found.append(network_of(gm.graph))
        return gm.forward

    compiled(module, compiler)(*inputs)
    assert found[0] is not None
    return found[0]


def run(module: nn.Module, choose: Callable[[Network], tuple[Stage, ...]], *inputs: Tensor) -> Ran:
    """Run ``module`` with the stages that ``choose`` picks."""
    ran = Ran()

    def compiler(gm: fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        gather_copies(gm.graph)
        ran.module, ran.network = gm, network_of(gm.graph)
        if ran.network is None:
            return gm.forward
        ran.patched = apply(gm, ran.network, TilingSolution(choose(ran.network), 0, 0, 0, 0), interpret)
        for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
            node.target = torch.ops.aten.reshape.default  # as Inductor makes copies of what lies otherwise now
        gm.recompile()
        return gm.forward

    results = compiled(module, compiler)(*inputs)
    ran.results = (results,) if isinstance(results, Tensor) else tuple(results)
    return ran


def compiled(module: nn.Module, compiler: Callable[..., Any]) -> Callable[..., Any]:
    """``module`` in inference, its graph as ``compiler`` makes it."""
    backend = aot_autograd(fw_compiler=compiler, inference_compiler=compiler, decompositions=select_decomp_table())
    torch._dynamo.reset()
    function = torch.compile(module, backend=backend)

    def call(*inputs: Tensor) -> Any:
        with torch.no_grad():
            return function(*inputs)

    return call
