"""The C++ kernels of chains of inverted residuals against eager."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from torch import nn

from memcompile.codegen.cpp.build import FLAGS, load
from memcompile.codegen.cpp.chain import link_of, runs_of
from memcompile.codegen.inverted_residual.match import inverted_residuals
from memcompile.errors import KernelBuildError, KernelRefusedError
from tests.codegen.cpp.rows import Stem, rows_of, with_whole_numbers
from tests.codegen.inverted_residual.residuals import Block, graph_of, pixels

BOUNDED = nn.ReLU6  # keeps whole numbers small


def exactly(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """In fp64."""
    with torch.no_grad():
        out: torch.Tensor = copy.deepcopy(module).double()(x.double())
        return out


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Of all elements, relative to the largest."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


class Padded(Block):
    """With more zeros on one side than on the other, before the depthwise convolution."""

    def __init__(self, channels: tuple[int, int], mid: int, taps: int, stride: int, pads: tuple[int, int, int, int]) -> None:
        super().__init__(channels, mid, taps, stride, act=BOUNDED, norm=False, residual=False, padding=0)
        self.pads = pads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers[3:](nn.functional.pad(self.layers[:3](x), self.pads))
        return out


@st.composite
def chains(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor, int]:
    """Up to three blocks, now and then behind a stem; images; threads."""
    channels = st.integers(2, 40)
    narrow = draw(st.sampled_from([2, 3, 8, 17]))
    first, layers = narrow, []
    if draw(st.booleans()):
        mid = draw(channels)
        taps, stride = draw(st.sampled_from([(3, 2), (3, 1), (2, 1), (5, 2)]))
        layers += [Stem(narrow, mid, taps, stride), *Block((mid, draw(channels)), mid, 3, act=BOUNDED, norm=False).layers]
        narrow = layers[-2].out_channels
    for _ in range(draw(st.integers(0 if layers else 1, 2))):
        taps, stride, mid = draw(st.integers(1, 5)), draw(st.integers(1, 3 - bool(layers))), draw(channels)
        result = narrow if draw(st.booleans()) else draw(channels)
        if taps > 1 and draw(st.booleans()):
            pads: Any = tuple(draw(st.integers(0, taps - 1)) for _ in range(4))
            layers.append(Padded((narrow, result), mid + (mid == narrow), taps, stride, pads))
        else:
            dilation = draw(st.integers(1, 2))
            block = Block(
                (narrow, result), mid, taps, stride, act=BOUNDED, norm=False, residual=taps % 2 == 1, dilation=dilation
            )
            layers.append(block)
        narrow = result
    size = draw(st.integers(12, 24)), draw(st.integers(12, 33))
    torch.manual_seed(0)
    module = nn.Sequential(*layers).eval()
    return module, with_whole_numbers(module, draw(st.integers(1, 3)), first, *size), draw(st.integers(1, 5))


@given(chains())
@settings(max_examples=12)
def test_whole_numbers_are_exact(case: tuple[nn.Module, torch.Tensor, int]) -> None:
    module, x, threads = case
    try:
        exact = exactly(module, x)
    except RuntimeError:  # taps reach further than what strides leave of the image
        reject()
    assume(exact[0, 0].numel() > 1)  # images of one pixel are none to the matcher
    assert torch.equal(rows_of(module, x).run(threads).double(), exact)


@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
def test_norms_and_activations(decomposed: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 20, 3, 2, 1, bias=False),
        nn.BatchNorm2d(20),
        nn.Hardswish(),
        Block((20, 18), 20, act=nn.SiLU),
        Block((18, 18), 30, 5, act=nn.Hardswish),
        Block((18, 24), 50, stride=2, act=nn.LeakyReLU),
        Block((24, 24), 33, norm=False, act=lambda: nn.Hardtanh(-2.0, 3.0)),
        Block((24, 24), 40, act=nn.Sigmoid),
        Block((24, 24), 40, act=nn.ReLU),
    ).eval()
    x = torch.randn(2, 3, 31, 26)
    rows = rows_of(module, x, decomposed)
    assert len(rows.kernel.chain.blocks) == 6
    assert error(rows.run(), exactly(module, x)) < 1e-6


def test_threads_give_the_same_and_may_be_more_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(Block((8, 8), 20), Block((8, 8), 24, 5)).eval()
    x = pixels(2, 8, 3, 9)
    rows = rows_of(module, x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 9)
    alone, many = rows.run(1), rows.run(9)
    assert torch.equal(alone, many)
    assert error(alone, exactly(module, x)) < 1e-6
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert torch.equal(rows.run(2), alone)


def test_what_is_no_number_goes_as_far_as_in_eager() -> None:
    module, x = Block((16, 16), 32, 3, act=nn.ReLU), pixels(1, 16, 9, 9)
    x[0, 3, 2, 6] = torch.nan
    x[0, 5, 7, 1] = torch.inf
    with torch.no_grad():
        expected = module(x)
    assert torch.equal(rows_of(module, x).run().isnan(), expected.isnan())
    assert 0 < expected.isnan().sum() < expected.numel()


def test_kernels_of_equal_blocks_are_equal() -> None:
    first, other = (rows_of(Block((8, 12), 20), pixels(1, 8, 6, 6)).kernel for _ in range(2))
    assert first.source == other.source
    assert first.source != rows_of(Block((8, 12), 20), pixels(1, 8, 6, 7)).kernel.source


def test_rows_are_what_is_kept() -> None:
    """Of the wide tensor a row for each tap; of the image a row for the input, and those a residual waits for."""
    chain = rows_of(nn.Sequential(Block((8, 8), 20), Block((8, 8), 24, 5)), pixels(1, 8, 40, 30)).kernel.chain
    expanded = [chain.expanded(index) for index in range(2)]
    assert [image and image.rows for image in expanded] == [3, 5]
    assert chain.input_of(1).rows == 3
    assert not chain.copies_input
    wide = chain.expanded(1)
    assert wide is not None
    assert (wide.pixels, wide.step) == (2 + 30 + 2, 32)


def test_a_projection_does_not_expand_the_next_block() -> None:
    module = nn.Sequential(Block((8, 12), 20, norm=False), Block((12, 12), 12, norm=False)).eval()
    x = with_whole_numbers(module, 1, 8, 9, 7)
    rows = rows_of(module, x)
    assert [block.expand is None for block in rows.kernel.chain.blocks] == [False, True]
    assert torch.equal(rows.run().double(), exactly(module, x))


def test_a_chain_ends_where_others_read_its_image() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block((8, 8), 20) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.blocks[0](x)
            out: torch.Tensor = self.blocks[2](self.blocks[1](first)) + first.mean((2, 3), keepdim=True)
            return out

    graph, _ = graph_of(Branches(), pixels(1, 8, 6, 6))
    assert [len(run) for run in runs_of(inverted_residuals(graph).blocks)] == [1, 2]


@pytest.mark.parametrize(
    ("module", "x", "why"),
    [
        (Block((8, 12), 20).to(torch.bfloat16), pixels(1, 8, 6, 6, torch.bfloat16), "C++ kernels are for float32"),
        (Block((8, 12), 20, act=nn.GELU), pixels(1, 8, 6, 6), "aten.gelu.default has no C++ formula"),
    ],
    ids=["bfloat16", "gelu"],
)
def test_what_has_no_kernel_says_why(module: nn.Module, x: torch.Tensor, why: str) -> None:
    graph, _ = graph_of(module, x)
    (block,) = inverted_residuals(graph, dense=True).blocks
    with pytest.raises(KernelRefusedError, match="no fused kernel for") as refused:
        link_of(block)
    assert why in refused.value.reason


def test_dense_convolutions_expand_only_where_asked_for() -> None:
    module = nn.Sequential(Stem(3, 16), *Block((16, 8), 16).layers).eval()
    graph, _ = graph_of(module, torch.randn(1, 3, 12, 12))
    assert inverted_residuals(graph).blocks[0].expand is None
    expand = inverted_residuals(graph, dense=True).blocks[0].expand
    assert expand is not None and expand.kernel == (3, 3)


def test_what_does_not_compile_says_so(own_cache: Path) -> None:
    with pytest.raises(KernelBuildError, match=r"no C\+\+ kernel can be built with .*nonsense"):
        load("nonsense")
    assert not list(own_cache.rglob("*.so"))


@pytest.mark.usefixtures("own_cache")
def test_a_kernel_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = 'extern "C" int run() { return 7; }'
    assert load(source).run() == 7
    monkeypatch.setattr("memcompile.codegen.cpp.build._compile", None)
    assert load(source).run() == 7
    monkeypatch.setattr("memcompile.codegen.cpp.build.FLAGS", FLAGS[:-1])
    with pytest.raises(TypeError):  # other flags are another kernel
        load(source)
