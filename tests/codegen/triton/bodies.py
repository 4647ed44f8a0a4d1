"""Bodies of graphs as the backend hands them over, with their operands and what they compute in fp64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx


@dataclass(frozen=True)
class Case:
    """``function(*operands)`` returns a tuple; ``rows``: which operands are sliced."""

    function: Callable[..., tuple[torch.Tensor, ...]]
    operands: tuple[torch.Tensor, ...]
    rows: tuple[bool, ...]

    def body(self, decomposed: bool = False) -> fx.GraphModule:
        """The captured graph, whole ops or Inductor's decompositions."""
        mode = next((t.fake_mode for t in self.operands if isinstance(t, FakeTensor)), FakeTensorMode())
        with mode:
            fake = [mode.from_tensor(t) if not isinstance(t, FakeTensor) else t for t in self.operands]
            table = select_decomp_table() if decomposed else None
            body = make_fx(self.function, decomposition_table=table)(*fake)
        body.graph.eliminate_dead_code()
        return body

    def exact(self) -> tuple[torch.Tensor, ...]:
        """The results in fp64 of the same operands."""
        return self.function(*(t.double() if t.is_floating_point() else t for t in self.operands))


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers for which products stay of the order of 1."""
    scale = shape[0] ** -0.5 if len(shape) == 2 else 1.0
    return (torch.randn(shape) * scale).to(dtype)


def rows_first(
    row_operands: Sequence[torch.Tensor], others: Sequence[torch.Tensor], function: Callable[..., tuple[torch.Tensor, ...]]
) -> Case:
    """A case whose row operands come first. Theirs are not scaled down: they are inputs, not weights."""
    scaled = [t * t.shape[0] ** 0.5 if t.is_floating_point() else t for t in row_operands]
    flags = (True,) * len(row_operands) + (False,) * len(others)
    return Case(function, (*scaled, *others), flags)


def ffn(
    n: int, d: int, r: int, h: int, dtype: torch.dtype = torch.float32, act: Callable[[torch.Tensor], torch.Tensor] = F.gelu
) -> Case:
    """x -> A1 -> B1 (+ b) -> act -> A2 -> B2 (+ b), plus the residual; the last weight is stored transposed."""

    def function(
        x: torch.Tensor,
        a1: torch.Tensor,
        b1: torch.Tensor,
        c1: torch.Tensor,
        a2: torch.Tensor,
        b2: torch.Tensor,
        c2: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        hidden = act(torch.addmm(c1, x @ a1, b1))
        return (x + torch.addmm(c2, hidden @ a2, b2.t()),)

    shapes = ((d, r), (r, h), (h,), (h, r), (d, r), (d,))
    return rows_first([random(n, d, dtype=dtype)], [random(*shape, dtype=dtype) for shape in shapes], function)


def gated(n: int, d: int, r: int, h: int, dtype: torch.dtype = torch.float32) -> Case:
    """SwiGLU with a low-rank gate, up and down projection."""

    def function(
        x: torch.Tensor,
        ag: torch.Tensor,
        bg: torch.Tensor,
        au: torch.Tensor,
        bu: torch.Tensor,
        ad: torch.Tensor,
        bd: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        return ((F.silu((x @ ag) @ bg) * ((x @ au) @ bu)) @ ad @ bd,)

    shapes = ((d, r), (r, h), (d, r), (r, h), (h, r), (r, d))
    return rows_first([random(n, d, dtype=dtype)], [random(*shape, dtype=dtype) for shape in shapes], function)


def rank_to_rank(n: int, r: int, h: int, dtype: torch.dtype = torch.float32) -> Case:
    """P -> B1 -> act -> A2 -> S."""
    return rows_first(
        [random(n, r, dtype=dtype)],
        [random(r, h, dtype=dtype), random(h, dtype=dtype), random(h, r, dtype=dtype)],
        lambda p, b1, c1, a2: (F.gelu(torch.addmm(c1, p, b1), approximate="tanh") @ a2,),
    )


def projection(n: int, d: int, r: int, dtype: torch.dtype = torch.float32) -> Case:
    """x @ U @ V, times a vector in rank space, with bias, mask, residual, a value for each row, scale and cast."""

    def function(
        x: torch.Tensor,
        residual: torch.Tensor,
        mask: torch.Tensor,
        weight: torch.Tensor,
        u: torch.Tensor,
        s: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        y = torch.where(mask, ((x @ u) * s) @ v + bias, 0.0) * 0.125
        return ((residual + torch.sigmoid(y) * weight).float(), y)

    rows = [random(n, d, dtype=dtype), random(n, 2 * d, dtype=dtype), torch.rand(n, 2 * d) > 0.3, random(n, 1, dtype=dtype)]
    others = [random(d, r, dtype=dtype), random(1, r, dtype=dtype), random(r, 2 * d, dtype=dtype), random(2 * d, dtype=dtype)]
    return rows_first(rows, others, function)


def normalized(n: int, d: int, r: int, h: int, dtype: torch.dtype = torch.float32) -> Case:
    """Autocast: fp32 rows scaled by a value a row and a vector, then cast; fp32 weights cast where they are used."""

    def function(
        x: torch.Tensor, deviation: torch.Tensor, gain: torch.Tensor, u: torch.Tensor, v: torch.Tensor, half: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        scaled = (x * torch.rsqrt(deviation + 1e-5) * gain).to(half.dtype)
        return ((scaled @ u.to(half.dtype) @ v.to(half.dtype)).relu() * half,)

    others = [random(d), random(d, r), random(r, h), random(dtype=dtype)]
    return rows_first([random(n, d), torch.rand(n, 1) + 0.5], others, function)


def core(n: int, d: int, r: int, dtype: torch.dtype = torch.float32) -> Case:
    """x @ U @ (r x r core) @ V, with both of the rank-space tensors as results."""

    def function(x: torch.Tensor, u: torch.Tensor, middle: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left = x @ u
        right = torch.tanh(left @ middle)
        return right @ v, left, right

    return rows_first([random(n, d, dtype=dtype)], [random(*s, dtype=dtype) for s in ((d, r), (r, r), (r, d))], function)
