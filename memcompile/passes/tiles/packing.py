"""Convolutions on the CPU with weights in oneDNN's blocked layout, and what they take beside their result.

oneDNN copies a plain weight into that layout at every call; large ones by a slow path, into memory of up to twice their size.
Small weights are packed once for all tiles; of large ones each tile packs some output channels at a time, which lie in the
caches until the convolution of those channels has read them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from memcompile.codegen.inductor.scratch import scratch_bytes
from memcompile.passes.tiles.activations import Fused

aten, mkldnn = torch.ops.aten, torch.ops.mkldnn
SHARE = 0.25
"""A weight is packed once for all tiles when it has at most that share of the elements of the image that it makes."""
CHUNK_BYTES = 2 << 20
"""Of a larger weight, as much as is packed at a time: second-level caches hold about that."""
FEWEST = 32
"""Output channels of one such part."""


def packed(weight: Tensor, padding: list[int], stride: list[int], dilation: list[int], groups: int, size: list[int]) -> Tensor:
    """A weight in blocked layout, for all tiles. ``size``: of the image that it is for. Without it oneDNN may choose a layout
    that it changes again at every call."""
    if isinstance(weight, FakeTensor):
        return torch.empty_like(weight)
    made: Tensor = mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, size)
    return made


def repacked(
    weight: Tensor, padding: list[int], stride: list[int], dilation: list[int], groups: int, size: list[int]
) -> Tensor:
    """The same, made by each tile for itself."""
    return packed(weight, padding, stride, dilation, groups, size)


def is_large(node: fx.Node, weight: fx.Node) -> bool:
    """Whether the weight of a convolution is too large to stay, or to be multiplied by numbers beforehand."""
    return bool(weight.meta["val"].numel() > SHARE * node.meta["val"].numel())


def convolved(node: fx.Node, source: fx.Node, weight: fx.Node, bias: Any, kind: Fused, call: Any) -> fx.Node:
    """The convolution of ``node`` with an activation inside, its weight packed; ``call`` adds a node with its value."""
    _, _, _, stride, padding, dilation, _, _, groups = node.args
    activation = (kind.name, list(kind.scalars), kind.algorithm)

    def run(weight: fx.Node, bias: Any) -> fx.Node:
        arguments = (source, weight, bias, padding, stride, dilation, groups)
        return call(mkldnn._convolution_pointwise.default, (*arguments, *activation), {}, node)  # type: ignore[no-any-return]

    def pack(target: Any, weight: fx.Node) -> fx.Node:
        size = list(source.meta["val"].shape)
        return call(target, (weight, padding, stride, dilation, groups, size), {}, node)  # type: ignore[no-any-return]

    if not is_large(node, weight):
        return run(pack(packed, weight), bias)
    channels = weight.meta["val"].shape[0]
    count = _chunk(weight.meta["val"])
    if groups != 1 or count >= channels:
        return run(weight, bias)
    parts = []
    for begin in range(0, channels, count):
        end = min(channels, begin + count)
        some = None if bias is None else call(aten.slice.Tensor, (bias, 0, begin, end), {}, node)
        parts.append(run(pack(repacked, call(aten.slice.Tensor, (weight, 0, begin, end), {}, node)), some))
    return call(aten.cat.default, (parts, 1), {}, node)  # type: ignore[no-any-return]


def _chunk(weight: Tensor) -> int:
    """Output channels that are packed at a time, a power of two: oneDNN has slow kernels for some other numbers."""
    size = weight.numel() * weight.itemsize // weight.shape[0]
    return max(FEWEST, 1 << (CHUNK_BYTES // size).bit_length() - 1) if size <= CHUNK_BYTES else FEWEST


def packed_bytes(node: fx.Node) -> int | None:
    """Bytes of a packed weight, whose channels are filled up to whole blocks; None: the node is none."""
    if node.target not in (packed, repacked):
        return int(node.meta["packed"]) if node.meta.get("packed") else None
    return _measured(torch.ops.memcompile.packing.default, node) or _plain_bytes(node)


def packed_scratch_bytes(node: fx.Node) -> int | None:
    """Bytes that a convolution of a packed weight takes beside weight and result; None: the node is none."""
    weight = node.args[1] if node.target is mkldnn._convolution_pointwise.default else None
    size = packed_bytes(weight) if isinstance(weight, fx.Node) else None
    if size is None:
        return None
    return max(0, _measured(torch.ops.memcompile.packing_convolution.default, node) - size)


def _plain_bytes(node: fx.Node) -> int:
    return int(node.meta["val"].numel() * node.meta["val"].itemsize)


def _measured(target: Any, node: fx.Node) -> int:
    """What a call takes beside its result, with the arguments of ``node``."""
    graph, given = fx.Graph(), {}
    for source in node.all_input_nodes:
        given[source] = graph.placeholder(source.name)
        given[source].meta = dict(source.meta)
    stand_in = graph.call_function(target, fx.map_arg(node.args, lambda source: given[source]))
    stand_in.meta = dict(node.meta)
    return scratch_bytes(stand_in, [source.meta["val"].stride() for source in node.all_input_nodes])


def _packing_convolution(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    attr: str,
    scalars: list[float | None],
    algorithm: str | None,
) -> Tensor:
    """Both steps as one call, which can be measured on tensors of ordinary layouts."""
    ready = packed(weight, padding, stride, dilation, groups, list(source.shape))
    made: Tensor = mkldnn._convolution_pointwise(
        source, ready, bias, padding, stride, dilation, groups, attr, scalars, algorithm
    )
    return made


def _packing(
    weight: Tensor, padding: list[int], stride: list[int], dilation: list[int], groups: int, size: list[int]
) -> Tensor:
    """Nothing but what it takes."""
    packed(weight, padding, stride, dilation, groups, size)
    return weight.new_empty(0)


_LIBRARY: Any = torch.library.Library("memcompile", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "packing_convolution(Tensor source, Tensor weight, Tensor? bias, int[] padding, int[] stride, int[] dilation, int groups, "
    "str attr, Scalar?[] scalars, str? algorithm) -> Tensor"
)
_LIBRARY.define("packing(Tensor weight, int[] padding, int[] stride, int[] dilation, int groups, int[] size) -> Tensor")
_LIBRARY.impl("packing", _packing, "CPU")
_LIBRARY.impl("packing_convolution", _packing_convolution, "CPU")
