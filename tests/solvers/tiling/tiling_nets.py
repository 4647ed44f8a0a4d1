"""Networks of images as plain data: a builder, MobileNetV2, U-Nets, and small random graphs."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import numpy as np

from memcompile.solvers.tiling.problem import Operator, Reach, Read, TilingProblem


def identity(extent: int) -> Reach:
    """Index i reads index i."""
    return enlarged(extent, 1)


def window(extent: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> Reach:
    """What a convolution's result of ``extent`` indices reads."""
    start = np.arange(extent) * stride - padding
    return np.stack([start, start + (kernel - 1) * dilation + 1], axis=1)


def enlarged(extent: int, factor: int) -> Reach:
    """What a nearest upsampling's result reads."""
    start = np.arange(extent) // factor
    return np.stack([start, start + 1], axis=1)


@dataclass(slots=True)
class Net:
    """Operators so far; methods add one and return its index."""

    operators: list[Operator] = field(default_factory=list)

    def image(self, height: int, width: int, channels: int, *, held: bool = False) -> int:
        return self._add(Operator(f"image{len(self.operators)}", "input", height, width, channels, held=held))

    def conv(
        self,
        source: int,
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        dilation: int = 1,
        padding: int | None = None,
        depthwise: bool = False,
        onto: int | None = None,
        in_place: bool = False,
    ) -> int:
        """``onto``: an operand that the result is added to, and written over."""
        x = self.operators[source]
        pad = dilation * (kernel - 1) // 2 if padding is None else padding
        height, width = ((n + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for n in (x.height, x.width))
        reads = [Read(source, window(height, kernel, stride, pad, dilation), window(width, kernel, stride, pad, dilation))]
        if onto is not None:
            reads.append(Read(onto, identity(height), identity(width)))
        macs = kernel * kernel * channels * (1 if depthwise else x.pixel_bytes)
        over = (1,) if onto is not None else (0,) if in_place else ()
        return self._add(
            Operator(f"conv{len(self.operators)}", "local", height, width, channels, tuple(reads), macs, in_place=over)
        )

    def pointwise(self, *sources: int, in_place: bool = True) -> int:
        x = self.operators[sources[0]]
        reads = tuple(Read(s, identity(x.height), identity(x.width)) for s in sources)
        over = tuple(range(len(sources))) if in_place else ()
        return self._add(Operator(f"pointwise{len(self.operators)}", "local", x.height, x.width, x.pixel_bytes, reads, 0, over))

    def cat(self, *sources: int) -> int:
        x = self.operators[sources[0]]
        reads = tuple(Read(s, identity(x.height), identity(x.width)) for s in sources)
        channels = sum(self.operators[s].pixel_bytes for s in sources)
        return self._add(Operator(f"cat{len(self.operators)}", "local", x.height, x.width, channels, reads))

    def up(self, source: int, factor: int = 2) -> int:
        x = self.operators[source]
        height, width = x.height * factor, x.width * factor
        read = Read(source, enlarged(height, factor), enlarged(width, factor))
        return self._add(Operator(f"up{len(self.operators)}", "local", height, width, x.pixel_bytes, (read,)))

    def pool(self, source: int, kernel: int = 2) -> int:
        x = self.operators[source]
        height, width = x.height // kernel, x.width // kernel
        read = Read(source, window(height, kernel, kernel, 0), window(width, kernel, kernel, 0))
        return self._add(Operator(f"pool{len(self.operators)}", "local", height, width, x.pixel_bytes, (read,)))

    def mean(self, source: int) -> int:
        x = self.operators[source]
        return self._add(
            Operator(f"mean{len(self.operators)}", "reduction", 1, 1, x.pixel_bytes, (Read(source, None, None),), x.pixel_bytes)
        )

    def whole(self, source: int, height: int, width: int, channels: int, macs: int = 0) -> int:
        return self._add(
            Operator(f"whole{len(self.operators)}", "whole", height, width, channels, (Read(source, None, None),), macs)
        )

    def scaled(self, source: int, factor: int) -> int:
        """An image times one value per channel."""
        x = self.operators[source]
        reads = (Read(source, identity(x.height), identity(x.width)), Read(factor, None, None))
        return self._add(
            Operator(f"scaled{len(self.operators)}", "local", x.height, x.width, x.pixel_bytes, reads, in_place=(0,))
        )

    def problem(self, *outputs: int) -> TilingProblem:
        return TilingProblem(tuple(self.operators), outputs or (len(self.operators) - 1,))

    def _add(self, operator: Operator) -> int:
        self.operators.append(operator)
        return len(self.operators) - 1


def rounded(channels: float) -> int:
    """Channels as MobileNets round them: multiples of 8, at least 90 % of the wish."""
    result = max(8, int(channels + 4) // 8 * 8)
    return result + 8 if result < 0.9 * channels else result


def mobilenet_v2(width: float = 1.0, resolution: int = 224, *, over_lines: bool = False) -> TilingProblem:
    """MobileNetV2 in int8, normalisation and activation folded into convolutions (Sandler et al. 2018, table 2).

    Depthwise convolutions of stride 1 and 2 may run in place, and projections are added onto the skip connection.
    """
    net = Net()
    x = net.conv(net.image(resolution, resolution, 3), rounded(32 * width), 3, 2)
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, channels, repeats, first_stride in table:
        for repeat in range(repeats):
            stride, before = first_stride if repeat == 0 else 1, net.operators[x].pixel_bytes
            inner = net.conv(x, before * expansion, 1) if expansion > 1 else x
            inner = net.conv(inner, before * expansion, 3, stride, depthwise=True, in_place=True)
            skips = stride == 1 and before == rounded(channels * width)
            x = net.conv(inner, rounded(channels * width), 1, onto=x if skips else None)
    x = net.conv(x, max(1280, rounded(1280 * width)), 1)
    net.whole(net.mean(x), 1, 1, 1000, 1000 * net.operators[x].pixel_bytes)
    return replace(net.problem(), over_lines=over_lines)


def unet(resolution: int, channels: int, depth: int, *, held: bool = False) -> TilingProblem:
    """Two convolutions a level, pooling down, nearest upsampling and concatenation up."""
    net = Net()
    x, skips = net.image(resolution, resolution, 3, held=held), list[int]()
    for level in range(depth):
        for _ in range(2):
            x = net.pointwise(net.conv(x, channels << level))
        skips.append(x)
        x = net.pool(x)
    for _ in range(2):
        x = net.pointwise(net.conv(x, channels << depth))
    for level in reversed(range(depth)):
        x = net.cat(net.up(x), skips[level])
        for _ in range(2):
            x = net.pointwise(net.conv(x, channels << level))
    return net.problem(net.conv(x, 3, 1))


def decoder(resolution: int, channels: int) -> TilingProblem:
    """A residual block normalised by means over all pixels, after an enlargement: the end of an image autoencoder."""
    net = Net()
    x = net.conv(net.up(net.conv(net.image(resolution, resolution, 4, held=True), channels)), channels)
    inner = net.conv(net.scaled(x, net.mean(x)), channels // 2)
    x = net.conv(net.scaled(inner, net.mean(inner)), channels // 2, onto=net.conv(x, channels // 2, 1))
    return net.problem(net.conv(net.scaled(x, net.mean(x)), 3))


def random_problem(seed: int, count: int, size: int = 9) -> TilingProblem:
    """Convolutions of many shapes, sums, pools, enlargements and means over one or two inputs; at least ``count``."""
    draw, net = random.Random(seed), Net()
    for _ in range(draw.randint(1, 2)):
        net.image(size, size + 1, draw.randint(1, 4), held=draw.random() < 0.5)
    while len(net.operators) < count:
        pixels = [i for i, x in enumerate(net.operators) if x.height > 1]
        source = draw.choice(pixels[-3:])
        x = net.operators[source]
        kind = draw.random()
        if kind < 0.5:
            kernel = draw.choice((1, 2, 3, 3, 5))
            padding = draw.randint(0, kernel // 2) if x.height > kernel else kernel // 2
            stride, dilation = draw.choice((1, 1, 2, 3)), draw.choice((1, 1, 2))
            if min(x.height, x.width) + 2 * padding > dilation * (kernel - 1):
                net.conv(source, draw.randint(1, 5), kernel, stride, dilation=dilation, padding=padding)
        elif kind < 0.7:
            same = [i for i in pixels if (net.operators[i].height, net.operators[i].width) == (x.height, x.width)]
            other = draw.choice(same)
            net.pointwise(source, *([other] if net.operators[other].pixel_bytes == x.pixel_bytes else []))
        elif kind < 0.8 and x.height < 3 * size:
            net.up(source)
        elif kind < 0.9 and min(x.height, x.width) > 2:
            net.pool(source)
        elif kind < 0.95:
            mean = net.mean(source)
            if draw.random() < 0.5:
                net.scaled(source, mean)
        else:
            same = [i for i in pixels if (net.operators[i].height, net.operators[i].width) == (x.height, x.width)]
            net.cat(source, draw.choice(same))
    read = {r.source for x in net.operators for r in x.reads}
    ends = [i for i, x in enumerate(net.operators) if i not in read and x.kind != "input"]
    inner = [i for i, x in enumerate(net.operators) if i in read and x.kind != "input" and draw.random() < 0.1]
    return replace(net.problem(*sorted({*ends, *inner} or {len(net.operators) - 1})), over_lines=draw.random() < 0.5)


def copying(problem: TilingProblem, seed: int | None = None) -> TilingProblem:
    """The same with operands that tiles copy, and with lines and results in buffers of their own: some (``seed``), or as a CPU
    runs it, with operands of which windows are read."""
    draw = random.Random(seed)

    def some(operator: Operator) -> Operator:
        windows = [i for i, x in enumerate(operator.reads) if x.rows is not None and (x.rows[:, 1] - x.rows[:, 0] > 1).any()]
        chosen = windows if seed is None else [i for i in range(len(operator.reads)) if draw.random() < 0.7]
        return replace(operator, copies=tuple(chosen))

    operators = tuple(some(operator) for operator in problem.operators)
    fixed, apart = (seed is None or draw.random() < 0.5 for _ in range(2))
    return replace(problem, operators=operators, fixed_lines=fixed, results_apart=apart)
