"""Linear models of plants about an equilibrium: of a task's own step, by automatic differentiation.

Everything that makes a `LinearModel` can be imported from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import scipy
import torch
from numpy.typing import ArrayLike
from torch.autograd.functional import hessian as torch_hessian
from torch.autograd.functional import jacobian as torch_jacobian

from robust_policies.control.augment import with_input_delay, with_integral_action
from robust_policies.control.equilibrium import stand_still
from robust_policies.control.linear_model import Array, LinearModel, array, from_control, from_matrices
from robust_policies.control.mujoco_model import linearize_mujoco, skip_frames
from robust_policies.errors import InvalidValueError

__all__ = [
    "LinearModel",
    "from_control",
    "from_matrices",
    "goal",
    "linearize_mujoco",
    "linearize_plant",
    "skip_frames",
    "with_input_delay",
    "with_integral_action",
]

DIFFERENCE = 1e-6
STARTS = 1024


class StepPlant(Protocol):
    """What a plant must offer: `robust_policies.envs.Plant` does.

    States are (batch, state_size), actions (batch, action_size), observations (batch, observation_size), rewards and
    terminations (batch,), all in the plant's units; noises and disturbances (batch, size) or None for none.
    """

    time_step: float
    state_size: int
    reset_size: int
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    output_names: tuple[str, ...]
    disturbance_names: tuple[str, ...]
    process_noise_size: int
    measurement_noise_size: int
    action_low: np.ndarray
    action_high: np.ndarray

    def nominal(self) -> Mapping[str, torch.Tensor]: ...
    def prepare(self, physical: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]: ...
    def advance(
        self, state: torch.Tensor, action: torch.Tensor, params: Any, noise: Any = None, disturbance: Any = None
    ) -> torch.Tensor: ...
    def observe(self, state: torch.Tensor, params: Any, noise: Any = None) -> torch.Tensor: ...
    def reward(
        self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor, params: Any
    ) -> torch.Tensor: ...
    def initial(self, uniform: torch.Tensor, params: Any, options: Any = None) -> torch.Tensor: ...
    def terminated(self, state: torch.Tensor, params: Any) -> torch.Tensor: ...


def linearize_plant(plant: StepPlant, state: ArrayLike | None = None, action: ArrayLike | None = None) -> LinearModel:
    """Return the linear model of one step of a plant, at its nominal parameters, about an equilibrium.

    The equilibrium is sought from `state` (n,) and `action` (m,), in the plant's units; without them from the middle of
    the start distribution or from zero, whichever the task rewards more, and from the middle of the action's range.
    Derivatives are exact (float64), or central differences where the plant says that it is not `differentiable`.

    A state that nothing moves and that stays what it is (a clock, a target, a constant disturbance) is a reference or a
    disturbance: it is held at its value, and left out. So is a state that nothing depends on. The origin names them.
    Q and R are half the curvature of minus the reward, W and V those of the plant's noise, linearized too.

    Raises:
        ShapeError, NonFiniteError: `state` or `action` does not fit. InvalidValueError: no equilibrium is near, or the
        plant has no finite derivatives there.
    """
    local = _Derivatives(plant)
    low, high = np.asarray(plant.action_low, dtype=np.float64), np.asarray(plant.action_high, dtype=np.float64)
    n, m = plant.state_size, len(high)
    guess_x = goal(plant) if state is None else array("state", state, (n,))
    guess_u = _middle(low, high) if action is None else array("action", action, (m,))
    A, B = local.matrices(guess_x, guess_u)
    moving = ~_held(A, B)

    def drift(x: Array, u: Array) -> Array:
        return (local.advance(x, u) - x)[moving]

    def jacobian(x: Array, u: Array) -> tuple[Array, Array]:
        A, B = local.matrices(x, u)
        return (A - np.eye(n))[np.ix_(moving, moving)], B[moving]

    def move(x: Array, change: Array) -> Array:
        following = x.copy()
        following[moving] += change
        return following

    x, u, residual = stand_still(drift, jacobian, move, guess_x, guess_u, low, high)
    if local.ended(x):
        raise InvalidValueError(
            f"The only equilibrium found, {_shown(x)}, is where the episode ends: this task has no linear model there. "
            "Give the state (and action) of another."
        )
    A, B = local.matrices(x, u)
    C = local.observed(x)
    Q, R = local.cost(x, u)
    matters = A.any(axis=0) | C.any(axis=0) | (np.zeros(n, dtype=bool) if Q is None else Q.any(axis=0))
    kept = np.flatnonzero(moving & matters)
    held = [name for name, moves in zip(plant.state_names, moving, strict=True) if not moves]
    square = np.ix_(kept, kept)
    W, V = local.noise(x, u)
    exact = all(hasattr(plant, name) for name in "ABC")
    return LinearModel(
        A=A[square],
        B=B[kept],
        C=C[:, kept],
        Bw=_rows(local.disturbed(x, u), kept),
        time_step=plant.time_step,
        x0=x[kept],
        u0=u,
        y0=local.observe(x),
        equilibrium=x,
        residual=residual,
        angles=() if exact else tuple(i for i, name in enumerate(plant.output_names) if name.endswith("[rad]")),
        state_names=tuple(plant.state_names[i] for i in kept),
        input_names=tuple(plant.action_names),
        output_names=tuple(plant.output_names),
        W=None if W is None else W[square],
        V=V,
        Q=None if Q is None else Q[square],
        R=R,
        state_range=local.ranges()[kept],
        action_low=low,
        action_high=high,
        exact=exact,
        origin=f"{type(plant).__name__}, "
        + ("its matrices" if exact else f"{local.how} about x0 = {_shown(x[kept])}")
        + (f"; held: {', '.join(held)}" if held else ""),
    )


def goal(plant: StepPlant) -> Array:
    """Return the middle of a plant's start distribution (state_size,), or zero if the task rewards it more."""
    local = _Derivatives(plant)
    middle = plant.initial(torch.full((1, plant.reset_size), 0.5, dtype=torch.float64), local.params)
    rest = _row(_middle(plant.action_low, plant.action_high))
    zero = torch.zeros_like(middle)
    rewards = [plant.reward(place, rest, place, local.params).item() for place in (middle, zero)]
    return _numpy(zero if rewards[1] > rewards[0] and not local.ended(_numpy(zero)[0]) else middle)[0]


class _Derivatives:
    """A plant's functions of arrays in float64, at its nominal parameters, and their derivatives."""

    def __init__(self, plant: StepPlant) -> None:
        if not hasattr(plant, "advance"):
            raise InvalidValueError(
                f"{type(plant).__name__} has no advance(); expected a plant whose method for one time step is "
                "advance(state, action, params, noise, disturbance)."
            )
        self.plant, self.params = plant, plant.prepare(plant.nominal())
        self.automatic = getattr(plant, "differentiable", True)
        self.how = "automatic differentiation" if self.automatic else "central differences"

    def advance(self, x: Array, u: Array) -> Array:
        return _numpy(self.plant.advance(_row(x), _row(u), self.params))[0]

    def observe(self, x: Array) -> Array:
        return _numpy(self.plant.observe(_row(x), self.params))[0]

    def ended(self, x: Array) -> bool:
        """Return whether an episode ends at a state."""
        return bool(getattr(self.plant, "terminates", False)) and bool(
            self.plant.terminated(_row(x), self.params).any()
        )

    def matrices(self, x: Array, u: Array) -> tuple[Array, Array]:
        """Return (A (n, n), B (n, m)) of the step."""
        whole = self._slopes(
            lambda both: self.plant.advance(both[:, : len(x)], both[:, len(x) :], self.params), np.concatenate((x, u))
        )
        if not np.isfinite(whole).all():
            raise InvalidValueError(
                f"The plant's step has no finite derivative at the state {_shown(x)} and action {_shown(u)}; give "
                "another state."
            )
        return whole[:, : len(x)], whole[:, len(x) :]

    def observed(self, x: Array) -> Array:
        """Return C (p, n)."""
        return self._slopes(lambda state: self.plant.observe(state, self.params), x)

    def disturbed(self, x: Array, u: Array) -> Array | None:
        """Return Bw (n, q), or None for a plant without disturbances."""
        count = len(self.plant.disturbance_names)
        if not count:
            return None

        def after(disturbance: torch.Tensor) -> torch.Tensor:
            state, action = (_row(value).expand(len(disturbance), -1) for value in (x, u))
            return self.plant.advance(state, action, self.params, None, disturbance)

        return self._slopes(after, np.zeros(count))

    def noise(self, x: Array, u: Array) -> tuple[Array | None, Array | None]:
        """Return the covariances W (n, n) and V (p, p) of the plant's own noise, None where it has none."""
        covariances: list[Array | None] = [None, None]
        if self.plant.process_noise_size:
            enters = self._slopes(
                lambda noise: self.plant.advance(_row(x), _row(u), self.params, noise),
                np.zeros(self.plant.process_noise_size),
            )
            covariances[0] = enters @ enters.T
        if self.plant.measurement_noise_size:
            enters = self._slopes(
                lambda noise: self.plant.observe(_row(x), self.params, noise),
                np.zeros(self.plant.measurement_noise_size),
            )
            covariances[1] = enters @ enters.T
        return covariances[0], covariances[1]

    def cost(self, x: Array, u: Array) -> tuple[Array | None, Array | None]:
        """Return (Q (n, n), R (m, m)): half the curvature of minus the reward, without what is not convex in it.

        A reward of the state before and of the state after a step weighs each state twice: the two curvatures add up.
        """
        n, m = len(x), len(u)
        point = torch.as_tensor(np.concatenate((x, u, self.advance(x, u))))

        def reward(at: torch.Tensor) -> torch.Tensor:
            state, action, following = at.unsqueeze(0).split((n, m, n), dim=-1)
            return self.plant.reward(state, action, following, self.params).sum()

        curvature = -0.5 * _numpy(cast(torch.Tensor, torch_hessian(reward, point)))
        if not np.isfinite(curvature).all():
            return None, None
        after = slice(n + m, None)
        return _convex(curvature[:n, :n] + curvature[after, after]), _convex(curvature[n : n + m, n : n + m])

    def ranges(self) -> Array:
        """Return each state's standard deviation at the start; the others' median for one that is fixed there."""
        generator = torch.Generator().manual_seed(0)
        uniform = torch.rand((STARTS, self.plant.reset_size), dtype=torch.float64, generator=generator)
        spread = _numpy(self.plant.initial(uniform, self.params)).std(axis=0)
        varied = spread > 1e-9
        return np.where(varied, spread, np.median(spread[varied]) if varied.any() else 1.0)

    def _slopes(self, function: Any, at: Array) -> Array:
        """Return the Jacobian (k, d) of a function of rows (1 or more, d) -> (as many, k)."""
        if self.automatic:
            found = torch_jacobian(lambda point: function(point.unsqueeze(0))[0], torch.as_tensor(at))
            return _numpy(cast(torch.Tensor, found))
        shift = DIFFERENCE * np.eye(len(at))
        ahead, behind = (_numpy(function(torch.as_tensor(at + sign * shift))) for sign in (1.0, -1.0))
        return (ahead - behind).T / (2.0 * DIFFERENCE)


def _held(A: Array, B: Array) -> Array:
    """Return which states (n,) bool no input reaches, directly or through others, and that stay what they are."""
    n = len(A)
    reached = B.any(axis=1)
    for _ in range(n):
        reached = reached | (A[:, reached] != 0).any(axis=1)
    graph = scipy.sparse.csr_matrix(A != 0)
    count, labels = scipy.sparse.csgraph.connected_components(graph, directed=True, connection="strong")
    alone = np.bincount(labels, minlength=count)[labels] == 1
    return ~reached & alone & (np.abs(np.diag(A) - 1.0) < 1e-9)


def _convex(weight: Array) -> Array:
    """Return the nearest symmetric positive semidefinite matrix."""
    weight = (weight + weight.T) / 2.0 + 0.0
    values, vectors = np.linalg.eigh(weight)
    if values[0] >= -1e-12 * np.abs(values).max():
        return weight
    return (vectors * np.maximum(values, 0.0)) @ vectors.T


def _middle(low: Array, high: Array) -> Array:
    bounded = np.isfinite(low) & np.isfinite(high)
    return np.where(bounded, (np.where(bounded, low, 0.0) + np.where(bounded, high, 0.0)) / 2.0, 0.0)


def _rows(matrix: Array | None, kept: Array) -> Array | None:
    return None if matrix is None else matrix[kept]


def _row(values: Array) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64)).unsqueeze(0)


def _numpy(tensor: torch.Tensor) -> Array:
    return tensor.detach().cpu().numpy().astype(np.float64)


def _shown(values: Array) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
