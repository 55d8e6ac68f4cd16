"""The discrete Riccati equation with what its solvers do not check: that it has an answer, and that the answer is one.

A solver returns K = 0 without an error where the cost does not see an integrator, and gains of any size where an input
hardly reaches a mode. So the test of Popov, Belevitch and Hautus comes before it and the spectral radius after.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

from robust_policies.errors import InvalidValueError

Array = np.ndarray

UNREACHED = 1e-10
NEARLY = 1e-6
NOT_DECAYING = 1.0 - 1e-9
STABLE = 1.0 - 1e-6


class Words(NamedTuple):
    """How the messages of one of the two dual problems read."""

    unreached: str
    nearly: str
    advice: str
    unweighted: str


CONTROL = Words(
    unreached="No input in B reaches",
    nearly="The inputs in B hardly reach",
    advice="check the actuator or the sampling time, or remove the state",
    unweighted="Q puts no weight on",
)
ESTIMATION = Words(
    unreached="No output in C shows",
    nearly="The outputs in C hardly show",
    advice="check the sensor or the sampling time, or remove the state",
    unweighted="no noise in W drives",
)


def solve(
    A: Array, B: Array, Q: Array, R: Array, words: Words = CONTROL, names: Sequence[str] = ()
) -> tuple[Array, Array, float | None]:
    """Return (X, K, margin): X = A' X A - A' X B (R + B' X B)^-1 B' X A + Q, its gain, and `pbh_margin` of (A, B).

    The margin is None where every mode decays: nothing has to be reached.

    A (n, n), B (n, m), Q (n, n) and R (m, m); the dual problem is that of A', C', W, V with K' for a gain.

    Raises:
        InvalidValueError: a mode that does not decay is out of reach, no solution exists, or its gain leaves a
        spectral radius of 1 - 1e-6 or more.

    Warns:
        UserWarning: a mode that does not decay is nearly out of reach.
    """
    margin, mode, direction = pbh_margin(A, B)
    if margin < NEARLY:
        where = f"the mode {_number(mode)} of A ({_described(direction, names)}), which does not decay"
        if margin < UNREACHED:
            raise InvalidValueError(
                f"{words.unreached} {where} (singular value {margin:.1e}): it cannot be stabilised; {words.advice}."
            )
        warnings.warn(
            f"{words.nearly} {where} (singular value {margin:.1e}): expect huge gains; {words.advice}.", stacklevel=3
        )
    try:
        X = scipy.linalg.solve_discrete_are(A, B, Q, R)
        K = np.linalg.solve(R + B.T @ X @ B, B.T @ X @ A)
    except (np.linalg.LinAlgError, ValueError) as error:
        raise InvalidValueError(
            f"The Riccati equation has no stabilising solution ({error}); is there a mode on the unit circle, and "
            f"{words.unweighted} it? Or is R or V singular?"
        ) from error
    values, vectors = np.linalg.eig(A - B @ K)
    worst = int(np.abs(values).argmax())
    if not abs(values[worst]) < STABLE:
        raise InvalidValueError(
            f"The Riccati equation's gain leaves a spectral radius of {abs(values[worst]):.6f}, the mode "
            f"{_number(values[worst])} ({_described(vectors[:, worst], names)}); expected one below 1. Perhaps "
            f"{words.unweighted} a mode on the unit circle."
        )
    return X, K, None if np.isinf(margin) else margin


def pbh_margin(A: Array, B: Array) -> tuple[float, complex, Array]:
    """Return the least singular value of [A - mode 1, B] over the modes that do not decay, its mode and direction.

    Popov, Belevitch and Hautus: it is zero exactly where no input moves the mode. Taken in balanced states, A and B
    scaled to norm 1, so that units hardly matter; infinite where every mode decays. The direction (n,) is in the
    states' own units: what cannot be moved is its product with the state.
    """
    balanced, (scale, _) = scipy.linalg.matrix_balance(A, permute=False, separate=True)
    reach = B / scale[:, None]
    size, width = np.linalg.norm(balanced, 2) or 1.0, np.linalg.norm(reach, 2) or 1.0
    worst: tuple[float, complex, Array] = (np.inf, 0.0, np.zeros(len(A)))
    for mode in np.linalg.eigvals(balanced):
        if abs(mode) >= NOT_DECAYING:
            pencil = np.hstack(((balanced - mode * np.eye(len(A))) / size, reach / width))
            left, singular, _ = np.linalg.svd(pencil)
            if singular[-1] < worst[0]:
                worst = float(singular[-1]), complex(mode), left[:, -1] / scale
    return worst


def _number(mode: complex) -> str:
    return f"{mode.real:.6g}" if abs(mode.imag) < 1e-12 else f"{mode.real:.6g}{mode.imag:+.6g}j"


def _described(direction: Array, names: Sequence[str]) -> str:
    """Return the states that matter in a direction, largest first."""
    size = np.abs(direction) / np.abs(direction).max()
    order = [i for i in np.argsort(-size, kind="stable")[:3] if size[i] > 0.1]
    return "mostly " + ", ".join(str(names[i]) if names else f"state {i + 1}" for i in order)
