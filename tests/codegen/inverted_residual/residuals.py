"""Inverted residuals as modules, and as the graphs that the backend gets, with their operands and what they compute in fp64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from memcompile.codegen.inverted_residual.block import InvertedResidual
from memcompile.codegen.inverted_residual.match import inverted_residuals

MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride of the first block."""


class Block(nn.Module):
    """Expand (not where ``mid == channels[0]``), depthwise, project; with batch normalization instead of biases where ``norm``."""

    def __init__(
        self,
        channels: tuple[int, int],
        mid: int,
        taps: int = 3,
        stride: int = 1,
        *,
        act: Callable[[], nn.Module] = nn.ReLU6,
        norm: bool = True,
        residual: bool = True,
        padding: int | None = None,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        narrow, result = channels
        expand = nn.Conv2d(narrow, mid, 1, bias=not norm)
        padding = dilation * (taps // 2) if padding is None else padding
        depthwise = nn.Conv2d(mid, mid, taps, stride, padding, dilation, groups=mid, bias=not norm)
        project = nn.Conv2d(mid, result, 1, bias=not norm)
        norms = [nn.BatchNorm2d(c) if norm else nn.Identity() for c in (mid, mid, result)]
        first = [] if narrow == mid else [expand, norms[0], act()]
        self.layers = nn.Sequential(*first, depthwise, norms[1], act(), project, norms[2])
        self.residual = residual and narrow == result and stride == 1
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.layers(x) if self.residual else self.layers(x)
        return out


@dataclass(frozen=True)
class BlockCase:
    """A block found in a graph: ``operands`` are its tensors, ``exact`` its result in fp64."""

    block: InvertedResidual
    operands: tuple[torch.Tensor, ...]
    exact: torch.Tensor


def graph_of(module: nn.Module, x: torch.Tensor, decomposed: bool = False) -> tuple[fx.Graph, dict[fx.Node, torch.Tensor]]:
    """The inference graph of a module, and the tensors of its placeholders."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    names = [name for name in state if "tracked" not in name]

    def step(x: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor]:
        return (functional_call(module, dict(zip(names, values, strict=True)), (x,)),)

    mode = FakeTensorMode()
    values = [x, *(state[name].detach() for name in names)]
    with mode, torch.no_grad():
        fakes = [mode.from_tensor(value) for value in values]
        body = make_fx(step, decomposition_table=select_decomp_table() if decomposed else None)(*fakes)
    body.graph.eliminate_dead_code()
    placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
    return body.graph, dict(zip(placeholders, values, strict=True))


def pixels(images: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random images with their channels last."""
    return torch.randn(images, channels, height, width).to(dtype).to(memory_format=torch.channels_last)


def case_of(module: nn.Module, x: torch.Tensor, decomposed: bool = False) -> BlockCase:
    """The one block of a module."""
    module = module.to(x.dtype)
    graph, tensors = graph_of(module, x, decomposed)
    found = inverted_residuals(graph)
    assert not found.refused, found.refused
    (block,) = found.blocks
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())
    return BlockCase(block, tuple(tensors[node] for node in block.operands), exact)


def mobilenet_v2(size: int = 224, images: int = 1, dtype: torch.dtype = torch.float16) -> list[tuple[Block, torch.Size]]:
    """The 17 blocks of MobileNetV2, each with the shape of its input."""
    narrow, size, found = 32, size // 2, []
    for expansion, channels, count, first_stride in MOBILENET_V2:
        for i in range(count):
            stride = first_stride if i == 0 else 1
            block = Block((narrow, channels), narrow * expansion, stride=stride).to(dtype)
            found.append((block, torch.Size((images, narrow, size, size))))
            narrow, size = channels, size // stride
    return found
