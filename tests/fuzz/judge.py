"""Whether two runs of a program left the same: float64 eager is the arbiter between eager and us.

A difference is one where what we computed is further from float64 than a few times what eager itself is, and further from it
and from eager than the rounding of the least precise type in sight. Integers, truth values, shapes, types and layouts are equal
or different.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

TIMES = 4.0
"""Our error may be so many times that of eager."""
ULPS = 16.0
"""And so many units in the last place of the largest value, where eager happens to be exact."""


@dataclass(frozen=True)
class Difference:
    """``what``: "output 0 of call 1"; ``how``: what is not equal."""

    what: str
    how: str

    @property
    def kind(self) -> str:
        """Without numbers: "output", "gradient"."""
        return self.what.split()[0]


def differences(
    ours: Mapping[str, Any], eager: Mapping[str, Any], exact: Mapping[str, Any] | None, epsilon: float
) -> list[Difference]:
    """``exact``: eager in double precision, None where it draws other random numbers. ``epsilon``: of the least precise type."""
    found = [Difference(name, "missing") for name in eager if name not in ours]
    found += [Difference(name, "unexpected") for name in ours if name not in eager]
    for name, value in eager.items():
        if name in ours and (how := _difference(ours[name], value, None if exact is None else exact[name], epsilon)):
            found.append(Difference(name, how))
    return found


def _difference(ours: Any, eager: Any, exact: Any, epsilon: float) -> str:
    if not isinstance(eager, torch.Tensor) or not isinstance(ours, torch.Tensor):
        return "" if type(ours) is type(eager) and ours == eager else f"{ours!r} instead of {eager!r}"
    if ours.shape != eager.shape or ours.dtype != eager.dtype:
        return f"{ours.dtype} {tuple(ours.shape)} instead of {eager.dtype} {tuple(eager.shape)}"
    if not (eager.dtype.is_floating_point or eager.dtype.is_complex):
        return "" if torch.equal(ours, eager) else f"{int((ours != eager).sum())} of {eager.numel()} values"
    if eager.numel() == 0 or torch.equal(ours, eager):
        return ""
    wide = torch.complex128 if eager.dtype.is_complex else torch.float64
    ours, eager = ours.to(wide), eager.to(wide)
    if not bool((ours.isfinite() == eager.isfinite()).all()):
        return "not finite where eager is, or the other way round"
    ours, eager = (torch.where(eager.isfinite(), t, 0) for t in (ours, eager))
    judge = eager if exact is None or exact.shape != eager.shape else torch.where(exact.isfinite(), exact.to(wide), 0)
    scale = max(float(judge.abs().max()), float(eager.abs().max()), 1e-3)
    allowed = max(TIMES * float((eager - judge).abs().max()), ULPS * epsilon * scale)
    error, apart = float((ours - judge).abs().max()), float((ours - eager).abs().max())
    if min(error, apart) <= allowed:
        return ""
    return f"error {error:.2g} where eager's is {float((eager - judge).abs().max()):.2g}, values up to {scale:.2g}"
