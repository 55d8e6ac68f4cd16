"""The least gain over all metrics and multipliers: an interior-point method for the inequality of `lmi`.

With theta = (entries of P, multiplier, g) and g = gamma^2 the inequality, times gamma, is linear in theta:
M(theta) = M_0 + sum_k theta_k A_k > 0, where every A_k is a sum of c (a b' + b a'). Newton's method on
t g - log det M(theta), t growing, follows the central path (Boyd and Vandenberghe, "Convex Optimization", chapter 11);
the Hessian tr(S A_j S A_k), S = M^-1, needs no more than S between the rows a and b. P > 0 follows from M > 0 on the
path if it holds at its start: x'(rate^2 P - A'P A)x > 0 excludes a P that has just become singular.

Nothing here is a proof: what it returns is a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from robust_policies.certificates.lmi import Array, Matrices, signal_maps
from robust_policies.certificates.multipliers import Multiplier, Pairs

# About two seconds; a state of up to 24 numbers.
MAX_VARIABLES = 350
_GAP = 1e-7


@dataclass(frozen=True)
class Candidate:
    """A metric P (nx, nx), a multiplier and, where it is for a gain, that gain."""

    P: Array
    theta: Array
    gamma: float | None = None


@dataclass(frozen=True)
class PeakCandidate:
    """Metric P (nx, nx), multipliers theta1 and theta2 and r, s (nu,) of the two inequalities of `peak`."""

    rate: float
    P: Array
    theta1: Array
    r: Array
    theta2: Array
    s: Array

    @property
    def bound(self) -> float:
        """The bound that it stands for."""
        left = 1.0 - self.rate * self.rate if len(self.P) else 1.0
        return float(np.sqrt(self.r.sum() / left + self.s.sum()))

    @property
    def variables(self) -> Array:
        """All of it as one vector, in the order of `least_peak`'s variables."""
        return np.concatenate([self.P[np.triu_indices(len(self.P))], self.theta2, self.s, self.theta1, self.r])


def small_enough(model: Matrices, family: Multiplier) -> bool:
    """Return whether the search takes seconds at most."""
    nx = model.sizes[0]
    return nx * (nx + 1) // 2 + family.size + 1 <= MAX_VARIABLES


def least_gain(
    model: Matrices,
    family: Multiplier,
    rate: float,
    start: Candidate,
    inputs: Array,
    outputs: Array,
    gap: float = _GAP,
) -> Candidate | None:
    """Return the candidate with the least gain, from one for which the inequality holds with some slack, or None.

    `inputs` (nu,) and `outputs` (ny,) are the units of `gain_supply`, `gap` the relative distance from the least
    gamma^2 at which the path ends.
    """
    assert start.gamma is not None
    nx, nv, _, ny = model.sizes
    F_x, F_r = signal_maps(model, True)
    out = outputs[:, None] * F_r[2 * nv : 2 * nv + ny]
    drive = F_r[2 * nv + ny :] / inputs[:, None]
    storage = _storage(F_x, nx, rate)
    pairs = _stack([storage, _negative(family.pairs(F_r[:nv], F_r[nv : 2 * nv])), _squares(drive)])
    theta = np.concatenate([start.P[np.triu_indices(nx)], start.theta, [start.gamma**2]])
    path = _Path([(pairs, -out.T @ out)], theta.size)
    found = path.follow(theta, len(theta) - 1, gap=gap)
    if found is None or found[-1] <= 0:
        return None
    return Candidate(_symmetric(found, nx), found[nx * (nx + 1) // 2 : -1], float(np.sqrt(found[-1])))


def contraction(model: Matrices, family: Multiplier, rate: float) -> Candidate | None:
    """Return a candidate for contraction with `rate`, or None if the search finds none.

    M(theta) - I + s I > 0 is feasible for a large s; s is made smaller until it is below 0.
    """
    nx, nv, _, _ = model.sizes
    F_x, F_r = signal_maps(model, False)
    n = nx + nv
    pairs = _stack([_storage(F_x, nx, rate), _negative(family.pairs(F_r[:nv], F_r[nv:])), _squares(np.eye(n))])
    theta = np.concatenate([np.eye(nx)[np.triu_indices(nx)], family.start(), [0.0]])
    path = _Path([(pairs, -np.eye(n))], theta.size)
    theta[-1] = 1.0 - 2 * min(float(np.linalg.eigvalsh(path.blocks[0].matrix(theta))[0]), 0.0)
    found = path.follow(theta, len(theta) - 1, stop_below=-1e-3)
    if found is None or found[-1] > -1e-3:
        return None
    return Candidate(_symmetric(found, nx), found[nx * (nx + 1) // 2 : -1])


def least_peak(
    model: Matrices,
    family: Multiplier,
    rate: float,
    output: int,
    units: Array,
    start: Candidate | PeakCandidate,
    gap: float,
) -> PeakCandidate | None:
    """Return the candidate of the least bound of one output at every step (`peak`), None from a start that is none.

    Args:
        model: the matrices.
        family: what is known of the neurons.
        rate: of the ellipsoid's inequality, its mu = rate^2.
        output: whose bound is wanted.
        units: (nu,) how far each input may differ at every step.
        start: a metric and multipliers that prove contraction with this rate, with some slack; or what was found for a
            smaller rate with a larger gap.
        gap: relative distance from the least.
    """
    nx, nv, nu, _ = model.sizes
    n, count = nx + nv + nu, family.size
    F_x, F_r = signal_maps(model, True)
    v, w, u = F_r[:nv], F_r[nv : 2 * nv], F_r[len(F_r) - nu :] / units[:, None]
    y = F_r[2 * nv + output]
    entries = nx * (nx + 1) // 2
    related, each = _negative(family.pairs(v, w)), Pairs(u, u, np.full(nu, 0.5), np.arange(nu))
    # Variables: P, theta2 and s of the second inequality, theta1 and r of the first.
    second = _placed([(_held(F_x, nx), 0), (related, entries), (each, entries + count)])
    blocks, bound = [(second, -np.outer(y, y))], np.concatenate([np.zeros(entries + count), np.ones(nu)])
    if nx:
        last = entries + count + nu
        first = _placed([(_storage(F_x, nx, rate), 0), (related, last), (each, last + count)])
        blocks.append((first, np.zeros((n, n))))
        bound = np.concatenate([bound, np.zeros(count), np.full(nu, 1 / (1 - rate * rate))])
    warm = isinstance(start, PeakCandidate)
    theta = start.variables if warm else _peak_start(F_x, F_r, family, rate, y, u, start)
    if theta is None:
        return None
    theta = theta[: bound.size]
    found = _Path(blocks, bound.size).follow(theta, bound, gap=gap, first=0.2 if warm else 10.0)
    if found is None:
        return None
    rest = np.concatenate([found[nx * (nx + 1) // 2 :], np.zeros(0 if nx else count + nu)])
    theta2, s, theta1, r = np.split(rest, [count, count + nu, 2 * count + nu])
    return PeakCandidate(rate, _symmetric(found, nx), theta1, r, theta2, s)


def least_reach(
    model: Matrices, family: Multiplier, rate: float, shape: Array, units: Array, start: Candidate, gap: float = 1e-2
) -> Candidate | None:
    """Return P >= shape and a multiplier with the least r in mu x'Px - x+'P x+ - N + r sum (u_l / units_l)^2 >= 0.

    Inputs within their units then keep x' shape x below sum r / (1 - mu), mu = rate^2, for ever.

    Args:
        model: the matrices.
        family: what is known of the neurons.
        rate: of the inequality.
        shape: (nx, nx) positive definite, which states count.
        units: (nu,) how far each input may differ at every step, > 0.
        start: a metric and multipliers that prove contraction with this rate, with some slack.
        gap: relative distance from the least.
    """
    nx, nv, nu, _ = model.sizes
    n, count, entries = nx + nv, family.size, nx * (nx + 1) // 2
    F_x, F_r = signal_maps(model, True)
    v, w, u = F_r[:nv], F_r[nv : 2 * nv], F_r[len(F_r) - nu :] / units[:, None]
    related = F_r[: 2 * nv].T @ family.matrix(start.theta) @ F_r[: 2 * nv]
    left = rate * rate * F_x[:nx].T @ start.P @ F_x[:nx] - F_x[nx:].T @ start.P @ F_x[nx:] - related
    try:
        half = scipy.linalg.solve_triangular(np.linalg.cholesky(start.P), np.linalg.cholesky(shape), lower=True)
        size = 2.0 * float(np.linalg.svd(half, compute_uv=False)[0]) ** 2
        room = _room(size * left, n, u)
    except np.linalg.LinAlgError:
        return None
    blocks = [
        (_stack([_storage(F_x, nx, rate), _negative(family.pairs(v, w)), _squares(u)]), np.zeros((n + nu, n + nu))),
        (_held(np.eye(nx), nx), -shape),
    ]
    theta = np.concatenate([size * start.P[np.triu_indices(nx)], size * start.theta, room[:1]])
    found = _Path(blocks, theta.size).follow(theta, theta.size - 1, gap=gap)
    return None if found is None else Candidate(_symmetric(found, nx), found[entries : entries + count])


def _peak_start(
    F_x: Array, F_r: Array, family: Multiplier, rate: float, y: Array, u: Array, start: Candidate
) -> Array | None:
    """Return an interior point (variables of `least_peak`) made of a proof of contraction, None where that is none."""
    nx, nv = len(F_x) // 2, family.nv
    n = nx + nv
    related = F_r[: 2 * nv].T @ family.matrix(start.theta) @ F_r[: 2 * nv]
    stored = F_x[:nx].T @ start.P @ F_x[:nx]
    try:
        M2 = stored - related
        factor = np.linalg.cholesky(M2[:n, :n])
        reach = np.linalg.solve(factor, y[:n]) if n else np.zeros(0)
        size = 2.0 * float(reach @ reach) + 1e-6
        M2 = size * M2 - np.outer(y, y)
        s = _room(M2, n, u)
        r = np.zeros(len(u))
        if nx:
            r = _room(size * (rate * rate * stored - F_x[nx:].T @ start.P @ F_x[nx:] - related), n, u)
    except np.linalg.LinAlgError:
        return None
    multiplier = size * start.theta
    return np.concatenate([size * start.P[np.triu_indices(nx)], multiplier, s, multiplier, r])


def _room(M: Array, n: int, u: Array) -> Array:
    """Return what to add to each input's square, in its unit, so that M (n of it and the inputs) is positive."""
    np.linalg.cholesky(M[:n, :n])
    schur = M[n:, :n] @ np.linalg.solve(M[:n, :n], M[:n, n:]) - M[n:, n:] if n else -M
    scale = 1 / np.diagonal(u[:, n:])
    largest = max(float(np.linalg.eigvalsh(schur * np.outer(scale, scale))[-1]), 1e-12)
    return np.full(len(u), 2.0 * largest)


class _Block:
    """One matrix M(theta) = constant + sum_k theta_k A_k and what Newton's method needs of it."""

    def __init__(self, pairs: Pairs, constant: Array, size: int) -> None:
        self.pairs, self.constant = pairs, constant
        # Most rows stand in many pairs: those of x and x+ in one for each entry of P.
        self.rows, places = np.unique(np.vstack([pairs.a, pairs.b]), axis=0, return_inverse=True)
        self.places = np.split(places.reshape(-1), 2)
        entries = np.ones(pairs.variable.size)
        self.collect = scipy.sparse.csr_matrix(
            (entries, (pairs.variable, np.arange(entries.size))), (size, entries.size)
        )

    def matrix(self, theta: Array, constant: bool = True) -> Array:
        a, b, c, variable = self.pairs
        half = (a * (c * theta[variable])[:, None]).T @ b
        return half + half.T + (self.constant if constant else 0.0)

    def derivatives(self, factor: Array) -> tuple[Array, Array]:
        """Return gradient and Hessian of -log det M, whose Cholesky factor is given."""
        c, (i, j) = self.pairs.c, self.places
        whitened = scipy.linalg.solve_triangular(factor, self.rows.T, lower=True)
        between = whitened.T @ whitened
        ab, aa, bb = (between[np.ix_(*places)] for places in ((i, j), (i, i), (j, j)))
        gradient = np.asarray(self.collect @ (-2 * c * np.diag(ab)))
        hessian = 2 * (ab * ab.T + aa * bb) * np.outer(c, c)
        return gradient, self.collect @ (self.collect @ hessian).T

    def along(self, factor: Array, direction: Array) -> Array:
        """Return the eigenvalues of the direction's matrix, relative to M."""
        moved = scipy.linalg.solve_triangular(factor, self.matrix(direction, constant=False), lower=True)
        return np.linalg.eigvalsh(scipy.linalg.solve_triangular(factor, moved.T, lower=True))


class _Path:
    """Minimization of one entry of theta, or of a linear function of it, over M(theta) > 0 for each of some blocks."""

    def __init__(self, blocks: Sequence[tuple[Pairs, Array]], size: int) -> None:
        self.blocks = [_Block(pairs, constant, size) for pairs, constant in blocks]

    def follow(
        self,
        theta: Array,
        objective: int | Array,
        stop_below: float = -np.inf,
        gap: float = _GAP,
        first: float = 10.0,
    ) -> Array | None:
        """Return the end of the central path from an interior theta (size,), None where that is not one.

        Args:
            theta: where it starts.
            objective: the place of what is minimized, or (size,) its coefficients.
            stop_below: a value at which the path may end.
            gap: relative distance from the least value.
            first: that at which it starts, for the value at theta.
        """
        n = sum(len(block.constant) for block in self.blocks)
        cost = np.eye(theta.size)[objective] if isinstance(objective, int) else objective
        scale = max(abs(float(cost @ theta)), 1e-300)
        weight = (1 / first) * n / scale
        while True:
            step = self._centre(theta, cost, weight, stop_below)
            if step is None:
                return None
            theta = step
            reached = float(cost @ theta)
            if reached < stop_below or n / weight < gap * abs(reached) or weight > 1e30 / scale:
                return theta
            weight *= 15.0

    def _centre(self, theta: Array, cost: Array, weight: float, stop_below: float) -> Array | None:
        for _ in range(40):
            try:
                factors = [np.linalg.cholesky(block.matrix(theta)) for block in self.blocks]
            except np.linalg.LinAlgError:
                return None
            found = [block.derivatives(factor) for block, factor in zip(self.blocks, factors, strict=True)]
            gradient, hessian = (sum(parts[1:], parts[0]) for parts in zip(*found, strict=True))
            gradient = gradient + weight * cost
            scaling = 1 / np.sqrt(np.maximum(np.diag(hessian), 1e-300))
            scaled = hessian * np.outer(scaling, scaling) + 1e-13 * np.eye(len(theta))
            try:
                direction = -scaling * scipy.linalg.cho_solve(scipy.linalg.cho_factor(scaled), scaling * gradient)
            except (np.linalg.LinAlgError, ValueError):
                return theta
            decrement = float(-gradient @ direction)
            if not np.isfinite(decrement) or decrement < 1e-3:
                return theta
            pairs = zip(self.blocks, factors, strict=True)
            values = np.concatenate([block.along(factor, direction) for block, factor in pairs])
            theta = theta + _line(values, weight * float(cost @ direction)) * direction
            if cost @ theta < stop_below:
                return theta
        return theta


def _line(values: Array, slope: float) -> float:
    """Return the s > 0 that minimizes slope s - sum log(1 + s values)."""
    limit = 0.99 / max(float(-values.min()), 1e-12)
    s = 0.0
    for _ in range(30):
        ratio = values / (1 + s * values)
        change = (ratio.sum() - slope) / max(float((ratio**2).sum()), 1e-300)
        new = min(max(s + change, 0.0), 0.5 * (s + limit))
        if abs(new - s) < 1e-6 * max(s, 1e-9):
            break
        s = new
    return s


def _storage(F_x: Array, nx: int, rate: float) -> Pairs:
    """Return the basis forms of rate^2 x'P x - x+'P x+, one for each entry of P on and above the diagonal."""
    i, j = np.triu_indices(nx)
    x, y = F_x[:nx], F_x[nx:]
    weight = np.where(i == j, 0.5, 1.0)
    index = np.arange(i.size)
    return Pairs(
        np.vstack([x[i], y[i]]),
        np.vstack([x[j], y[j]]),
        np.concatenate([rate * rate * weight, -weight]),
        np.concatenate([index, index]),
    )


def _held(F_x: Array, nx: int) -> Pairs:
    """Return the basis forms of x'P x, one for each entry of P on and above the diagonal."""
    i, j = np.triu_indices(nx)
    return Pairs(F_x[i], F_x[j], np.where(i == j, 0.5, 1.0), np.arange(i.size))


def _placed(parts: list[tuple[Pairs, int]]) -> Pairs:
    """Return the forms together, each with its variables from the place on that stands beside it."""
    a, b, c = (np.concatenate([pairs[k] for pairs, _ in parts]) for k in range(3))
    return Pairs(a, b, c, np.concatenate([pairs.variable + place for pairs, place in parts]))


def _squares(rows: Array) -> Pairs:
    """Return the one form |rows z|^2."""
    return Pairs(rows, rows, np.full(len(rows), 0.5), np.zeros(len(rows), dtype=int))


def _negative(pairs: Pairs) -> Pairs:
    return pairs._replace(c=-pairs.c)


def _stack(parts: list[Pairs]) -> Pairs:
    offset, variables = 0, []
    for part in parts:
        variables.append(part.variable + offset)
        offset += int(part.variable.max(initial=-1)) + 1
    a, b, c = (np.concatenate([part[k] for part in parts]) for k in range(3))
    return Pairs(a, b, c, np.concatenate(variables))


def _symmetric(theta: Array, nx: int) -> Array:
    P = np.zeros((nx, nx))
    P[np.triu_indices(nx)] = theta[: nx * (nx + 1) // 2]
    return np.triu(P) + np.triu(P, 1).T
