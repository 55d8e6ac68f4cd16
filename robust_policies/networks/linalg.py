"""Matrix pieces of the parametrizations, all smooth in their free parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

EPS = 1.1920929e-07
"""Machine epsilon of float32, in both dtypes: the guard the published models put into norms and Gram matrices."""

RELATIVE_EPS = 2.0**-22
"""Multiple of trace(H) added to the diagonal: above the rounding of a float32 Gram matrix, below any useful margin."""

_FLOOR = 1e-12


def identity_like(matrix: Tensor, size: int | None = None) -> Tensor:
    """Return the identity (n, n) with n the last size of `matrix` (..., n), or `size`, in its dtype and device."""
    return torch.eye(matrix.shape[-1] if size is None else size, dtype=matrix.dtype, device=matrix.device)


def regularized(H: Tensor, eps: float | None) -> Tensor:
    """Return H + eps I for H (n, n); eps None means `RELATIVE_EPS` times trace(H)."""
    amount = H.diagonal().sum() * RELATIVE_EPS + _FLOOR if eps is None else eps
    return H + amount * identity_like(H)


def scaled_gram(X: Tensor, p: Tensor) -> Tensor:
    """Return p^2 X'X / (|X|_F^2 + eps) (n, n), the polar form: direction X (m, n), size p (1,)."""
    return (p.square() / (X.square().sum() + EPS)) * (X.mT @ X)


def frobenius(X: Tensor) -> Tensor:
    """Return sqrt(sum X^2 + eps), a scalar (), for X of any shape; smooth at zero."""
    return (X.square().sum() + EPS).sqrt()


def cayley(XY: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return (A', B') with A A' + B B' = I from XY ((n_in + n_out) x n_out) and the scale a.

    W = a XY / |XY|, U its first n_out rows, V the rest, Z = U - U' + V'V:
    A' (n_out, n_out) = (I + Z)^-1 (I - Z), B' (n_in, n_out) = -2 V (I + Z)^-1.

    Source: the Cayley transform of a sandwich layer, Wang & Manchester (ICML 2023, arXiv 2301.11526).
    """
    n_out = XY.shape[1]
    W = (a / frobenius(XY)) * XY
    U, V = W[:n_out], W[n_out:]
    Z = U - U.mT + V.mT @ V
    eye = identity_like(Z)
    inverse = inverted(eye + Z)
    return inverse @ (eye - Z), -2.0 * V @ inverse


def inverted(A: Tensor) -> Tensor:
    """Return A^-1 (n, n). On a GPU, which would be waited for, a singular A gives NaN in place of an error."""
    return _unless(*torch.linalg.inv_ex(A)) if A.is_cuda else torch.linalg.inv(A)


def solved(A: Tensor, B: Tensor, left: bool = True) -> Tensor:
    """Return A^-1 B (n, m), or B A^-1 (m, n) unless `left`; on a GPU as `inverted` says."""
    if A.is_cuda:
        return _unless(*torch.linalg.solve_ex(A, B, left=left))
    return torch.linalg.solve(A, B, left=left)


def lower_root(A: Tensor) -> Tensor:
    """Return the lower Cholesky factor (n, n) of A; on a GPU as `inverted` says, where A is not positive definite."""
    return _unless(*torch.linalg.cholesky_ex(A)) if A.is_cuda else torch.linalg.cholesky(A)


def _unless(result: Tensor, failed: Tensor) -> Tensor:
    return torch.where(failed == 0, result, torch.nan)


def block_diagonal(first: Tensor, second: Tensor) -> Tensor:
    """Return [[first, 0], [0, second]] (n + m, n + m) for square matrices (n, n) and (m, m)."""
    n, m = first.shape[0], second.shape[0]
    top = torch.cat((first, first.new_zeros(n, m)), dim=1)
    return torch.cat((top, torch.cat((second.new_zeros(m, n), second), dim=1)))


@contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Switch TF32 and autocast off while a certified map runs: their rounding is far above the certificate's margin.

    The tensor, of any shape, says on which device.
    """
    if tensor.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        yield
        return
    with torch.autocast(tensor.device.type, enabled=False):
        if tensor.device.type != "cuda":
            yield
            return
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
