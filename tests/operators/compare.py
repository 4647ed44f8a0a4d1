"""Whether two runs left the same behind, to the rounding of fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.operators.program import Results

TIMES = 4.0
"""We may be further from float64 than eager fp32 is by this factor."""
ROUNDINGS = 32.0
"""And by so many roundings of the largest value beside."""


def differences(found: Results, expected: Results, exact: Results | None) -> dict[str, str]:
    """What differs, by name, and how. ``exact``: of a run in float64, where there is one."""
    wrong = {name: "missing" for name in expected.keys() - found.keys() if not _no_gradient(name, expected[name])}
    wrong |= {name: "unexpected" for name in found.keys() - expected.keys() if not _no_gradient(name, found[name])}
    for name in expected.keys() & found.keys():
        arbiter = None if exact is None else exact.get(name)
        if reason := _difference(found[name], expected[name], arbiter):
            wrong[name] = reason
    return dict(sorted(wrong.items()))


def _no_gradient(name: str, value: Any) -> bool:
    """A gradient of zeros is as good as none: a graph break hands zeros to what came before it."""
    return ".grad " in name and not bool(value.any())


def _difference(found: Any, expected: Any, exact: Any) -> str:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return "" if type(found) is type(expected) and _equal(found, expected) else f"{found!r} instead of {expected!r}"
    for what in ("shape", "dtype", "layout"):
        if getattr(found, what) != getattr(expected, what):
            return f"{what} {getattr(found, what)} instead of {getattr(expected, what)}"
    if expected.layout is not torch.strided:
        return _difference(found.to_dense(), expected.to_dense(), None)
    if not expected.dtype.is_floating_point and not expected.dtype.is_complex:
        wrong = int((found != expected).sum()) if found.numel() else 0
        return f"{wrong} of {found.numel()} integers differ" if wrong else ""
    if expected.is_complex():
        real = torch.view_as_real(exact.resolve_conj()) if isinstance(exact, Tensor) and exact.is_complex() else None
        return _difference(torch.view_as_real(found.resolve_conj()), torch.view_as_real(expected.resolve_conj()), real)
    return _rounding(found, expected, exact)


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b or (a != a and b != b))


def _rounding(found: Tensor, expected: Tensor, exact: Any) -> str:
    ours, eager = found.double(), expected.double()
    if not torch.equal(ours.isnan(), eager.isnan()) or not torch.equal(ours.isinf(), eager.isinf()):
        return "nan or inf elsewhere"
    infinite = eager.isinf()
    if not torch.equal(ours[infinite], eager[infinite]):
        return "infinities of the other sign"
    reference = eager
    if isinstance(exact, Tensor) and exact.shape == expected.shape and exact.dtype.is_floating_point:
        same = torch.equal(exact.isfinite(), eager.isfinite())
        reference = exact.double() if same else eager
    kept = eager.isfinite()
    if not bool(kept.any()):
        return ""
    scale = float(reference[kept].abs().max())
    allowed = TIMES * float((eager - reference)[kept].abs().max()) + ROUNDINGS * torch.finfo(expected.dtype).eps * scale
    error = float((ours - reference)[kept].abs().max())
    return "" if error <= allowed else f"off by {error:.3g}, allowed {allowed:.3g}, scale {scale:.3g}"
