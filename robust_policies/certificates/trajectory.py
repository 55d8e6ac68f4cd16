"""What a bounded perturbation can make of the cost of trajectories that are known: upper bounds, weakest first.

A system around neurons follows x+ = A x + B1 w + B2 d, z = C2 x + D21 w + D22 d in increments from a nominal
trajectory, whose z_t (the root of each step's cost) is known; start and noise are the same, so x_0 = 0. Asked is the
largest J = sum_t |z_t + dz_t|^2 over every d of a size. With multipliers theta >= 0 of the neurons, N_theta >= 0:

    triangle    sqrt(J) <= sqrt(J_nominal) + g |d|,   g the gain d -> z
    dual        J <= kappa(mu, theta) + sum_t mu_t |d_t|^2,   kappa the supremum over all (w, d) of
                sum_t |z_t + dz_t|^2 - mu_t |d_t|^2 + N_theta_t(v_t, w_t)

kappa is finite where the backward recursion, with r = (w, d) and V_T = 0,

    H = C'C + F' P F - mu dd' + N,   h_r = D'z_t + B'p,   h_x = C'z_t + A'p,   H_rr < 0
    P <- H_xx - H_xr H_rr^-1 H_rx,   p <- h_x - H_xr H_rr^-1 h_r,   kappa <- kappa + |z_t|^2 - h_r' H_rr^-1 h_r

has all its Cholesky factors. The bound is convex in (mu, theta), as a supremum of functions that are affine in them,
and every member of the cone gives one, so a descent needs no proof of its own. Its gradient is the constraint at the
point that attains the supremum, which one pass forward gives. mu = (1 + s) g^2 and (1 + s) theta of the gain's proof
give the triangle's bound for the best s, so the descent starts there.

Everything here is float64 arithmetic: what it may have rounded is `MARGIN`, not a proof.

Sources: S. Boyd, L. El Ghaoui, E. Feron and V. Balakrishnan, "Linear Matrix Inequalities in System and Control Theory"
(1994), section 2.6, for the multipliers; T. Basar and P. Bernhard, "H-infinity Optimal Control" (1995), chapter 3, for
the recursion with a known trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import scipy

from robust_policies.certificates.ball import NORMS
from robust_policies.certificates.descent import descend
from robust_policies.certificates.lmi import Array, Matrices, signal_maps
from robust_policies.certificates.multipliers import Multiplier, admissible
from robust_policies.certificates.neurons import Neurons, proven_by_neurons
from robust_policies.certificates.optimum import Candidate, contraction, small_enough
from robust_policies.certificates.peak import metric_at
from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError

# What is added to a bound, relative, for the rounding of its recursion.
MARGIN = 1e-6
# How far the supremum may differ, relative, from the value at the point that attains it.
_AGREE = 1e-8
_LARGEST = 1e13
_RATE = 0.1
_THIN = 1e-4
# Proofs of a gain are compared, as a search may end far above the least, until the best two agree so well, or so many.
_PROVEN, _ALIKE = 6, 1.01
# Shares of the way from the loop's spectral radius to 1 at which a metric is looked for.
_SHARES = (0.5, 0.2, 0.8, 0.95, 0.99, 0.999)


class Gain(NamedTuple):
    """A proven gain of a loop, and the multipliers theta (size,) of x'Px - x+'Px+ - |z|^2 + gain^2 |d|^2 - N >= 0."""

    gain: float
    theta: Array


def gain_of(neurons: Neurons, metrics: Iterable[tuple[float, Candidate]] | None = None) -> Gain | None:
    """Return the least gain that is proven of a loop around its neurons, and its multipliers, None without a proof.

    `metrics` to start from, which do not depend on the outputs; None: those of `rated`.
    """
    model, found = neurons.model, []
    if not np.abs(np.linalg.eigvals(model.A)).max(initial=0.0) < 1.0:
        return None
    if not (model.C2.any() or model.D21.any() or model.D22.any()) and model.error is None:
        return Gain(0.0, np.zeros(neurons.family.size))
    for _, start in rated(neurons) if metrics is None else metrics:
        proven = proven_by_neurons(Neurons(model, start.theta), start.P)
        if proven is not None and proven.gamma is not None:
            found.append(Gain(proven.gamma, proven.theta))
        best = sorted(one.gain for one in found)[:2]
        if len(found) == _PROVEN or (len(best) == 2 and best[1] <= _ALIKE * best[0]):
            break
    return min(found, key=lambda one: one.gain, default=None)


def balanced(neurons: Neurons) -> Neurons:
    """Return a loop in coordinates of its state in which what enters moves all of them alike: searches go further.

    They are those of the linear part's controllability Gramian, its smallest axes as long as `_THIN` of the largest.
    """
    model = neurons.model
    enters = [part / max(float(np.linalg.norm(part, 2)), 1e-12) for part in (model.B1, model.B2) if part.size]
    drive = np.hstack(enters)
    if not np.abs(np.linalg.eigvals(model.A)).max(initial=0.0) < 1.0 or not drive.any():
        return neurons
    gramian = scipy.linalg.solve_discrete_lyapunov(model.A, drive @ drive.T)
    values, vectors = np.linalg.eigh(0.5 * (gramian + gramian.T))
    if not (np.isfinite(values).all() and values[-1] > 0):
        return neurons
    inverse = (vectors / np.maximum(values, _THIN**2 * values[-1])) @ vectors.T
    moved = model.in_coordinates(np.linalg.cholesky(0.5 * (inverse + inverse.T)).T)
    return neurons if moved is None else neurons._replace(model=moved)


def contracting(neurons: Neurons) -> Iterator[Candidate]:
    """Yield metrics, each with multipliers, in which a loop is thought to contract; nothing is proven."""
    for _, found in rated(neurons):
        yield found


def rated(neurons: Neurons) -> Iterator[tuple[float, Candidate]]:
    """Yield rates below 1, and the metrics, each with multipliers, in which a loop is thought to contract like them.

    A search from nothing does better where the neurons see only part of the loop, the multipliers that come with the
    layers where there are many neurons.
    """
    model, family, theta = neurons.model, neurons.family, neurons.theta
    radius = float(np.abs(np.linalg.eigvals(model.A)).max(initial=0.0))
    for share in _SHARES:
        rate = radius + share * (1.0 - radius)
        if family.size and small_enough(model, family) and (found := contraction(model, family, rate)) is not None:
            yield rate, found
        if (metric := metric_at(model, family, theta, rate)) is not None:
            yield rate, Candidate(metric, theta)


class Noise(NamedTuple):
    """Inputs of a loop that are bounded one by one: `before` the perturbation's and `after` them, each by `bound`."""

    before: int
    after: int
    bound: float


class Perturbation(NamedTuple):
    """Every sequence d (time, nd) of a size: of each step's l2 or linf norm, or of the l2 norm of the whole.

    With a noise the inputs are (noise before, d, noise after), and each entry of the noise is bounded at every step.
    """

    norm: str
    size: float
    noise: Noise | None = None

    @property
    def nothing(self) -> bool:
        """Return whether zero is the only member."""
        return self.size == 0.0 and (self.noise is None or self.noise.bound == 0.0)

    def total(self, steps: int, inputs: int) -> float:
        """Return the largest l2 norm of a whole sequence of all inputs."""
        spent = self.budgets(steps, inputs)
        return math.sqrt(float(spent.sum()) * (1 if self.norm == "total_l2" else steps)) * (1 + 1e-14)

    def groups(self, inputs: int) -> Array:
        """Return the multipliers' map (groups, inputs): which inputs' sum of squares has a budget together."""
        if self.norm == "per_step_linf":
            return np.eye(inputs)
        first, last = (self.noise.before, inputs - self.noise.after) if self.noise is not None else (0, inputs)
        together = np.zeros((1, inputs))
        together[0, first:last] = 1.0
        alone = np.eye(inputs)
        return np.vstack((alone[:first], together, alone[last:]))

    def budgets(self, steps: int, inputs: int) -> Array:
        """Return (groups,) what each group's sum of squares may be: at each step, of a total norm in all of them."""
        whole = self.norm == "total_l2"
        if self.noise is None:
            return np.full(len(self.groups(inputs)), self.size**2)
        one = self.noise.bound**2 * (steps if whole else 1)
        own = len(self.groups(inputs)) - self.noise.before - self.noise.after
        return np.repeat([one, self.size**2, one], [self.noise.before, own, self.noise.after])


class CostBounds(NamedTuple):
    """Upper bounds of the cost, (episodes,) each, the smaller ones later; None where the recursion has no factors.

    `triangle` is the triangle bound, `constant` also uses the dual with one multiplier for all steps, `varying` also
    with one for each. `worst` (time, episodes, nd) is the perturbation at which the last dual was attained, as a start
    of a search for a bad one, `multipliers` the mu and theta of it.
    """

    triangle: Array
    constant: Array
    varying: Array
    worst: Array | None
    multipliers: tuple[Array, Array] | None = None

    @property
    def least(self) -> Array:
        """Return the smallest bound of each episode."""
        return self.varying


class Point(NamedTuple):
    """A bound (episodes,) without the budget's part, the point that attains it, and the constraints there."""

    kappa: Array
    worst: Array
    squares: Array
    forms: Array


class Along:
    """A loop in increments along nominal trajectories.

    Args:
        loop: d -> z around the neurons.
        family: what is known of them.
        nominal: z (time, episodes, nz).
    """

    def __init__(self, loop: Matrices, family: Multiplier, nominal: Array) -> None:
        nx, nv, _, nz = loop.sizes
        if nominal.ndim != 3 or nominal.shape[2] != nz:
            raise ShapeError(f"nominal has shape {nominal.shape}; expected (time, episodes, {nz}).")
        self.loop, self.family, self.nominal = loop, family, nominal
        F_x, F_r = signal_maps(loop, True)
        self.F = F_x[nx:]
        self.v, self.w, self.z, self.d = np.split(F_r, np.cumsum([nv, nv, nz]))
        self.pairs = family.pairs(self.v, self.w)
        self.zz = self.z.T @ self.z
        self.cost = np.square(nominal).sum((0, 2))

    @property
    def steps(self) -> int:
        """Return the number of steps."""
        return len(self.nominal)

    def triangle(self, gain: float, perturbation: Perturbation) -> Array:
        """Return the triangle bound (episodes,)."""
        total = perturbation.total(self.steps, self.loop.sizes[2])
        return np.square(np.sqrt(self.cost) + gain * total) * (1 + 1e-12)

    def bounds(self, gain: Gain, perturbation: Perturbation, iterations: tuple[int, int] = (12, 40)) -> CostBounds:
        """Return the bounds of every perturbation of this size.

        Args:
            gain: of the loop, with the multipliers of its proof.
            perturbation: the norm and the size.
            iterations: of the two descents, with constant and with varying multipliers.

        Raises:
            InvalidValueError: the size is negative or not finite, or a multiplier is no member of the family's cone.
            UnknownNameError: there is no such norm.
        """
        if perturbation.norm not in NORMS:
            raise UnknownNameError.among("norm", perturbation.norm, NORMS)
        if not (math.isfinite(perturbation.size) and perturbation.size >= 0):
            raise InvalidValueError(f"The size is {perturbation.size!r}; expected a finite number >= 0.")
        if not admissible(self.family, gain.theta):
            raise InvalidValueError(
                "A multiplier is negative or not finite; expected numbers >= 0, one for each neuron."
            )
        first = self.triangle(gain.gain, perturbation)
        if perturbation.nothing or gain.gain == 0.0:
            return CostBounds(first, first, first, None)
        total = perturbation.total(self.steps, self.loop.sizes[2])
        share = math.sqrt(float(self.cost.mean())) / (gain.gain * total)
        scale = 1.0 + max(share, 1e-6)
        groups = perturbation.groups(self.loop.sizes[2])
        mu = np.full((1, len(groups)), scale * gain.gain**2 * (1 + 1e-9))
        theta = np.maximum(scale * gain.theta, 1e-12 * max(float(gain.theta.max(initial=0.0)), 1e-300))[None]
        descent = Descent(self, perturbation, groups)
        constant = descent.run(mu, theta, iterations[0], _RATE)
        second = first if constant is None else np.minimum(first, constant)
        if constant is None:
            return CostBounds(first, second, second, None)
        mu, theta = descent.best
        times = (self.steps, 1)
        moving = mu if perturbation.norm == "total_l2" else np.tile(mu, times)
        varying = descent.run(moving, np.tile(theta, times), iterations[1], _RATE)
        third = second if varying is None else np.minimum(second, varying)
        return CostBounds(first, second, third, descent.worst, descent.best)

    def at(self, mu: Array, theta: Array, groups: Array) -> Point | None:
        """Return the supremum for mu (1 or time, groups) and theta (1 or time, size), None if there is none.

        `groups` (groups, nd) says which inputs each mu is of.
        """
        back = self._backward(mu, theta, groups)
        if back is None:
            return None
        kappa, gains, offsets = back
        point = self._forward(gains, offsets, groups)
        return agreeing(point, kappa, mu, theta)

    def _backward(self, mu: Array, theta: Array, groups: Array) -> tuple[Array, list[Array], list[Array]] | None:
        """Return (kappa (episodes,), K_t (nr, nx), k_t (episodes, nr)) with the maximum at r = K x + k."""
        nx, _, nd, _ = self.loop.sizes
        steps, episodes, _ = self.nominal.shape
        a, b, c, variable = self.pairs
        inputs = np.arange(self.F.shape[1] - nd, self.F.shape[1])
        P, p, kappa = np.zeros((nx, nx)), np.zeros((episodes, nx)), np.zeros(episodes)
        gains: list[Array] = [P] * steps
        offsets: list[Array] = [P] * steps
        N = np.zeros_like(self.zz)
        # SciPy's functions around LAPACK's cost as much as the small matrices here.
        factored, solution = scipy.linalg.lapack.dpotrf, scipy.linalg.lapack.dpotrs
        for t in range(steps - 1, -1, -1):
            if len(theta) > 1 or t == steps - 1:
                N = (a * (c * theta[t if len(theta) > 1 else 0][variable])[:, None]).T @ b
                N = self.zz + N + N.T
            H = N + self.F.T @ (P @ self.F)
            H[inputs, inputs] -= mu[t if len(mu) > 1 else 0] @ groups
            factor, failed = factored(-H[nx:, nx:], lower=1)
            if failed:
                return None
            drive = self.nominal[t] @ self.z + p @ self.F
            solved, _ = solution(factor, np.hstack((H[nx:, :nx], drive[:, nx:].T)), lower=1)
            gains[t], offsets[t] = solved[:, :nx], solved[:, nx:].T
            kappa += (drive[:, nx:] * offsets[t]).sum(1)
            p = drive[:, :nx] + offsets[t] @ H[nx:, :nx]
            P = H[:nx, :nx] + H[:nx, nx:] @ gains[t]
            P = 0.5 * (P + P.T)
            if not np.abs(P).max(initial=0.0) <= _LARGEST * max(1.0, float(np.abs(mu).max())):
                return None
        return kappa + self.cost, gains, offsets

    def _forward(self, gains: list[Array], offsets: list[Array], groups: Array) -> Point:
        """Return the point that attains the supremum: its cost, d, |d|^2 of each group, and the family's forms."""
        steps, episodes, _ = self.nominal.shape
        nx, _, nd, _ = self.loop.sizes
        x = np.zeros((episodes, nx))
        path = np.empty((steps, episodes, self.F.shape[1]))
        for t in range(steps):
            path[t, :, :nx], path[t, :, nx:] = x, x @ gains[t].T + offsets[t]
            x = path[t] @ self.F.T
        a, b, c, variable = self.pairs
        each = 2.0 * c * (path @ a.T) * (path @ b.T)
        forms = np.zeros((steps, episodes, self.family.size))
        if len(c) == self.family.size:
            forms = each
        elif len(c):
            for index in range(self.family.size):
                forms[..., index] = each[..., variable == index].sum(-1)
        d = path[..., path.shape[2] - nd :]
        cost = np.square(self.nominal + path @ self.z.T).sum((0, 2))
        return Point(cost, d, np.square(d) @ groups.T, forms)


def agreeing(point: Point, kappa: Array, mu: Array, theta: Array) -> Point | None:
    """Return the point with its supremum kappa (episodes,), None where the value there is another one."""
    each = point.kappa - (point.squares * mu[:, None]).sum((0, 2)) + (point.forms * theta[:, None]).sum((0, 2))
    size = np.abs(point.kappa) + (point.squares * mu[:, None]).sum((0, 2)) + 1e-300
    agree = np.isfinite(kappa).all() and np.isfinite(each).all() and (np.abs(kappa - each) <= _AGREE * size).all()
    return point._replace(kappa=kappa) if agree else None


class Dual(Protocol):
    """What a descent needs to know of a dual bound."""

    @property
    def steps(self) -> int:
        """Return the number of steps."""
        ...

    def at(self, mu: Array, theta: Array, groups: Array) -> Point | None:
        """Return the supremum for mu (1 or time, groups) and theta (1 or time, size), None if there is none."""
        ...


class Descent:
    """Descent on the logarithms of the multipliers of a dual bound, which keeps each episode's smallest bound.

    `best` are the multipliers of the smallest mean, `worst` (time, episodes, nd) the perturbation that attains it.
    """

    def __init__(self, dual: Dual, perturbation: Perturbation, groups: Array) -> None:
        self.dual, self.groups = dual, groups
        self.budget = perturbation.budgets(dual.steps, groups.shape[1])
        self.whole = perturbation.norm == "total_l2"
        self.best: tuple[Array, Array] = (np.zeros(0), np.zeros(0))
        self.worst: Array | None = None

    def run(self, mu: Array, theta: Array, iterations: int, rate: float) -> Array | None:
        """Return the smallest bound (episodes,) met, None where the first point gives none.

        mu (1 or time, groups) and theta (1 or time, size) are where it starts; what has one row is the same at all
        steps.
        """
        spent = self.budget * (1 if self.whole else self.dual.steps / len(mu))
        shapes = mu.shape, theta.shape
        least: Array | None = None
        mean = math.inf

        def at(logs: Array) -> tuple[float, Array] | None:
            nonlocal least, mean
            mu, theta = np.exp(logs[: shapes[0][0] * shapes[0][1]]), np.exp(logs[shapes[0][0] * shapes[0][1] :])
            mu, theta = mu.reshape(shapes[0]), theta.reshape(shapes[1])
            point = self.dual.at(mu, theta, self.groups)
            if point is None:
                return None
            bound = (point.kappa + float((mu * spent).sum())) * (1 + MARGIN)
            least = bound if least is None else np.minimum(least, bound)
            if bound.mean() < mean:
                mean, self.best, self.worst = float(bound.mean()), (mu, theta), point.worst
            return float(bound.mean()), self._slope(point, mu, theta, spent)

        descend(at, np.concatenate((np.log(mu).ravel(), np.log(theta).ravel())), iterations, rate)
        return least

    def _slope(self, point: Point, mu: Array, theta: Array, spent: Array) -> Array:
        """Return the gradient of the mean bound by the logarithms of mu and theta."""
        squares, forms = point.squares.mean(1), point.forms.mean(1)
        squares = squares.sum(0, keepdims=True) if len(mu) == 1 else squares
        forms = forms.sum(0, keepdims=True) if len(theta) == 1 else forms
        return np.concatenate(((mu * (spent - squares)).ravel(), (theta * forms).ravel()))
