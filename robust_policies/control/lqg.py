"""Optimal control of a known linear plant: regulators, Kalman filters, and what they cost a step in the long run.

The plant is x+ = A x + B u + w, y = C x + v with independent white noise of covariance W and V, the cost of a step
x' Q x + u' R u, its long-run mean J. Matrices are arrays in float64: A (n, n), B (n, nu), C (ny, n), Q and W (n, n),
R (nu, nu), V (ny, ny).

A controller is u = -K xc with the estimate xc of x(t), and a model of the plant that predicts xp(t+1) = A xc + B u:

    current:   xc = xp + M (y - C xp), which uses y up to now
    predictor: xc = xp before y(t) is used: xp(t+1) = A xp + B u + L (y - C xp), with L = A M at the optimum

Source: K. J. Astrom and B. Wittenmark, "Computer-Controlled Systems", 3rd edition (1997), chapter 11. The Riccati
equations are solved by python-control (`pip install robust-policies[control]`).
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import block_diag, solve_discrete_lyapunov

from robust_policies import checks
from robust_policies.errors import InvalidValueError, NonFiniteError

Estimator = Literal["current", "predictor"]
Array = np.ndarray


def lqr_gain(A: ArrayLike, B: ArrayLike, Q: ArrayLike, R: ArrayLike) -> Array:
    """Return K (nu, n) for which u = -K x costs least.

    K = (R + B' X B)^-1 B' X A with X = A' X A - A' X B (R + B' X B)^-1 B' X A + Q.

    Raises:
        ShapeError, NonFiniteError: the matrices do not fit one another or are not finite. InvalidValueError: a weight
        is not symmetric positive semidefinite, no u = -K x makes the plant stable, or python-control is missing.
    """
    return _regulator(A, B, Q, R)[1]


def kalman_gain(A: ArrayLike, C: ArrayLike, W: ArrayLike, V: ArrayLike, estimator: Estimator = "current") -> Array:
    """Return the stationary Kalman gain (n, ny): M of the current estimator, or L = A M of the predictor.

    M = P C' (C P C' + V)^-1 with the predicted error's covariance P = A P A' - A M C P A' + W.

    Raises:
        As `lqr_gain`; the outputs must show every mode that does not decay.
    """
    M = _filter(A, C, W, V)[1]
    return M if _known(estimator) == "current" else np.asarray(A, dtype=np.float64) @ M


def stationary_cost_lqr(A: ArrayLike, B: ArrayLike, Q: ArrayLike, R: ArrayLike, W: ArrayLike) -> float:
    """Return the least J of any controller that knows the state: tr(X W), X as in `lqr_gain`."""
    X = _regulator(A, B, Q, R)[0]
    return float(np.trace(X @ _weight("W", W, len(X))))


def stationary_cost_lqg(
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    Q: ArrayLike,
    R: ArrayLike,
    W: ArrayLike,
    V: ArrayLike,
    estimator: Estimator = "current",
) -> float:
    """Return the least J of any controller that sees y up to now ("current"), or up to one step ago ("predictor").

    tr(X W) + tr(K' (R + B' X B) K S), where S is the covariance of the estimate's error: P for the predictor, and
    P - M C P for the current estimator; X and K as in `lqr_gain`, P and M as in `kalman_gain`.
    """
    X, K = _regulator(A, B, Q, R)
    P, M = _filter(A, C, W, V)
    B, C, R = (np.asarray(matrix, dtype=np.float64) for matrix in (B, C, R))
    S = P - M @ C @ P if _known(estimator) == "current" else P
    return float(np.trace(X @ np.asarray(W)) + np.trace(K.T @ (R + B.T @ X @ B) @ K @ S))


def stationary_cost(
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    Q: ArrayLike,
    R: ArrayLike,
    W: ArrayLike,
    V: ArrayLike,
    K: ArrayLike,
    gain: ArrayLike,
    estimator: Estimator = "current",
    model: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
) -> float:
    """Return J of the plant with a given controller, optimal or not.

    K (nu, n) is the feedback gain, `gain` (n, ny) is M if the estimator is "current" and L if it is "predictor", and
    `model` = (A, B, C) is what the estimator believes in (None: the plant's own matrices).

    The plant's state and xp follow s+ = F s + H (w, v), u = -(U s + D v); their covariance S solves the Lyapunov
    equation S = F S F' + H diag(W, V) H', and J = tr(Q S_xx) + tr(R (U S U' + D V D')).

    Raises:
        ShapeError, NonFiniteError; InvalidValueError: the closed loop is not stable, so that J is infinite.
    """
    A, B, C = _plant(A, B, C)
    n, nu, ny = len(A), B.shape[1], len(C)
    Am, Bm, Cm = (A, B, C) if model is None else _plant(*model, sizes=(n, nu, ny))
    Q, R, W, V = _weight("Q", Q, n), _weight("R", R, nu), _weight("W", W, n), _weight("V", V, ny)
    K, gain = _matrix("K", K, (nu, n)), _matrix("gain", gain, (n, ny))
    # Both forms at once: xc = xp + M (y - Cm xp), and Am xc + Bm u + L (y - Cm xp) is the next prediction.
    M, L = (gain, 0.0 * gain) if _known(estimator) == "current" else (0.0 * gain, gain)
    estimate, innovation = np.hstack((M @ C, np.eye(n) - M @ Cm)), np.hstack((C, -Cm))
    U, D = K @ estimate, K @ M
    F = np.vstack((np.hstack((A, np.zeros((n, n)))) - B @ U, Am @ estimate + L @ innovation - Bm @ U))
    H = np.block([[np.eye(n), -B @ D], [np.zeros((n, n)), Am @ M + L - Bm @ D]])
    radius = _radius(F)
    if radius >= 1.0:
        raise InvalidValueError(
            f"The closed loop has spectral radius {radius:.6g}; expected one below 1: other gains, or a closer model."
        )
    S = solve_discrete_lyapunov(F, H @ block_diag(W, V) @ H.T)
    return float(np.trace(Q @ S[:n, :n]) + np.trace(R @ (U @ S @ U.T + D @ V @ D.T)))


def _regulator(A: ArrayLike, B: ArrayLike, Q: ArrayLike, R: ArrayLike) -> tuple[Array, Array]:
    """Return (X, K) of `lqr_gain`."""
    A = _square("A", A)
    B = _matrix("B", B, (len(A), None))
    Q, R = _weight("Q", Q, len(A)), _weight("R", R, B.shape[1])
    return _solved(A, B, Q, R, "No input in B reaches", "Q puts no weight on")


def _filter(A: ArrayLike, C: ArrayLike, W: ArrayLike, V: ArrayLike) -> tuple[Array, Array]:
    """Return (P, M) of `kalman_gain`: the regulator's equation for A', C'."""
    A = _square("A", A)
    C = _matrix("C", C, (None, len(A)))
    W, V = _weight("W", W, len(A)), _weight("V", V, len(C))
    P = _solved(A.T, C.T, W, V, "No output in C shows", "no noise in W drives")[0]
    return P, np.linalg.solve(C @ P @ C.T + V, C @ P).T


def _solved(A: Array, B: Array, Q: Array, R: Array, unreached: str, unweighted: str) -> tuple[Array, Array]:
    """Return the stabilising solution of the Riccati equation of A, B, Q, R, and its gain."""
    n = len(A)
    for mode in np.linalg.eigvals(A):
        # Popov, Belevitch and Hautus: [mode 1 - A, B] loses rank exactly where the input cannot move the mode.
        if abs(mode) >= 1.0 and np.linalg.matrix_rank(np.hstack((mode * np.eye(n) - A, B))) < n:
            raise InvalidValueError(f"{unreached} the mode {mode:.6g} of A, which does not decay; expected that every "
                                    "such mode can be stabilised.")  # fmt: skip
    control = _python_control()
    try:
        X, _, K = control.dare(A, B, Q, R)
    except (np.linalg.LinAlgError, control.ControlArgument) as error:
        raise InvalidValueError(f"The Riccati equation has no stabilising solution ({error}); is there a mode on the "
                                f"unit circle, and {unweighted} it? Or is R or V singular?") from error  # fmt: skip
    radius = _radius(A - B @ K)
    if not radius < 1.0:
        raise InvalidValueError(f"The Riccati equation's gain leaves a spectral radius of {radius:.6g}; expected one "
                                f"below 1. Perhaps {unweighted} a mode on the unit circle.")  # fmt: skip
    return X, K


def _python_control() -> ModuleType:
    try:
        import control
    except ImportError as error:
        raise InvalidValueError(
            "Optimal control needs python-control; install it with: pip install robust-policies[control]."
        ) from error
    return control


def _radius(F: Array) -> float:
    return float(np.abs(np.linalg.eigvals(F)).max())


def _known(estimator: str) -> str:
    if estimator not in ("current", "predictor"):
        raise InvalidValueError(f"estimator is {estimator!r}; expected 'current' or 'predictor'.")
    return estimator


def _matrix(name: str, value: ArrayLike, shape: tuple[int | None, int | None]) -> Array:
    """Return a finite float64 matrix of that shape."""
    matrix = np.asarray(value, dtype=np.float64)
    checks.shape(name, matrix, shape)
    if not np.isfinite(matrix).all():
        raise NonFiniteError(f"{name} holds NaN or infinity; expected finite numbers.")
    return matrix


def _square(name: str, value: ArrayLike) -> Array:
    size = len(np.atleast_1d(np.asarray(value)))
    return _matrix(name, value, (size, size))


def _plant(
    A: ArrayLike, B: ArrayLike, C: ArrayLike, sizes: tuple[int | None, int | None, int | None] = (None, None, None)
) -> tuple[Array, Array, Array]:
    n, nu, ny = sizes
    A = _square("A", A) if n is None else _matrix("A of the model", A, (n, n))
    return A, _matrix("B", B, (len(A), nu)), _matrix("C", C, (ny, len(A)))


def _weight(name: str, value: ArrayLike, size: int) -> Array:
    """Return a symmetric positive semidefinite matrix (size, size)."""
    matrix = _matrix(name, value, (size, size))
    largest = np.abs(matrix).max()
    if np.abs(matrix - matrix.T).max() > 1e-9 * largest or np.linalg.eigvalsh(matrix).min() < -1e-9 * largest:
        raise InvalidValueError(f"{name} is not symmetric positive semidefinite; expected a covariance or weight.")
    return (matrix + matrix.T) / 2
