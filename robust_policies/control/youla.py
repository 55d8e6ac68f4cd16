"""The closed loop of a linear plant, an observer, a state feedback and a Youla parameter, and bounds of its gain.

    plant      x+  = A x + B u + Bw w,   y = C x + Dv v           performance  z = Cz x + Dz u
    observer   xh+ = A xh + B u + L yt,  yt = y - C xh            control      u = -K xc + ut,  xc = xh + M yt
    error      e   = x - xh:  e+ = (A - L C) e + Bw w - L Dv v,  yt = C e + Dv v

with M = 0 for the predictor. The error contains neither u nor ut: the innovation yt depends on d = (w, v) alone,
whatever ut is. With ut = Q(yt) the loop is a cascade,

    z = T0 d + T1 Q(T2 d),

and no contracting Q of finite gain can destabilise it. Everything holds for the linear plant without saturation.

Sources: D. C. Youla, H. A. Jabr and J. J. Bongiorno, IEEE Trans. Automatic Control 21 (1976); for nonlinear Q:
R. Wang, N. H. Barbara, M. Revay and I. R. Manchester, "Learning over all stabilizing nonlinear controllers for a
partially-observed linear system", IEEE Control Systems Letters 7 (2023).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from robust_policies import checks
from robust_policies.certificates.layers import is_r2dn, layers_bound
from robust_policies.certificates.lmi import Matrices, matrices
from robust_policies.control.bounded import Bounded, assembled, between, block, parts
from robust_policies.control.gain_bounds import GainBound, gain_bound, known_gain, linear_loop
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.norms import Array, StateSpace, radius
from robust_policies.control.weights import Weights
from robust_policies.errors import InvalidValueError, NotCertifiableError


@dataclass(frozen=True)
class Performance:
    """What enters and what is judged: z = Cz x + Dz u, process noise Bw w, measurement noise Dv v.

    Cz (nz, n), Dz (nz, m), Bw (n, q), Dv (p, r).
    """

    Cz: Array
    Dz: Array
    Bw: Array
    Dv: Array

    @classmethod
    def lqg(cls, design: LQGDesign | Weights) -> Performance:
        """Return |z|^2 = x'Q x + u'R u and unit disturbances with W = Bw Bw', V = Dv Dv': what the design minimises."""
        return replace(cls.weighted(design.Q, design.R), Bw=_root(design.W), Dv=_root(design.V))

    @classmethod
    def weighted(cls, Q: Array, R: Array) -> Performance:
        """Return |z|^2 = x'Q x + u'R u, and nothing that enters."""
        Qr, Rr = _root(Q).T, _root(R).T
        Cz = np.vstack((Qr, np.zeros((len(Rr), Qr.shape[1]))))
        return cls(Cz, np.vstack((np.zeros((len(Qr), Rr.shape[1])), Rr)), np.zeros((len(Q), 0)), np.zeros((0, 0)))


@dataclass(frozen=True)
class Bounds:
    """Upper bounds of the gain d -> z, from loose to tight; each knows whether it is proven.

    `triangle` = |T0| + |T1| gQ |T2|, `scaled` the best bound that uses only the gain gQ of the Youla parameter,
    `closed_loop` the one that uses its matrices (None where they were not given). `T0`, `T1`, `T2` are the norms.
    """

    triangle: GainBound
    scaled: GainBound
    closed_loop: GainBound | None
    T0: GainBound
    T1: GainBound
    T2: GainBound


def maps(
    model: LinearModel, design: LQGDesign, performance: Performance | None = None
) -> tuple[StateSpace, StateSpace, StateSpace]:
    """Return T0 (d -> z without Q), T1 (ut -> z) and T2 (d -> yt), d = (w, v).

    The states are (x, e), x and e. T1 and T2 do not depend on the estimator; T0 does. `performance` None stands for
    `Performance.lqg(design)`, here and below.

    Raises:
        InvalidValueError: A - B K or A - L C is not stable. ShapeError: the performance does not fit the plant.
    """
    A, B, C, K, L = model.A, model.B, model.C, design.K, design.L
    Cz, Dz, Bw, Dv = _checked(model, design, performance)
    n, q, r = len(A), Bw.shape[1], Dv.shape[1]
    KM = direct_gain(design)
    Ke = K - KM @ C
    AL, BL = A - L @ C, np.hstack((Bw, -L @ Dv))
    T0 = StateSpace(
        np.block([[A - B @ K, B @ Ke], [np.zeros((n, n)), AL]]),
        np.vstack((np.hstack((Bw, -B @ KM @ Dv)), BL)),
        np.hstack((Cz - Dz @ K, Dz @ Ke)),
        np.hstack((np.zeros((len(Cz), q)), -Dz @ KM @ Dv)),
    )
    T1 = StateSpace(A - B @ K, B, Cz - Dz @ K, Dz)
    T2 = StateSpace(AL, BL, C, np.hstack((np.zeros((len(C), q)), Dv)).reshape(len(C), q + r))
    return T0, T1, T2


def direct_gain(design: LQGDesign) -> Array:
    """Return K M (m, p), by which the current estimator feeds the innovation back at once; 0 for the predictor."""
    if design.estimator not in ("current", "predictor"):
        raise InvalidValueError(f"estimator is {design.estimator!r}; expected 'current' or 'predictor'.")
    return design.K @ design.M * (design.estimator == "current")


def normalisation(design: LQGDesign, model: LinearModel) -> tuple[Array, Array]:
    """Return (innovation_scale, input_scale): yt_n = innovation_scale @ yt and ut = input_scale @ ut_n.

    chol(C S C' + V)^-1 (p, p) and chol(R + B'P B)^-T (m, m) with lower Cholesky factors, P and S the Riccati solutions
    of the regulator and of the filter for the weights R and V.

    The innovation of the Kalman filter is white, and these make it of unit covariance; with the LQG weights'
    `Performance`, T2 is then co-inner and T1 inner (all singular values 1 at all frequencies), so that the triangle
    bound reads |T0| + gQ. Raises InvalidValueError where one of the two is singular.
    """
    B, C = model.B, model.C
    factors = []
    for name, matrix in (("C S C' + V", C @ design.S @ C.T + design.V), ("R + B'P B", design.R + B.T @ design.P @ B)):
        try:
            factors.append(np.linalg.cholesky((matrix + matrix.T) / 2))
        except np.linalg.LinAlgError as error:
            raise InvalidValueError(
                f"{name} is singular; expected a positive definite matrix. Give every output "
                "some noise and every input some weight."
            ) from error
    return np.linalg.inv(factors[0]), np.linalg.inv(factors[1]).T


def parameter_matrices(cell: Any) -> tuple[Matrices, float]:
    """Return the explicit float64 matrices of a cell that runs as Youla parameter and its phi's Lipschitz bound.

    Raises NotCertifiableError for a cell without such matrices (LSTM, GRU, MLP; a REN, whose neurons feed each other).
    """
    with torch.no_grad():
        explicit: Any = cell.explicit() if hasattr(cell, "explicit") else None
    if not is_r2dn(explicit):
        raise NotCertifiableError(f"{type(cell).__name__} has no matrices for a closed-loop bound; expected an R2DN.")
    names = ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22")
    arrays = (getattr(explicit, name).detach().cpu().double().numpy() for name in names)
    return matrices(*arrays), layers_bound(explicit.layers)


def scaled_parameter(q: Matrices, innovation_scale: Bounded | Array, input_scale: Bounded | Array) -> Matrices:
    """Return the matrices of ut = input_scale Q(innovation_scale yt): the scales folded into the Youla parameter.

    `innovation_scale` is (p, p), `input_scale` (m, m), as of `normalisation`.

    What rounding may have done to the products is in `error`.
    """
    return between(q, innovation_scale, input_scale)


def closed_loop_matrices(
    model: LinearModel, design: LQGDesign, q: Matrices, performance: Performance | None = None
) -> Matrices:
    """Return plant + observer + Youla parameter as the explicit matrices of one R2DN from d to z.

    The states are (x, e, states of Q), the neurons those of Q; `certificates.verify_arrays` judges the result like any
    other cell; its `error` says what rounding may have done to the products. `q` takes the innovation in the plant's
    units: see `scaled_parameter`.

    Raises:
        As `maps`; ShapeError: Q does not map innovations (p) to inputs (m).
    """
    A, B, C, K, L = model.A, model.B, model.C, design.K, design.L
    Cz, Dz, Bw, Dv = _checked(model, design, performance)
    nx, nv, _, _ = q.sizes
    checks.shape("The Youla parameter's D22", q.D22, (B.shape[1], len(C)))
    n, w, zero = len(A), Bw.shape[1], np.zeros
    p = parts(q)
    A, B, C, K, L, Cz, Dz = map(Bounded.exact, (A, B, C, K, L, Cz, Dz))
    D = p["D22"] - K @ design.M if design.estimator == "current" else p["D22"]
    Ke = K + D @ C
    return assembled(
        {
            "A": block(
                [
                    [A - B @ K, B @ Ke, B @ p["C2"]],
                    [zero((n, n)), A - L @ C, zero((n, nx))],
                    [zero((nx, n)), p["B2"] @ C, p["A"]],
                ]
            ),
            "B1": block([[B @ p["D21"]], [zero((n, nv))], [p["B1"]]]),
            "B2": block([[Bw, B @ D @ Dv], [Bw, -(L @ Dv)], [zero((nx, w)), p["B2"] @ Dv]]),
            "C1": block([[zero((nv, n)), p["D12"] @ C, p["C1"]]]),
            "D11": p["D11"],
            "D12": block([[zero((nv, w)), p["D12"] @ Dv]]),
            "C2": block([[Cz - Dz @ K, Dz @ Ke, Dz @ p["C2"]]]),
            "D21": Dz @ p["D21"],
            "D22": block([[zero((len(Cz.value), w)), Dz @ D @ Dv]]),
        }
    )


def bounds(
    model: LinearModel,
    design: LQGDesign,
    gain: float,
    performance: Performance | None = None,
    q: Matrices | None = None,
    ell: float = 1.0,
    scales: tuple[Array, Array] | None = None,
) -> Bounds:
    """Return the bounds of the gain d -> z for every Youla parameter of l2 gain `gain`, and for `q` itself.

    Args:
        model: the plant.
        design: the gains.
        gain: gQ >= 0, from normalised innovation to normalised input.
        performance: d and z; None: `Performance.lqg(design)`.
        q: the explicit matrices of Q between normalised signals, D11 = 0; None leaves the third bound out.
        ell: the Lipschitz bound of Q's nonlinearity.
        scales: (p, p) and (m, m), what `normalisation` returned; None: the signals are not normalised.

    Raises:
        As `maps` and `closed_loop_matrices`.
    """
    gain = checks.finite_float("gain", gain, at_least=0.0)
    inward, outward = (np.eye(len(model.C)), np.eye(model.B.shape[1])) if scales is None else scales
    T0, T1, T2 = maps(model, design, performance)
    T1, T2 = T1._replace(B=T1.B @ outward, D=T1.D @ outward), T2._replace(C=inward @ T2.C, D=inward @ T2.D)
    norms = [gain_bound(linear_loop(system)) for system in (T0, T1, T2)]
    g0, g1, g2 = norms
    triangle = GainBound(
        (g0.gain + g1.gain * gain * g2.gain) * (1.0 + 1e-15),
        all(norm.proven for norm in norms),
        g0.estimate + g1.estimate * gain * g2.estimate,
    )

    def closed(parameter: Matrices, ell: float) -> GainBound:
        loop = closed_loop_matrices(model, design, scaled_parameter(parameter, inward, outward), performance)
        return gain_bound(loop, (ell,) if loop.sizes[1] else ())

    scaled = closed(known_gain(model.p, model.m), gain)
    return Bounds(triangle, scaled, None if q is None else closed(q, ell), g0, g1, g2)


def _checked(
    model: LinearModel, design: LQGDesign, performance: Performance | None
) -> tuple[Array, Array, Array, Array]:
    """Return Cz, Dz, Bw, Dv after checking shapes and that both halves of the base loop are stable."""
    n, m, p = len(model.A), model.B.shape[1], len(model.C)
    performance = Performance.lqg(design) if performance is None else performance
    nz = len(performance.Cz)
    for name, matrix, shape in (
        ("B", model.B, (n, m)),
        ("C", model.C, (p, n)),
        ("K", design.K, (m, n)),
        ("L", design.L, (n, p)),
        ("Cz", performance.Cz, (nz, n)),
        ("Dz", performance.Dz, (nz, m)),
        ("Bw", performance.Bw, (n, None)),
        ("Dv", performance.Dv, (p, None)),
    ):
        checks.shape(name, matrix, shape)
    for name, matrix, what in (
        ("A - B K", model.A - model.B @ design.K, "feedback gain K"),
        ("A - L C", model.A - design.L @ model.C, "observer gain L"),
    ):
        if not (rho := radius(matrix)) < 1.0:
            raise InvalidValueError(
                f"{name} has spectral radius {rho:.6g}; expected one below 1. Give a {what} that stabilises the model."
            )
    return performance.Cz, performance.Dz, performance.Bw, performance.Dv


def _root(matrix: Array) -> Array:
    """Return F with F F' = matrix, without columns of zeros."""
    matrix = np.asarray(matrix, dtype=np.float64)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if values[0] < -1e-9 * max(values[-1], 1e-300):
        raise InvalidValueError(f"A weight has the eigenvalue {values[0]:.6g}; expected a positive semidefinite one.")
    keep = values > 1e-15 * max(values[-1], 1e-300)
    return vectors[:, keep] * np.sqrt(values[keep])
