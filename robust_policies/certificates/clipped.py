"""Bounds of a cost along known trajectories in which signals are clipped, at limits that are known.

What a clip leaves off, q = s - clip(s), is one more neuron: the loop without a clip stays as it is, and q enters it. In
increments from a nominal trajectory with the signal s_t, |ds_t| <= r_t known, its slope dq / ds lies in a sector of
that step and that trajectory:

    s_t inside, m_t from the nearer limit       [0, max(0, 1 - m_t / r_t)]       nothing is clipped where r_t <= m_t
    s_t beyond a limit by m_t                   [min(1, m_t / r_t), 1]           all is clipped where r_t <= m_t

r_t follows step by step from how far inputs can move a signal of the loop without clips (`reach`, `impulse`): what was
left off at earlier steps, at most (r - m)+ inside and r beyond, is an input like the perturbation. With
dq = lower ds + (upper - lower) w, w a neuron with slopes in [0, 1], the dual bound of `trajectory` has one more
multiplier for each clip and step.

The recursion runs backwards, so all trajectories share it down to the last step at which one of them is beyond a
limit; in what is shared the sector is the hull of theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robust_policies.certificates.lmi import Array, Matrices, signal_maps
from robust_policies.certificates.multipliers import SlopeMultiplier
from robust_policies.certificates.reach import Reach
from robust_policies.certificates.trajectory import MARGIN, Descent, Perturbation, Point, agreeing

_ITERATIONS, _RATE = 40, 0.1
# Steps of which each trajectory has its own recursion, at most.
_OWN = 100
# What multipliers are multiplied with, step by step, until the supremum is finite.
_SCALES = (1.0, 1.3, 2.0, 4.0, 16.0, 256.0, 65536.0)
_FIRST, _ROOM = 2.0, 1.02
# Of mu: the least multiplier of a clip to start from.
_LEAST = 1e-9
_LARGEST = 1e13


class Clips(NamedTuple):
    """Signals of nominal trajectories before they are clipped.

    `nominal` (time, episodes, nc); `low` and `high` (nc,) the limits.
    """

    nominal: Array
    low: Array
    high: Array

    def room(self) -> Array:
        """Return how far (time, episodes, nc) each signal is from the nearer limit, below 0 beyond it."""
        return np.minimum(self.high - self.nominal, self.nominal - self.low)

    def left_off(self, reach: Array, room: Array) -> Array:
        """Return the largest increment of what the clip leaves off, for increments of at most `reach`."""
        return np.where(room >= 0, np.maximum(reach - room, 0.0), reach)

    def slopes(self, reach: Array) -> tuple[Array, Array]:
        """Return the sector (lower, upper), each (time, episodes, nc), of what is left off, for |ds| <= reach."""
        room = self.room()
        share = np.divide(np.abs(room), reach, out=np.ones_like(room), where=reach > np.abs(room))
        return np.where(room >= 0, 0.0, share), np.where(room >= 0, 1.0 - share, 1.0)


class Moves(NamedTuple):
    """What moves the signals that are clipped: the perturbation, and what the clips leave off.

    `free` is of the perturbation, for each signal; `impulses` (steps, nc, nc) what an impulse of what is left off does
    to each signal, and `left` the same for many of them; None where nothing is known.
    """

    free: list[Reach | None]
    impulses: Array
    left: list[list[Reach | None]]

    def unclipped(self, perturbation: Perturbation, steps: int, inputs: int) -> Array:
        """Return how far (steps, nc) the perturbation alone moves each signal by each step."""
        sizes = np.sqrt(perturbation.budgets(steps, inputs))
        unknown = np.full(steps, 0.0 if perturbation.nothing else np.inf)
        whole = perturbation.norm == "total_l2"
        each = [unknown if one is None else one.bound(sizes, whole) for one in self.free]
        return np.stack(each, axis=-1) * (1 + MARGIN)

    def reached(self, clips: Clips, free: Array) -> Array:
        """Return bounds (time, episodes, nc) of the signals' increments, where `free` (time, nc) is `unclipped`."""
        steps, _, count = clips.nominal.shape
        room, reach, left = clips.room(), np.zeros(clips.nominal.shape), np.zeros(clips.nominal.shape)
        for t in range(steps):
            past = np.any(left[:t], axis=0, keepdims=True)[0]
            for signal in range(count):
                reach[t, :, signal] = free[t, signal]
                for entering in range(count):
                    if past[:, entering].any():
                        reach[t, :, signal] += self._from(signal, entering, left[:t, :, entering])
                    if entering < signal and left[t, :, entering].any():
                        reach[t, :, signal] += self.impulses[0, signal, entering] * left[t, :, entering]
                left[t, :, signal] = clips.left_off(reach[t, :, signal], room[t, :, signal])
        return reach

    def _from(self, signal: int, entering: int, past: Array) -> Array:
        """Return how far (episodes,) what was left off in the past (t, episodes) moves a signal now."""
        if not np.isfinite(past).all():
            return np.full(past.shape[1], np.inf)
        steps, known = len(past), self.left[signal][entering]
        gains = self.impulses[steps:0:-1, signal, entering]
        found = gains @ past if np.isfinite(gains).all() else np.full(past.shape[1], np.inf)
        found = found if known is None else np.minimum(found, known.after(past))
        return found * (1 + MARGIN)


class ClippedAlong:
    """A loop with clips, in increments along nominal trajectories.

    Args:
        loop: d -> z around the neurons and, the last ones, what the clips leave off.
        nominal: z (time, episodes, nz), of the trajectories as they are clipped.
        lower, upper: (time, episodes, nc) the sectors of what is left off.
        outside: (time, episodes) where a signal is beyond a limit.
    """

    def __init__(self, loop: Matrices, nominal: Array, lower: Array, upper: Array, outside: Array) -> None:
        self.nx, self.nv, self.nd, nz = loop.sizes
        self.loop, self.nominal, count = loop, nominal, lower.shape[2]
        self.cost = np.square(nominal).sum((0, 2))
        F_x, F_r = signal_maps(loop, True)
        maps = np.vstack((F_x[self.nx :], F_r[2 * self.nv : 2 * self.nv + nz]))
        self.cells = self.nv - count
        v, w = F_r[: self.cells], F_r[self.nv : self.nv + self.cells]
        self.a, self.b = SlopeMultiplier(self.cells).pairs(v, w)[:2]
        self.clips = slice(self.nx + self.cells, self.nx + self.nv)
        self.plain = maps[:, self.clips]
        late = np.flatnonzero(outside.any(1))
        self.own = min(int(late[-1]) + 1 if len(late) else 0, _OWN)
        first, rest = slice(0, self.own), slice(self.own, None)
        hull = lower[rest].min(1, keepdims=True), upper[rest].max(1, keepdims=True)
        self.parts = [self._placed(maps, F_r[: self.nv], lower[first], upper[first])]
        self.parts.append(self._placed(maps, F_r[: self.nv], *hull))

    @property
    def steps(self) -> int:
        """Return the number of steps."""
        return len(self.nominal)

    def bounds(
        self,
        mu: Array,
        theta: Array,
        perturbation: Perturbation,
        iterations: int = _ITERATIONS,
    ) -> tuple[Array, Array] | None:
        """Return the smallest bound (episodes,) found and the worst perturbation, None where none is found.

        mu (1 or time, groups) and theta (1 or time, cells) are multipliers of the loop without clips, to start from.
        """
        groups = perturbation.groups(self.nd)
        whole = perturbation.norm == "total_l2"
        start = self._start(mu, np.broadcast_to(theta, (self.steps, theta.shape[1])), groups, whole)
        if start is None:
            return None
        descent = Descent(self, perturbation, groups)
        least = descent.run(*start, iterations, _RATE)
        return None if least is None or descent.worst is None else (least, descent.worst)

    def at(self, mu: Array, theta: Array, groups: Array) -> Point | None:
        """Return the supremum for mu (1 or time, groups) and theta (time, cells + nc), None if there is none."""
        back = self._backward(np.broadcast_to(mu, (self.steps, mu.shape[1])) @ groups, theta)
        if back is None:
            return None
        kappa, gains, offsets = back
        point = self._forward(gains, offsets, groups)
        return agreeing(point, kappa, mu, theta)

    def _placed(self, maps: Array, inner: Array, lower: Array, upper: Array) -> tuple[Array, Array, Array]:
        """Return the maps (time, episodes, nx + nz, n) with each dq in its sector, the rows of each ds, and widths."""
        lead, count = lower.shape[:2], lower.shape[2]
        whole = np.broadcast_to(maps, (*lead, *maps.shape)).copy()
        whole[..., self.clips] = 0.0
        rows, left = np.empty((*lead, count, maps.shape[1])), np.empty((*lead, count, maps.shape[1]))
        width = upper - lower
        for clip in range(count):
            row = np.broadcast_to(inner[self.cells + clip], (*lead, maps.shape[1])).copy()
            row[..., self.clips] = 0.0
            for before in range(clip):
                row += inner[self.cells + clip, self.clips][before] * left[..., before, :]
            rows[..., clip, :] = row
            left[..., clip, :] = lower[..., clip, None] * row
            left[..., clip, self.clips.start + clip] += width[..., clip]
            whole += self.plain[:, clip, None] * left[..., clip, None, :]
        return whole, rows, width

    def _maps(self, t: int) -> tuple[Array, Array, Array]:
        """Return the maps (episodes or 1, nx + nz, n), rows (.., nc, n) and widths (.., nc) of a step."""
        part, at = (self.parts[0], t) if t < self.own else (self.parts[1], t - self.own)
        return part[0][at], part[1][at], part[2][at]

    def _form(self, P: Array, mu: Array, theta: Array, maps: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        """Return the form (.., n, n) of a step, and how much of it does not depend on mu and theta."""
        whole, rows, width = maps
        F, Z = whole[:, : self.nx], whole[:, self.nx :]
        base = F.transpose(0, 2, 1) @ (P @ F) + Z.transpose(0, 2, 1) @ Z
        return base, base + self._supply(mu, theta, rows, width)

    def _supply(self, mu: Array, theta: Array, rows: Array, width: Array) -> Array:
        """Return the part (.., n, n) of the multipliers mu (nd,) and theta (cells + nc,)."""
        N = (self.a * theta[: self.cells, None]).T @ self.b
        N = np.broadcast_to(N + N.T, (len(rows), *N.shape)).copy()
        inputs = np.arange(N.shape[-1] - self.nd, N.shape[-1])
        N[:, inputs, inputs] -= mu
        for clip in range(rows.shape[1]):
            place = self.clips.start + clip
            weight = theta[self.cells + clip] * np.square(width[:, clip])
            N[:, place] += weight[:, None] * rows[:, clip]
            N[:, :, place] += weight[:, None] * rows[:, clip]
            # A clip that leaves off nothing, or all, has no neuron: its place counts for nothing.
            N[:, place, place] -= np.where(weight > 0, 2.0 * weight, 1.0)
        return N

    def _start(self, mu: Array, theta: Array, groups: Array, whole: bool) -> tuple[Array, Array] | None:
        """Return multipliers for which the supremum is finite, found step by step, None if there are none."""
        nx, count = self.nx, self.plain.shape[1]
        each = np.broadcast_to(mu, (self.steps, mu.shape[1])).copy()
        made = np.concatenate((theta, np.ones((self.steps, count))), axis=1)
        P, scale = np.zeros((1, nx, nx)), 1.0
        for t in range(self.steps - 1, -1, -1):
            maps = self._maps(t)
            straight = np.einsum("ic,gij,jc->gc", self.plain[:nx], P, self.plain[:nx]).max(0)
            straight = straight + np.square(self.plain[nx:]).sum(0)
            # What is left off in the last steps of a loop with a delay changes no cost any more.
            made[t, self.cells :] = _FIRST * np.maximum(straight, max(1e-12 * straight.max(), _LEAST * mu.max()))
            base, _ = self._form(P, np.zeros(self.nd), made[t], maps)
            for factor in _SCALES:
                less = factor / _ROOM
                H = base + self._supply(less * each[t] @ groups, less * made[t], *maps[1:])
                if _negative(H[:, nx:, nx:]):
                    break
            else:
                return None
            scale = max(scale, factor)
            each[t], made[t] = factor * each[t], factor * made[t]
            found = self._next(base + self._supply(each[t] @ groups, made[t], *maps[1:]))
            if found is None:
                return None
            P = found[0]
        if not whole:
            return each, made
        # One mu for all steps: the largest, with which each of them is finite too.
        return each.max(0, keepdims=True), made

    def _next(self, H: Array) -> tuple[Array, Array] | None:
        """Return P (.., nx, nx) of the step before and the gains (.., nr, nx), None where H_rr is not negative."""
        nx = self.nx
        if not _negative(H[:, nx:, nx:]):
            return None
        gains = -np.linalg.solve(H[:, nx:, nx:], H[:, nx:, :nx])
        P = H[:, :nx, :nx] + H[:, :nx, nx:] @ gains
        return 0.5 * (P + P.transpose(0, 2, 1)), gains

    def _backward(self, mu: Array, theta: Array) -> tuple[Array, list[Array], list[Array]] | None:
        """Return (kappa (episodes,), K_t (.., nr, nx), k_t (episodes, nr)) with the maximum at r = K x + k."""
        nx, (steps, episodes, _) = self.nx, self.nominal.shape
        P, p, kappa = np.zeros((1, nx, nx)), np.zeros((episodes, nx)), np.zeros(episodes)
        gains: list[Array] = [P] * steps
        offsets: list[Array] = [p] * steps
        most = _LARGEST * max(1.0, float(mu.max()))
        for t in range(steps - 1, -1, -1):
            maps = self._maps(t)
            _, H = self._form(P, mu[t], theta[t], maps)
            found = self._next(H)
            if found is None or not np.abs(found[0]).max(initial=0.0) <= most:
                return None
            P, gains[t] = found
            drive = _along(np.hstack((p, self.nominal[t])), maps[0])
            inner = H[:, nx:, nx:]
            if len(inner) == 1:
                offsets[t] = -np.linalg.solve(inner[0], drive[:, nx:].T).T
            else:
                offsets[t] = -np.linalg.solve(inner, drive[:, nx:, None])[..., 0]
            kappa += (drive[:, nx:] * offsets[t]).sum(1)
            p = drive[:, :nx] + _along(offsets[t], H[:, nx:, :nx])
        return kappa + self.cost, gains, offsets

    def _forward(self, gains: list[Array], offsets: list[Array], groups: Array) -> Point:
        """Return the point that attains the supremum, as that of `trajectory`."""
        nx, (steps, episodes, _) = self.nx, self.nominal.shape
        x, cost = np.zeros((episodes, nx)), np.zeros(episodes)
        size = nx + self.nv + self.nd
        path, clips = np.empty((steps, episodes, size)), np.empty((steps, episodes, self.plain.shape[1]))
        for t in range(steps):
            whole, rows, width = self._maps(t)
            path[t, :, :nx] = x
            path[t, :, nx:] = _along(x, gains[t].transpose(0, 2, 1)) + offsets[t]
            after = _along(path[t], whole.transpose(0, 2, 1))
            x = after[:, :nx]
            cost += np.square(self.nominal[t] + after[:, nx:]).sum(1)
            w = path[t, :, self.clips]
            v = _along(path[t], rows.transpose(0, 2, 1))
            clips[t] = 2.0 * np.square(width) * w * (v - w)
        cells = 2.0 * (path @ self.a.T) * (path @ self.b.T)
        d = path[..., size - self.nd :]
        return Point(cost, d, np.square(d) @ groups.T, np.concatenate((cells, clips), axis=2))


def _along(rows: Array, maps: Array) -> Array:
    """Return rows (episodes, k) @ maps (episodes or 1, k, n)."""
    return rows @ maps[0] if len(maps) == 1 else (rows[:, None] @ maps)[:, 0]


def _negative(H: Array) -> bool:
    """Return whether all of (.., n, n) are negative definite."""
    try:
        np.linalg.cholesky(-0.5 * (H + H.transpose(0, 2, 1)))
    except np.linalg.LinAlgError:
        return False
    return True
