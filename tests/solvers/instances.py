"""Synthetic training steps with the shapes that matter: transformer, U-Net, ResNet, unrolled LSTM; small random problems."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from memcompile.solvers.schedule.problem import Op, RematProblem, Storage


@dataclass(slots=True)
class Builder:
    """Collects ops; ``backward`` turns a tape of forward ops into gradients."""

    storages: list[Storage] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    boundary: int = 0

    def storage(self, name: str, size: int, **flags: bool) -> int:
        """A new storage."""
        self.storages.append(Storage(name, size, **flags))
        return len(self.storages) - 1

    def op(self, name: str, reads: list[int], size: int, seconds: float, *, output: bool = False, inplace: bool = False) -> int:
        """An op with one write; returns the storage."""
        s = self.storage(name, size, is_output=output)
        self.ops.append(Op(name, tuple(reads), (s,), seconds, inplace=inplace))
        return s

    def problem(self, base_bytes: int = 0) -> RematProblem:
        """The problem so far."""
        return RematProblem(tuple(self.storages), tuple(self.ops), self.boundary, base_bytes)


@dataclass(slots=True)
class Tape:
    """Forward values with what their backward reads; gradients come out in reverse order."""

    builder: Builder
    entries: list[tuple[str, int, list[int], list[int], int, float]] = field(default_factory=list)

    def do(
        self, name: str, reads: list[int], size: int, seconds: float, saves: str = "in", weight: int = 0, inplace: bool = False
    ) -> int:
        """Forward op; ``saves``: its backward reads its inputs ("in"), its output ("out"), both or nothing ("")."""
        s = self.builder.op(name, reads, size, seconds, inplace=inplace)
        kept = ([*reads] if "in" in saves else []) + ([s] if "out" in saves else [])
        self.entries.append((name, s, reads, kept, weight, seconds))
        return s

    def backward(self, loss: int) -> None:
        """Emit the backward of all entries."""
        b = self.builder
        b.boundary = len(b.ops)
        total = -1
        grads: dict[int, int] = {loss: b.op("d_loss", [loss], b.storages[loss].size_bytes, 1e-6)}
        for name, s, reads, kept, weight, seconds in reversed(self.entries):
            if s not in grads:
                continue
            g = grads[s]
            for i, u in enumerate(dict.fromkeys(reads)):
                size = b.storages[u].size_bytes
                d = b.op(f"d_{name}_{i}", list(dict.fromkeys([g, *kept])), size, seconds, inplace=not weight)
                grads[u] = b.op(f"acc_{name}_{i}", [grads[u], d], size, seconds * 0.1, inplace=True) if u in grads else d
            if name.startswith("gates"):
                dw = b.op(f"dw_{name}", [g, *kept], weight, seconds)
                total = b.op(f"sum_{name}", [total, dw], weight, 1e-6, inplace=True) if total >= 0 else dw
            elif weight:
                b.op(f"dw_{name}", list(dict.fromkeys([g, *kept])), weight, seconds, output=True)


MIB = 1 << 20


def transformer(layers: int, *, batch: int = 8, length: int = 1024, width: int = 768, heads: int = 12) -> RematProblem:
    """GPT with materialised attention: 16 forward and about 26 backward ops a layer, bf16."""
    tape = Tape(Builder())
    act = batch * length * width * 2
    probs = batch * heads * length * length * 2
    matmul = 2.0 * batch * length * width * width / 200e12
    point = act * 3 / 2e12
    x = tape.do("embed", [], act, point, saves="", weight=50257 * width * 2)
    for i in range(layers):
        n = tape.do(f"ln1_{i}", [x], act, point, weight=width * 2)
        q = tape.do(f"q_{i}", [n], act, matmul, weight=width * width * 2)
        k = tape.do(f"k_{i}", [n], act, matmul, weight=width * width * 2)
        v = tape.do(f"v_{i}", [n], act, matmul, weight=width * width * 2)
        scores = 2.0 * batch * length * length * width / 200e12
        a = tape.do(f"qk_{i}", [q, k], probs, scores)
        p = tape.do(f"softmax_{i}", [a], probs, probs * 2 / 2e12, saves="out", inplace=True)
        d = tape.do(f"dropout_{i}", [p], probs, probs * 2 / 2e12, saves="", inplace=False)
        o = tape.do(f"av_{i}", [d, v], act, scores)
        o = tape.do(f"proj_{i}", [o], act, matmul, weight=width * width * 2)
        x = tape.do(f"add1_{i}", [x, o], act, point, saves="", inplace=True)
        n = tape.do(f"ln2_{i}", [x], act, point, weight=width * 2)
        h = tape.do(f"up_{i}", [n], 4 * act, 4 * matmul, weight=4 * width * width * 2)
        g = tape.do(f"gelu_{i}", [h], 4 * act, 4 * point)
        m = tape.do(f"down_{i}", [g], act, 4 * matmul, weight=4 * width * width * 2)
        m = tape.do(f"drop2_{i}", [m], act, point, saves="")
        x = tape.do(f"add2_{i}", [x, m], act, point, saves="", inplace=True)
    n = tape.do("ln_f", [x], act, point, weight=width * 2)
    logits = tape.do("head", [n], batch * length * 4096 * 2, 5 * matmul, weight=width * 4096 * 2)
    loss = tape.do("loss", [logits], 4, point)
    tape.backward(loss)
    return tape.builder.problem(base_bytes=layers * 12 * width * width * 2)


def resnet(blocks: int, *, batch: int = 32) -> RematProblem:
    """Bottleneck blocks: convolution, normalisation and ReLU, three times, and a sum; four resolutions."""
    tape = Tape(Builder())
    size, channels = 56 * 56, 256
    x = tape.do("stem", [], batch * size * channels * 2, 1e-4, saves="")
    for i in range(blocks):
        if i and i % max(1, blocks // 4) == 0 and size > 49:
            size, channels = size // 4, channels * 2
        act = batch * size * channels * 2
        y, conv = x, 2.0 * batch * size * channels * channels / 8 / 100e12
        for j in range(3):
            width = act if j == 2 else act // 4
            y = tape.do(f"conv{j}_{i}", [y], width, conv, weight=channels * channels // 4)
            y = tape.do(f"bn{j}_{i}", [y], width, width * 3 / 2e12)
            if j < 2:
                y = tape.do(f"relu{j}_{i}", [y], width, width * 2 / 2e12, saves="out", inplace=True)
        if tape.builder.storages[x].size_bytes != act:
            x = tape.do(f"skip_{i}", [x], act, conv, weight=channels * channels // 2)
        y = tape.do(f"add_{i}", [x, y], act, act * 3 / 2e12, saves="", inplace=True)
        x = tape.do(f"out_{i}", [y], act, act * 2 / 2e12, saves="out", inplace=True)
    loss = tape.do("loss", [x], 4, 1e-5)
    tape.backward(loss)
    return tape.builder.problem(base_bytes=64 * MIB)


def unet(depth: int, *, batch: int = 4, convs: int = 2) -> RematProblem:
    """Encoder and decoder with long skip connections."""
    tape = Tape(Builder())
    size, channels = 256 * 256, 64
    x = tape.do("stem", [], batch * size * channels * 2, 1e-4, saves="")
    skips: list[tuple[int, int, int]] = []

    def stage(x: int, name: str, act: int, channels: int) -> int:
        for j in range(convs):
            seconds = act * channels * 9 / 100e12
            x = tape.do(f"conv{j}_{name}", [x], act, seconds, weight=channels * channels * 18)
            x = tape.do(f"norm{j}_{name}", [x], act, act * 3 / 2e12)
            x = tape.do(f"silu{j}_{name}", [x], act, act * 2 / 2e12)
        return x

    for i in range(depth):
        act = batch * size * channels * 2
        x = stage(x, f"down{i}", act, channels)
        skips.append((x, size, channels))
        size, channels = size // 4, channels * 2
        x = tape.do(f"pool{i}", [x], batch * size * channels * 2, act / 2e12)
    x = stage(x, "middle", batch * size * channels * 2, channels)
    for i, (skip, size, channels) in reversed(list(enumerate(skips))):
        act = batch * size * channels * 2
        x = tape.do(f"upsample{i}", [x], act, act * channels / 100e12, weight=channels * channels * 8)
        x = tape.do(f"cat{i}", [x, skip], 2 * act, act * 3 / 2e12, saves="")
        x = stage(x, f"up{i}", act, channels)
    loss = tape.do("loss", [x], 4, 1e-5)
    tape.backward(loss)
    return tape.builder.problem(base_bytes=100 * MIB)


def lstm(steps: int, *, batch: int = 64, width: int = 512) -> RematProblem:
    """An unrolled LSTM: 6 forward ops a step, 14 backward; the weight gradient is summed over the steps."""
    tape = Tape(Builder())
    act = batch * width * 4
    matmul = 2.0 * batch * width * 8 * width / 10e12
    h = tape.do("h0", [], act, 1e-7, saves="")
    c = tape.do("c0", [], act, 1e-7, saves="")
    for i in range(steps):
        gates = tape.do(f"gates_{i}", [h], 4 * act, matmul, weight=8 * width * width * 4)
        s = tape.do(f"sigmoid_{i}", [gates], 4 * act, act * 8 / 1e12, saves="out", inplace=True)
        f = tape.do(f"forget_{i}", [s, c], act, act * 3 / 1e12)
        c = tape.do(f"cell_{i}", [s, f], act, act * 3 / 1e12)
        t = tape.do(f"tanh_{i}", [c], act, act * 2 / 1e12, saves="out")
        h = tape.do(f"h_{i}", [s, t], act, act * 3 / 1e12)
    loss = tape.do("loss", [h], 4, 1e-6)
    tape.backward(loss)
    return tape.builder.problem(base_bytes=8 * width * width * 4)


def recurrence(steps: int, *, size: int = 65536) -> RematProblem:
    """h <- tanh(U h), unrolled: nothing but the state crosses any position."""
    tape = Tape(Builder())
    h = tape.do("h0", [], size, 1e-7, saves="")
    for i in range(steps):
        h = tape.do(f"tanh_{i}", [tape.do(f"gates_{i}", [h], size, 1e-5, weight=1024)], size, 1e-5, saves="out", inplace=True)
    tape.backward(tape.do("loss", [h], 4, 1e-6))
    return tape.builder.problem()


def random_problem(seed: int, forward: int = 5, backward: int = 5) -> RematProblem:
    """A small problem with every feature of the interface, for brute force."""
    rng = random.Random(seed)
    b = Builder(boundary=forward)
    for p in range(forward + backward):
        pool = list(range(len(b.storages)))
        if p < forward:
            pool = pool[-3:]
        reads = sorted(rng.sample(pool, min(len(pool), rng.choice([0, 1, 1, 2, 2, 3]))))
        output = p >= forward and rng.random() < 0.2
        writes = [b.storage(f"s{p}", rng.choice([1, 1, 2, 3, 5, 8]), is_output=output)]
        if rng.random() < 0.1:
            writes.append(b.storage(f"t{p}", rng.choice([1, 2, 3])))
        again = rng.random() < 0.9
        b.ops.append(
            Op(
                f"op{p}",
                tuple(reads),
                tuple(writes),
                float(rng.choice([1, 1, 2, 4, 9])),
                workspace_bytes=rng.choice([0, 0, 0, 2]),
                recomputable=again,
                inplace=rng.random() < 0.4,
            )
        )
    return b.problem(base_bytes=rng.choice([0, 3]))
