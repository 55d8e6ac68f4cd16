"""Optimal control of a known linear plant: regulators, Kalman filters, and what they cost a step in the long run.

The plant is x+ = A x + B u + w, y = C x + v with independent white noise of covariance W and V, the cost of a step
x' Q x + u' R u, its long-run mean J. Matrices are arrays in float64: A (n, n), B (n, nu), C (ny, n), Q and W (n, n),
R (nu, nu), V (ny, ny).

A controller is u = -K xc with the estimate xc of x(t), and a model of the plant that predicts xp(t+1) = A xc + B u:

    current:   xc = xp + M (y - C xp), which uses y up to now
    predictor: xc = xp before y(t) is used: xp(t+1) = A xp + B u + L (y - C xp), with L = A M at the optimum

`design` does it all for a `LinearModel`, with weights that work for every task where none are given.

Source: K. J. Astrom and B. Wittenmark, "Computer-Controlled Systems", 3rd edition (1997), chapter 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike

from robust_policies import checks
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.norms import radius
from robust_policies.control.riccati import CONTROL, ESTIMATION, solve
from robust_policies.control.weights import Weights, choose
from robust_policies.errors import InvalidValueError, NonFiniteError

Estimator = Literal["current", "predictor"]
Array = np.ndarray


@dataclass(frozen=True, eq=False)
class LQGDesign:
    """A regulator and a Kalman filter for a `LinearModel`, both found stable; printed, it shows its weights.

    u = -K xc with xc = xp + M (y - C xp) ("current") or xc = xp ("predictor"); the estimator runs as
    xp+ = A xp + B u + L (y - C xp) in both, as L = A M.
    """

    K: Array
    """(m, n)."""
    L: Array
    """(n, p): gain of the prediction."""
    M: Array
    """(n, p): gain of the estimate from y up to now."""
    P: Array
    """(n, n): the regulator's Riccati solution."""
    S: Array
    """(n, n): covariance of the predicted error, the filter's Riccati solution."""
    rho_control: float
    """Spectral radius of A - B K."""
    rho_estimator: float
    """Spectral radius of A - L C."""
    pbh_control: float | None
    """The least singular value of the Popov-Belevitch-Hautus test of (A, B); None where every mode decays."""
    pbh_estimator: float | None
    """The same of (A', C')."""
    estimator: Estimator
    weights: Weights
    """Where each of the weights below is from."""

    Q: Array
    """(n, n)."""
    R: Array
    """(m, m)."""
    W: Array
    """(n, n)."""
    V: Array
    """(p, p)."""

    def __str__(self) -> str:
        margins = "every mode decays"
        if self.pbh_control is not None and self.pbh_estimator is not None:
            margins = f"PBH margins {self.pbh_control:.3g} and {self.pbh_estimator:.3g}"
        radii = f"{self.rho_control:.6f} of A - B K and {self.rho_estimator:.6f} of A - L C"
        first = f"LQG design, {self.estimator} estimator, {len(self.L)} states: spectral radii {radii}, {margins}"
        return f"{first}\n{self.weights}"


def lqr(model: LinearModel, Q: ArrayLike | None = None, R: ArrayLike | None = None) -> Array:
    """Return K (m, n) of `lqr_gain` for a model; weights left out are the defaults of `design`."""
    weights = choose(model, Q=_weight_or_none("Q", Q, model.n), R=_weight_or_none("R", R, model.m))
    return lqr_gain(model.A, model.B, weights.Q, weights.R)


def kalman(
    model: LinearModel, W: ArrayLike | None = None, V: ArrayLike | None = None, estimator: Estimator = "current"
) -> Array:
    """Return M ("current") or L ("predictor"), (n, p), of `kalman_gain`; covariances left out are the defaults."""
    weights = choose(model, W=_weight_or_none("W", W, model.n), V=_weight_or_none("V", V, model.p))
    return kalman_gain(model.A, model.C, weights.W, weights.V, estimator)


def design(
    model: LinearModel,
    Q: ArrayLike | None = None,
    R: ArrayLike | None = None,
    W: ArrayLike | None = None,
    V: ArrayLike | None = None,
    estimator: Estimator = "current",
) -> LQGDesign:
    """Return the LQG design of a model; weights left out are the task's own or follow from its ranges, see `choose`.

    The weights are Q (n, n) of the states, R (m, m) of the inputs, and the covariances W (n, n) of the process noise
    and V (p, p) of the measurement noise, in the plant's units. `estimator` is "current" or "predictor".

    What could go wrong silently is checked in this order: D = 0; the equilibrium; each mode that does not decay is
    reached by an input (Popov, Belevitch and Hautus), the Riccati equation, the spectral radius of what it gives; the
    same for the outputs and the filter.

    Raises:
        ShapeError, NonFiniteError: a weight does not fit the model. InvalidValueError: a check failed; the message
        names the mode.

    Warns:
        UserWarning: a mode is nearly unreachable or nearly invisible.
    """
    _known(estimator)
    given = {
        name: _weight_or_none(name, value, size)
        for name, value, size in (("Q", Q, model.n), ("R", R, model.m), ("W", W, model.n), ("V", V, model.p))
    }
    if np.any(model.D):
        raise InvalidValueError(
            f"D has an entry of {np.abs(model.D).max():.3g}; expected D = 0, as an output that shows the input at once "
            "leaves no time to act on it. Use with_input_delay(model, 1)."
        )
    allowed = 1e-6 * max(1.0, float(np.linalg.norm(model.x0)))
    if not model.residual <= allowed:
        raise InvalidValueError(
            f"The state moves by {model.residual:.3g} in one step from the point of the model; expected at most "
            f"{allowed:.1g}, an equilibrium. Choose another state and action."
        )
    weights = choose(model, **given)
    P, K, pbh_control = solve(model.A, model.B, weights.Q, weights.R, CONTROL, model.state_names)
    S, L, pbh_estimator = solve(model.A.T, model.C.T, weights.W, weights.V, ESTIMATION, model.state_names)
    M, L = np.linalg.solve(model.C @ S @ model.C.T + weights.V, model.C @ S).T, L.T
    radii = radius(model.A - model.B @ K), radius(model.A - L @ model.C)
    Q, R, W, V = weights.Q, weights.R, weights.W, weights.V
    return LQGDesign(K, L, M, P, S, *radii, pbh_control, pbh_estimator, estimator, weights, Q, R, W, V)


def lqr_gain(A: ArrayLike, B: ArrayLike, Q: ArrayLike, R: ArrayLike) -> Array:
    """Return K (nu, n) for which u = -K x costs least.

    K = (R + B' X B)^-1 B' X A with X = A' X A - A' X B (R + B' X B)^-1 B' X A + Q.

    Raises:
        ShapeError, NonFiniteError: the matrices do not fit one another or are not finite. InvalidValueError: a weight
        is not symmetric positive semidefinite, no u = -K x makes the plant stable.
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
    """Return the least J of any controller that knows the state: tr(X W), X as in `lqr_gain`.

    A (n, n), B (n, nu), Q (n, n), R (nu, nu) and W (n, n), the covariance of the process noise.

    Raises:
        As `lqr_gain`.
    """
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
    P - M C P for the current estimator; X and K as in `lqr_gain`, P and M as in `kalman_gain`. A (n, n), B (n, nu),
    C (ny, n), Q (n, n), R (nu, nu), W (n, n) and V (ny, ny).

    Raises:
        As `lqr_gain` and `kalman_gain`.
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
    rho = radius(F)
    if rho >= 1.0:
        raise InvalidValueError(
            f"The closed loop has spectral radius {rho:.6g}; expected one below 1: other gains, or a closer model."
        )
    S = scipy.linalg.solve_discrete_lyapunov(F, H @ scipy.linalg.block_diag(W, V) @ H.T)
    return float(np.trace(Q @ S[:n, :n]) + np.trace(R @ (U @ S @ U.T + D @ V @ D.T)))


def _regulator(A: ArrayLike, B: ArrayLike, Q: ArrayLike, R: ArrayLike) -> tuple[Array, Array]:
    """Return (X, K) of `lqr_gain`."""
    A = _square("A", A)
    B = _matrix("B", B, (len(A), None))
    Q, R = _weight("Q", Q, len(A)), _weight("R", R, B.shape[1])
    return solve(A, B, Q, R, CONTROL)[:2]


def _filter(A: ArrayLike, C: ArrayLike, W: ArrayLike, V: ArrayLike) -> tuple[Array, Array]:
    """Return (P, M) of `kalman_gain`: the regulator's equation for A', C'."""
    A = _square("A", A)
    C = _matrix("C", C, (None, len(A)))
    W, V = _weight("W", W, len(A)), _weight("V", V, len(C))
    P = solve(A.T, C.T, W, V, ESTIMATION)[0]
    return P, np.linalg.solve(C @ P @ C.T + V, C @ P).T


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


def _weight_or_none(name: str, value: ArrayLike | None, size: int) -> Array | None:
    return None if value is None else _weight(name, value, size)
