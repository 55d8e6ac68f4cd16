"""Linear systems in discrete time and their H-infinity norm.

x+ = A x + B u, y = C x + D u, all float64: A (n, n), B (n, nu), C (ny, n), D (ny, nu).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy

from robust_policies.errors import InvalidValueError

Array = np.ndarray


class StateSpace(NamedTuple):
    """A linear system by its four matrices."""

    A: Array
    B: Array
    C: Array
    D: Array

    def response(self, angles: Array) -> Array:
        """Return G(exp(i angle)) = C (z I - A)^-1 B + D, complex (k, ny, nu), for angles (k,) in rad a step."""
        z = np.exp(1j * np.asarray(angles))[:, None, None]
        inside = z * np.eye(len(self.A)) - self.A
        return self.C @ np.linalg.solve(inside, np.broadcast_to(self.B + 0j, (len(z), *self.B.shape))) + self.D


def radius(A: Array) -> float:
    """Return the spectral radius of A (n, n), the largest modulus of its eigenvalues; 0 for an empty matrix."""
    return float(np.abs(np.linalg.eigvals(A)).max()) if A.size else 0.0


def norm2(matrix: Array) -> float:
    """Return the largest singular value of a matrix (rows, columns); 0 for an empty one."""
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0


def hinf_norm(system: StateSpace, tolerance: float = 1e-9) -> float:
    """Return the H-infinity norm of a stable system, from below and within `tolerance` (relative).

    The two-step algorithm: at a level g the frequencies where a singular value equals g are the unimodular eigenvalues
    of a symplectic pencil; the response between them is a better level. It misses no peak between two points of a
    grid. The value is reached at a frequency, hence a lower bound: a proof needs `gain_bound`.
    Source: N. A. Bruinsma and M. Steinbuch, "A fast algorithm to compute the H-infinity norm of a transfer function
    matrix", Systems & Control Letters 14 (1990), in its discrete-time form.

    Raises:
        InvalidValueError: A has an eigenvalue on or outside the unit circle, so that the norm is infinite.
    """
    if (rho := radius(system.A)) >= 1.0:
        raise InvalidValueError(f"A has spectral radius {rho:.6g}; expected one below 1: the norm is infinite.")
    if not (system.A.size and system.B.size and system.C.size):
        return norm2(system.D)
    angles = np.concatenate((np.abs(np.angle(np.linalg.eigvals(system.A))), [0.0, np.pi], np.linspace(0.1, 3.0, 8)))
    level = max(norm2(system.D), float(np.linalg.norm(system.response(angles), 2, axis=(1, 2)).max()))
    for _ in range(60):
        if level == 0.0:
            return 0.0
        crossings = _crossings(system, level * (1.0 + tolerance))
        if not len(crossings):
            return level
        middles = np.concatenate((crossings, (crossings + np.roll(crossings, -1)) / 2, [0.0, np.pi]))
        middles[len(crossings) * 2 - 1] += np.pi
        higher = float(np.linalg.norm(system.response(middles), 2, axis=(1, 2)).max())
        if higher <= level * (1.0 + tolerance):
            return max(level, higher)
        level = higher
    return level


def _crossings(system: StateSpace, level: float) -> Array:
    """Return the angles in (-pi, pi], ascending, at which a singular value of the response is `level` > |D|."""
    A, B, C, D = system.A, system.B, system.C / level, system.D / level
    n = len(A)
    gap = np.eye(D.shape[1]) - D.T @ D
    solved = np.linalg.solve(gap, np.hstack((B.T, D.T @ C)))
    G, feed = B @ solved[:, :n], solved[:, n:]
    A1, Q = A + B @ feed, C.T @ (C + D @ feed)
    left = np.block([[np.eye(n), -G], [np.zeros((n, n)), A1.T]])
    right = np.block([[A1, np.zeros((n, n))], [-Q, np.eye(n)]])
    alpha, beta = np.asarray(scipy.linalg.eigvals(right, left, homogeneous_eigvals=True))
    # Points that only nearly lie on the circle cost an evaluation and do no harm.
    near = np.abs(np.abs(alpha) - np.abs(beta)) < 1e-5 * (np.abs(alpha) + np.abs(beta))
    return np.sort(np.angle(alpha[near] * np.conj(beta[near])))
