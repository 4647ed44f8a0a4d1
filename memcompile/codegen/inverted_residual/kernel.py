"""``generate_inverted``: from an inverted residual to a kernel's source, and to a function that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from memcompile.codegen.inverted_residual.block import InvertedResidual
from memcompile.codegen.inverted_residual.configs import inverted_candidates, inverted_smallest, lines_together
from memcompile.codegen.inverted_residual.cost import InvertedCost, inverted_cost
from memcompile.codegen.inverted_residual.flatten import flatten
from memcompile.codegen.inverted_residual.naming import computed, named
from memcompile.codegen.inverted_residual.writer import METHOD, write_inverted_kernel
from memcompile.codegen.kernel.pointwise import dtype_of, shape_of
from memcompile.codegen.kernel.source import INDENT, Source
from memcompile.codegen.triton.configs import TARGETS, Config, GpuTarget
from memcompile.codegen.triton.kernel import GeneratedKernel
from memcompile.codegen.triton.layout import Function
from memcompile.codegen.triton.module import (
    Launch,
    Signature,
    TensorLaunch,
    header,
    input_line,
    launcher,
    line_of,
    parameter_name,
)
from memcompile.errors import KernelRefusedError
from memcompile.machine.device import DeviceModel


@dataclass(frozen=True, slots=True)
class InvertedKernel(GeneratedKernel):
    """The kernel of an inverted residual, for any number of images. Its operands and results are [N, C, H, W] with their
    channels last in memory."""

    block: InvertedResidual
    lines: int

    def candidates(self, target: GpuTarget, count: int | None = None) -> list[Config]:
        return inverted_candidates(self.block, self.lines, target, count)

    def count_of(self, operands: Sequence[torch.Tensor]) -> int:
        return operands[0].shape[0]

    def cost(self, device: DeviceModel, processors: int = 132) -> InvertedCost:
        """Seconds of the kernel and of kernels of their own, estimated. ``processors``: of the GPU."""
        return inverted_cost(self.block, self.lines, device, self.config, processors)

    def too_large(self, target: str, tried: str) -> KernelRefusedError:
        return KernelRefusedError(self.block.depthwise.node.name, f"{self.block} do not fit on {target}: {tried}")


def generate_inverted(block: InvertedResidual, *, name: str, lines: int | None = None) -> InvertedKernel:
    """Generate the kernel of a block. ``launch`` takes ``block.operands``. Raises `KernelRefusedError`.

    ``lines``: how many pixels of the result below each other share what they expand; None: as many as seems best.
    """
    if not name.isidentifier():
        raise ValueError(f"the name of a kernel has to be an identifier, not {name!r}")
    own, source = named(block), Source()
    lines = lines_together(block) if lines is None else lines
    function = write_inverted_kernel(own, flatten(own), lines, source, f"{name}_kernel")
    tail = source.text() + launcher(_signature(own), [_launch(own, lines, function)])
    return InvertedKernel(name, (function,), _first_config(block, lines), header(name, _body(own), METHOD), tail, block, lines)


def _signature(block: InvertedResidual) -> Signature:
    operands = [_images(block.input, parameter_name(block.input))]
    for node in block.parameters:
        operands.append(TensorLaunch(parameter_name(node), shape_of(node), tuple(node.meta["val"].stride()), dtype_of(node)))
    return Signature(tuple(operands), (_images(block.result, "out[0]"),), (0,), operands[0].name, "n_images")


def _images(node: fx.Node, name: str) -> TensorLaunch:
    _, channels, height, width = shape_of(node)
    strides = (channels * height * width, 1, channels * width, channels)
    return TensorLaunch(name, (None, channels, height, width), strides, dtype_of(node))


def _launch(block: InvertedResidual, lines: int, function: Function) -> Launch:
    names = {f"{node.name}_ptr": parameter_name(node) for node in block.operands} | {"out_ptr": "out[0]"}
    height, width = block.result_size
    pixels = f"n_images * {-(-height // lines) * width}"
    arguments = (*(names[pointer.name] for pointer in function.pointers), pixels)
    return Launch(function.name, f'(triton.cdiv({pixels}, config["BM"]),)', arguments, function.constants)


def _body(block: InvertedResidual) -> list[str]:
    """The block's nodes as text."""
    lines = [input_line(block.input, ("N", *shape_of(block.input)[1:]))]
    lines += [input_line(node, shape_of(node)) for node in block.parameters]
    return [*lines, *map(line_of, computed(block)), f"{INDENT}return {block.result.name}"]


def _first_config(block: InvertedResidual, lines: int) -> Config:
    """What is most promising on every target; the smallest config where none fits one of them by estimate."""
    fitting = [inverted_candidates(block, lines, target) for target in TARGETS.values()]
    common = [config for config in fitting[0] if all(config in others for others in fitting)]
    return common[0] if common else inverted_smallest(block)
