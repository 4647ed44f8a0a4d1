"""Fused inverted residuals in the interpreter: results equal fp64 within the rounding of the graph's dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from memcompile.codegen.inverted_residual.kernel import InvertedKernel, generate_inverted
from memcompile.codegen.inverted_residual.program import inverted_program, inverted_residual
from memcompile.codegen.triton.tune import Tuner
from tests.codegen.inverted_residual.residuals import Block, BlockCase, case_of, pixels
from tests.codegen.triton.test_rows_kernel import TOLERANCE


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def error_of(kernel: InvertedKernel, case: BlockCase) -> float:
    """The largest error, relative to the largest result."""
    (result,) = kernel.load()(*case.operands)
    assert result.shape == case.exact.shape and result.dtype == case.operands[0].dtype
    return float((result - case.exact).abs().max() / case.exact.abs().max())


def check(module: nn.Module, x: torch.Tensor, decomposed: bool = False) -> None:
    case = case_of(module, x, decomposed)
    error = error_of(inverted_residual(case.block), case)
    assert error < TOLERANCE[x.dtype], f"relative error {error:.2e}"


@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(interpreted: None, dtype: torch.dtype, decomposed: bool) -> None:
    check(Block((24, 24), 144), pixels(1, 24, 6, 7, dtype), decomposed)


@pytest.mark.parametrize("norm", [False, True], ids=["bias", "norm"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("taps", [3, 5, 7])
def test_taps_and_strides(interpreted: None, taps: int, stride: int, norm: bool) -> None:
    check(Block((8, 8), 40, taps, stride, norm=norm), pixels(1, 8, 9, 5))


@pytest.mark.parametrize(("taps", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 1, 1), (3, 1, 2)])
@pytest.mark.parametrize("lines", [1, 2, 3])
def test_pixels_below_each_other_share_what_they_expand(
    interpreted: None, lines: int, taps: int, stride: int, dilation: int
) -> None:
    case = case_of(Block((8, 8), 16, taps, stride, dilation=dilation), pixels(2, 8, 7, 5))
    assert error_of(generate_inverted(case.block, name="block", lines=lines), case) < TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    ("channels", "mid"), [((24, 32), 144), ((3, 17), 20), ((17, 3), 51), ((40, 40), 33), ((16, 16), 16), ((160, 24), 64)]
)
def test_numbers_of_channels(interpreted: None, channels: tuple[int, int], mid: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(Block(channels, mid), pixels(1, channels[0], 4, 5, dtype))


@pytest.mark.parametrize(
    "act", [nn.ReLU, nn.SiLU, nn.Hardswish, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Identity, lambda: nn.LeakyReLU(0.1)]
)
def test_activations(interpreted: None, act: Callable[[], nn.Module]) -> None:
    for decomposed in (False, True):
        check(Block((8, 8), 24, act=act), pixels(1, 8, 5, 4, torch.float16), decomposed)


@pytest.mark.parametrize("residual", [False, True])
def test_the_input_is_added_where_the_graph_does(interpreted: None, residual: bool) -> None:
    case = case_of(Block((16, 16), 32, residual=residual), pixels(2, 16, 4, 4))
    assert case.block.adds_input == residual
    assert error_of(inverted_residual(case.block), case) < TOLERANCE[torch.float32]


@pytest.mark.parametrize(("size", "padding", "dilation"), [((1, 1), 1, 1), ((2, 9), 0, 1), ((7, 7), 3, 1), ((8, 6), 2, 2)])
def test_sizes_and_paddings(interpreted: None, size: tuple[int, int], padding: int, dilation: int) -> None:
    taps = 1 if padding == 0 else 3
    check(Block((8, 12), 24, taps, padding=padding, dilation=dilation), pixels(2, 8, *size))


@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (1, 1, 1, 1), (2, 0, 0, 3), (0, 0, 0, 0)])
def test_images_that_are_padded_by_themselves(interpreted: None, pads: tuple[int, int, int, int]) -> None:
    """As networks from TensorFlow do where the stride is 2."""
    module = Block((8, 8), 24, stride=2, padding=0)
    module.layers.insert(3, nn.ZeroPad2d(pads))
    case = case_of(module, pixels(1, 8, 8, 7))
    assert case.block.expand is not None and case.block.depthwise.padding == (pads[2], pads[0])
    assert error_of(inverted_residual(case.block), case) < TOLERANCE[torch.float32]


def test_numbers_of_images_that_the_kernel_was_not_generated_for(interpreted: None) -> None:
    module = Block((8, 8), 24)
    launch = inverted_residual(case_of(module, pixels(1, 8, 6, 6)).block).load()
    case = case_of(module, pixels(3, 8, 6, 6))
    assert torch.allclose(launch(*case.operands)[0].double(), case.exact, atol=1e-5)
    assert launch(case.operands[0][:0], *case.operands[1:])[0].shape == (0, 8, 6, 6)


def test_pixels_outside_of_the_image_are_zeroed_after_the_activation(interpreted: None) -> None:
    """Where ``act(bias)`` is not zero, a mask before the activation, such as that of the load, makes other borders."""
    module = Block((8, 8), 32, act=nn.ReLU6, norm=False, residual=False)
    first: Any = module.layers[0]
    nn.init.constant_(first.bias, 3.0)
    case = case_of(module, pixels(1, 8, 6, 6))
    kernel = inverted_residual(case.block)
    assert error_of(kernel, case) < TOLERANCE[torch.float32]
    mask = "tl.where(inside[:, None], hardtanh, 0.0)"
    assert kernel.source.count(mask) == 4
    without = replace(kernel, tail=kernel.tail.replace(mask, "hardtanh + 0.0"))
    (result,) = without.load()(*case.operands)
    wrong = (result - case.exact).abs().amax((0, 1)) > 1e-3
    assert wrong.sum() == 20 and not wrong[1:-1, 1:-1].any()


@pytest.mark.parametrize("lines", [1, 4])
def test_not_a_number_reaches_no_other_pixels(interpreted: None, lines: int) -> None:
    case = case_of(Block((8, 8), 32, residual=False), pixels(1, 8, 9, 9))
    case.operands[0][0, :, 4, 4] = float("nan")
    (result,) = generate_inverted(case.block, name="block", lines=lines).load()(*case.operands)
    where = result.isnan().any(1)[0]
    assert where[3:6, 3:6].all() and where.sum() == 9


def test_results_are_written_into_given_tensors(interpreted: None) -> None:
    case = case_of(Block((8, 8), 24), pixels(2, 8, 5, 5))
    out = torch.full((2, 8, 5, 5), float("nan")).to(memory_format=torch.channels_last)
    inverted_residual(case.block).load()(*case.operands, out=(out,))
    assert torch.allclose(out.double(), case.exact, atol=1e-5)


def test_images_with_their_channels_first_are_refused(interpreted: None) -> None:
    case = case_of(Block((8, 8), 24), pixels(2, 8, 5, 5))
    launch = inverted_residual(case.block).load()
    with pytest.raises(ValueError, match="x has to be"):
        launch(case.operands[0].contiguous(), *case.operands[1:])
    with pytest.raises(ValueError, match="out"):
        launch(*case.operands, out=(torch.empty(2, 8, 5, 5),))


def test_the_program_of_a_block(interpreted: None) -> None:
    case = case_of(Block((8, 12), 24, stride=2), pixels(2, 8, 7, 6))
    kernel = inverted_residual(case.block)
    program = inverted_program(case.block, kernel)
    (result,) = torch.ops.memcompile.stream_rows(program.key, list(case.operands))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(result.double(), case.exact, atol=1e-5)
    dry = inverted_program(case.block, kernel, run=False)
    assert dry.fused is not None and dry.fused.launch is None and dry.key != program.key


def test_the_tuner_takes_the_fastest(interpreted: None) -> None:
    case = case_of(Block((8, 8), 24), pixels(1, 8, 4, 4))
    kernel = inverted_residual(case.block)
    timed: list[Callable[[], object]] = []

    def clock(call: Callable[[], object]) -> float:
        call()
        timed.append(call)
        return abs(len(timed) - 2.0)

    from memcompile.codegen.triton.configs import TARGETS

    tuner = Tuner(clock, lambda _: TARGETS["cuda:90"])
    (result,) = kernel.load(tuner)(*case.operands)
    assert torch.allclose(result.double(), case.exact, atol=1e-5)
    assert list(tuner.found.values()) == [kernel.candidates(TARGETS["cuda:90"], 1)[1]]
