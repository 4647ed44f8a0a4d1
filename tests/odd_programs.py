"""Programs whose graphs yield what is no dense tensor of a known size: shared by tests.

Each has matrix products and a nonlinearity before and after, so that there is something to plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, ROWS = 16, 32
SIZES = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}


class Around(nn.Module):
    """``body`` between two linear layers. It returns a tensor, or a tuple that begins with one."""

    table: Any

    def __init__(self, body: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.before, self.after, self.body = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), body
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor, *others: Tensor) -> Any:
        given = self.table(x, *others) if hasattr(self, "table") else x
        found = self.body(torch.tanh(self.before(given)), *(() if hasattr(self, "table") else others))
        first, *rest = found if isinstance(found, tuple) else (found,)
        loss = torch.tanh(self.after(first.reshape(-1, WIDTH))).sum()
        return (loss, *rest) if rest else loss


@dataclass(frozen=True)
class Odd:
    """``inputs`` are made anew for each run. ``left``: words of the report's row for what is left as it is."""

    body: Callable[..., Any]
    inputs: Callable[[], tuple[Tensor, ...]]
    modules: Callable[[], dict[str, nn.Module]] = dict
    left: str = ""
    settings: dict[str, bool] = field(default_factory=dict)

    def model(self) -> Around:
        """The model, with the same weights each time."""
        torch.manual_seed(0)
        return Around(self.body, **self.modules())


def rows(seed: int = 1) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


def indices(high: int, count: int = ROWS) -> Tensor:
    return torch.randint(0, high, (count,), generator=torch.Generator().manual_seed(2))


def bag(**settings: Any) -> Odd:
    return Odd(
        lambda h: h, lambda: (indices(20), torch.arange(0, ROWS, 4)), lambda: {"table": nn.EmbeddingBag(20, WIDTH, **settings)}
    )


def narrowed(h: Tensor, n: Tensor) -> tuple[Tensor, int]:
    k: Any = n.item()
    torch._check(k >= 0)  # type: ignore[no-untyped-call]
    torch._check(k <= ROWS)  # type: ignore[no-untyped-call]
    return h.narrow(0, 0, k), k


def spectral(h: Tensor) -> Tensor:
    z = torch.fft.rfft(h, dim=0)
    y: Tensor = torch.fft.irfft(z * z.abs(), n=ROWS, dim=0)
    return y


def rotated(h: Tensor, angles: Tensor) -> Tensor:
    z = torch.view_as_complex(h.view(ROWS, WIDTH // 2, 2)) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(z).flatten(1)


def branches(h: Tensor) -> Tensor:
    y: Tensor = torch.cond(h.sum() > 0, lambda t: torch.sin(t @ t.t()) @ t, lambda t: torch.cos(t), (h,))
    return y


KNOWN = "the most it can be"
PROGRAMS: dict[str, Odd] = {
    "sparse gradient": Odd(
        lambda h: h, lambda: (indices(20),), lambda: {"table": nn.Embedding(20, WIDTH, sparse=True)}, "sparse_coo"
    ),
    "bags": bag(mode="sum"),
    "means of bags": bag(mode="mean"),
    "sparse bags": bag(mode="sum", sparse=True),
    "rows that are positive": Odd(lambda h: h[torch.where(h[:, 0] > 0)[0]], lambda: (rows(),), dict, KNOWN, SIZES),
    "indices": Odd(lambda h: (h, (h[:, 0] > 0).nonzero()), lambda: (rows(),), dict, KNOWN, SIZES),
    "elements": Odd(lambda h: (h, torch.masked_select(h, h > 0).sin().sum()), lambda: (rows(),), dict, KNOWN, SIZES),
    "distinct": Odd(
        lambda h, i: (h[torch.unique(i, return_inverse=True)[1]], torch.unique(i)),
        lambda: (rows(), indices(9)),
        dict,
        KNOWN,
        SIZES,
    ),
    "a length": Odd(narrowed, lambda: (rows(), torch.tensor(9)), dict, KNOWN, SIZES),
    "none and numbers": Odd(lambda h: (h, None, 3, 2.5, True, "text"), lambda: (rows(),)),
    "no elements": Odd(lambda h: (h, h[:0], h.new_empty(0, 3)), lambda: (rows(),)),
    "empty in between": Odd(lambda h, z: torch.cat([h, torch.tanh(z)]), lambda: (rows(), torch.empty(0, WIDTH))),
    "scalars": Odd(lambda h: (h, (h > 0).sum(), (h > 0).any(), h.double().mean(), h.argmax()), lambda: (rows(),)),
    "small integers": Odd(lambda h: (h, (h * 100).abs().to(torch.uint16)), lambda: (rows(),)),
    "eight bits": Odd(lambda h: (h, h.detach().to(torch.float8_e4m3fn)), lambda: (rows(),)),
    "what came in": Odd(lambda h, x: (h, x, x.t(), x[3:5]), lambda: (rows(), rows(3))),
    "the same twice": Odd(lambda h: (h, h, h.t(), h.view(-1)), lambda: (rows(),)),
    "spectrum": Odd(lambda h: torch.fft.fft2(h).real, lambda: (rows(),)),
    "real spectrum": Odd(spectral, lambda: (rows(),)),
    "rotary": Odd(rotated, lambda: (rows(), torch.randn(ROWS, WIDTH // 2))),
    "complex in": Odd(
        lambda h, c: h * c.real + h * c.conj().imag, lambda: (rows(), torch.randn(ROWS, WIDTH, dtype=torch.cfloat))
    ),
    "complex out": Odd(lambda h: (h, torch.fft.fft(h), torch.fft.fft(h).conj()), lambda: (rows(),)),
    "other bits": Odd(lambda h: (h, h.detach().view(torch.int32) < 0, h.detach().view(torch.int16) * 0), lambda: (rows(),)),
    "branches": Odd(branches, lambda: (rows(),), dict, "graphs inside"),
}
