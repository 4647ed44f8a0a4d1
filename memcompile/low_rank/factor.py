"""The best factors of a weight: truncated SVD, of the weight itself or of what it makes of given inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-8
"""What is added to the Gram matrix, as a share of its mean diagonal: directions that no input has count a little."""


@dataclass(frozen=True, slots=True)
class Factors:
    """``second @ first`` is near the weight; both in its dtype and on its device.

    ``first`` is ``[rank, in]``, ``second`` is ``[out, rank]``. ``energy_kept``: share of the squared singular values.
    ``weight_error``, ``output_error``: Frobenius norm of the difference as a share of the weight's, of the output's without its
    bias, with the factors as they are stored; the latter is None without inputs.
    """

    first: Tensor
    second: Tensor
    energy_kept: float
    weight_error: float
    output_error: float | None


@dataclass(frozen=True, slots=True)
class Decomposition:
    """What every rank shares. ``left``: orthonormal columns ``[out, k]``, by ``values`` ``[k]``, largest first; float64."""

    weight: Tensor
    gram: Tensor | None
    left: Tensor
    values: Tensor

    def truncated(self, rank: int) -> Factors:
        """The best factors of ``rank``. Their rows and columns have equal norms pair by pair: one learning rate suits both."""
        weight = self.weight.double()
        second = self.left[:, :rank]
        first = second.T @ weight
        balance = torch.linalg.vector_norm(first, dim=1).sqrt()
        balance = torch.where(balance > 0, balance, 1)
        first = (first / balance[:, None]).to(self.weight.dtype).contiguous()
        second = (second * balance).to(self.weight.dtype).contiguous()
        missing = weight - second.double() @ first.double()
        output_error = None
        if self.gram is not None:
            output_error = _share(_output_norm(missing, self.gram), _output_norm(weight, self.gram), nothing=0.0)
        energy = self.values.square()
        return Factors(
            first,
            second,
            _share(energy[:rank].sum(), energy.sum(), nothing=1.0),
            _share(missing.norm(), weight.norm(), nothing=0.0),
            output_error,
        )


def decompose(weight: Tensor, gram: Tensor | None = None) -> Decomposition:
    """SVD of ``weight`` ``[out, in]``, or of ``weight @ S`` with ``S @ S.T = gram``, in float64 on the weight's device.

    ``gram`` is ``X.T @ X`` ``[in, in]`` of inputs X ``[rows, in]``. Of all matrices of a rank, the truncation is then the one
    with the smallest Frobenius norm of ``(weight - truncated) @ X.T``: the whitening of SVD-LLM (arXiv:2403.07378, section 3).
    With ``weight @ S = U @ diag(values) @ V.T`` the paper's ``U_r diag(values_r) V_r.T S^-1`` equals ``U_r U_r.T @ weight``,
    so that S need not be inverted, and inputs that do not span all directions need no special case. Of what they leave open
    (`RIDGE`), the weight itself decides, and of everything when all inputs are zero. ``weight`` and ``gram`` have to be finite.
    """
    exact = weight.double()
    if gram is None or not bool(gram.any()):
        left, values, _ = torch.linalg.svd(exact, full_matrices=False)
        return Decomposition(weight, None, left, values)
    gram = gram.to(exact)
    left, values, _ = torch.linalg.svd(exact @ _root(gram), full_matrices=False)
    return Decomposition(weight, gram, left, values)


def _root(gram: Tensor) -> Tensor:
    """S with ``S @ S.T = gram`` (and the ridge): Cholesky's; from the eigenvectors where rounding made ``gram`` indefinite."""
    least = RIDGE * gram.diagonal().mean()
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(gram + least * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    if failed:
        variances, directions = torch.linalg.eigh(gram)
        root = directions * variances.clamp(min=0).add(least).sqrt()
    return root


def _output_norm(weight: Tensor, gram: Tensor) -> Tensor:
    """Frobenius norm of ``weight @ X.T``; rounding may leave a square just below zero."""
    return ((weight @ gram) * weight).sum().clamp(min=0).sqrt()


def _share(part: Tensor, whole: Tensor, nothing: float) -> float:
    """``part / whole``; ``nothing`` of a whole that is zero."""
    return float(part / whole) if whole > 0 else nothing
