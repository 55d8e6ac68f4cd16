"""Supply rates in unit-gain coordinates, shared by every gain-bounded cell."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robust_policies.errors import InvalidValueError
from robust_policies.networks.guarantees import Contracting, Dissipative, Guarantee
from robust_policies.networks.linalg import identity_like


class Supply(NamedTuple):
    """The supply rate s = y'Q y + 2 u'S y + u'R u and the coordinates in which it is |ub|^2 - |yb|^2.

    yb = LQ (y + Q^-1 S' u), ub = LR u, with LQ'LQ = -Q and LR'LR = R - S Q^-1 S' upper triangular; shift = Q^-1 S'.
    """

    Q: Tensor
    S: Tensor
    R: Tensor
    LQ_inverse: Tensor
    LR: Tensor
    shift: Tensor

    def to(self, dtype: torch.dtype) -> Supply:
        """Return the same supply rate in another dtype."""
        return Supply(*(matrix.to(dtype) for matrix in self))

    def zero_feedthrough(self) -> Tensor:
        """Return Z with LQ^-1 Z LR = Q^-1 S', the unit-gain feedthrough of a zero output; raise if |Z| >= 1."""
        Z = torch.linalg.solve(self.LQ_inverse, self.shift)
        Z = torch.linalg.solve_triangular(self.LR, Z, upper=True, left=False)
        if float(torch.linalg.matrix_norm(Z, 2)) >= 1 - 1e-9:
            raise InvalidValueError("The supply rate forbids a zero output: R is not positive definite; use init only.")
        return Z


def supply_of(
    guarantee: Guarantee, log_gamma: Tensor | None, nu: int, ny: int, reference: Tensor, eps: float = 0.0
) -> Supply:
    """Return the supply rate of a Lipschitz or dissipative guarantee in `reference`'s dtype and device.

    Q is (ny, ny), S (nu, ny), R (nu, nu); `log_gamma` is (1,), or None where gamma is not trained. A gain bound is
    Q = -I/gamma, S = 0, R = gamma I. `eps` tightens a dissipative guarantee to (Q - eps I, S, R + eps I), as the
    published REN code does.

    Raises:
        InvalidValueError: the guarantee is `Contracting`, which has no supply rate.
    """
    if isinstance(guarantee, Contracting):
        raise InvalidValueError("A contracting cell has no supply rate; use Lipschitz(gamma) or Dissipative(Q, S, R).")
    if isinstance(guarantee, Dissipative):
        Q = guarantee.Q - eps * identity_like(guarantee.Q)
        R = guarantee.R + eps * identity_like(guarantee.R)
        S = guarantee.S
        shift = torch.linalg.solve(Q, S.mT)
        LQ = torch.linalg.cholesky(-Q).mT
        LR = torch.linalg.cholesky(R - S @ shift).mT
        parts = (Q, S, R, torch.linalg.inv(LQ), LR, shift)
        return Supply(*(part.to(reference) for part in parts))
    gamma = reference.new_full((1, 1), guarantee.gamma) if log_gamma is None else log_gamma.exp().reshape(1, 1)
    eye_u, eye_y = identity_like(reference, nu), identity_like(reference, ny)
    root = gamma.sqrt()
    zeros = reference.new_zeros
    return Supply(-eye_y / gamma, zeros(nu, ny), gamma * eye_u, root * eye_y, root * eye_u, zeros(ny, nu))
