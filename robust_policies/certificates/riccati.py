"""Candidates for the metric from the Riccati equation of the inequality; nothing here is a proof."""

from __future__ import annotations

import numpy as np
import scipy

from robust_policies.certificates.lmi import Array, Matrices, signal_maps


def recover_metric(model: Matrices, rate: float, multiplier: Array, supply: Array | None, slack: float) -> Array | None:
    """Return a P > 0 that makes M(P) >= slack (relative), from the Riccati equation of the LMI, or None.

    `multiplier` (2 nv, 2 nv) and `supply` (ny + nu, ny + nu) as in `lmi.assemble`; P is (nx, nx). With N the part of M
    free of P, on (x | w, u): the Riccati equation of rate^2 P - A'P A + N11 - (A'P B - N12)
    (N22 - B'P B)^-1 (..)' = 0. The inputs are eliminated first (N22 > 0), so the pencil has the size of the state only.
    """
    nx = model.sizes[0]
    F_x, F_r = signal_maps(model, supply is not None)
    K = scipy.linalg.block_diag(*([-multiplier] if supply is None else [-multiplier, supply]))
    N = F_r.T @ K @ F_r
    N = 0.5 * (N + N.T) - slack * np.diag(np.abs(np.diag(N)) + 1e-6 * np.abs(N).max())
    A, B = F_x[nx:, :nx], F_x[nx:, nx:]
    N11, N12, N22 = N[:nx, :nx], N[:nx, nx:], N[nx:, nx:]
    try:
        factor = scipy.linalg.cho_factor(N22)
        reduced = A - B @ scipy.linalg.cho_solve(factor, N12.T)
        cost = -(N11 - N12 @ scipy.linalg.cho_solve(factor, N12.T))
        drive = B @ scipy.linalg.cho_solve(factor, B.T)
        values, vectors = np.linalg.eigh(0.5 * (drive + drive.T))
        root = vectors * np.sqrt(np.clip(values, 0.0, None))
        keep = values > 1e-14 * max(values[-1], 1e-300)
        P = scipy.linalg.solve_discrete_are(
            reduced / rate, root[:, keep], 0.5 * (cost + cost.T) / rate**2, -np.eye(int(keep.sum()))
        )
    except (np.linalg.LinAlgError, ValueError):
        return None
    P = 0.5 * (P + P.T)
    return P if np.isfinite(P).all() and np.linalg.eigvalsh(P)[0] > 0 else None
