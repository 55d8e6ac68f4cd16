"""Output-injection observers: the error of a nonlinear plant's observer that is exactly linear.

Where the step is f(x, u) = A x + phi(C x, u), any nonlinearity of measured signals and inputs, the observer

    xh+ = A xh + phi(y, u) + L (y - C xh)     gives, without noise,     e+ = (A - L C) e,  e = x - xh,

whatever u does: the innovation y - C xh = C e depends on no input. With N a basis of the null space of C, a step has
this form on a convex set if and only if its Jacobian times N is the same matrix everywhere there, A N then. It is asked
in interval arithmetic, so the form is proven, with what rounding leaves; samples that differ refute it.

Source: A. J. Krener and A. Isidori, "Linearization by output injection and nonlinear observers", Systems & Control
Letters 3 (1983), for the form; the test by the Jacobian on the null space is this package's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import scipy
import torch
from torch import Tensor

from robust_policies.control.enclosure import enclosed_jacobian
from robust_policies.control.linear_model import Array, LinearModel
from robust_policies.control.linearize import linearize_plant
from robust_policies.control.lqg import LQGDesign, design
from robust_policies.control.norms import radius
from robust_policies.errors import InvalidValueError, ShapeError

# What interval arithmetic adds to a constant entry; far below what any nonlinearity changes it by.
_ROUNDING = 1e-9
_CELLS = 4096
_SAMPLES = 256


class Observer(Protocol):
    """What estimates a state from outputs and the inputs that were applied.

    Attributes:
        state_size, output_size, input_size: n, p, m.
        state_names: of the estimate.
    """

    state_size: int
    output_size: int
    input_size: int
    state_names: tuple[str, ...]

    def start(self, count: int, like: Tensor) -> Tensor:
        """Return the estimates (count, n) at the beginning of episodes, of the dtype and device of `like`."""
        ...

    def corrected(self, estimate: Tensor, observation: Tensor) -> Tensor:
        """Return the estimates (..., n) with what the environment's observations (..., size) say of the same time."""
        ...

    def advance(self, estimate: Tensor, observation: Tensor, applied: Tensor) -> Tensor:
        """Return the next estimates (..., n) from observations (..., size) and the inputs (..., m) applied since."""
        ...


@dataclass(frozen=True, eq=False)
class OutputInjection:
    """An output-injection observer of a plant in a region.

    Attributes:
        plant: whose step is f.
        model: the linear model with the measured signals as outputs: its A, C and equilibrium.
        design: whose L and M are the gains; K and the regulator go with it.
        region: half widths (n,) about the equilibrium's state within which the form is proven, for all allowed inputs.
        defect: the largest distance of an entry of f's Jacobian times N from A N there: rounding.
        measure: from an observation (..., size) to the measured signals (..., p).
    """

    plant: Any
    model: LinearModel
    design: LQGDesign
    region: tuple[float, ...]
    defect: float
    measure: Callable[[Tensor], Tensor]

    @property
    def state_size(self) -> int:
        """The number of states n."""
        return self.model.n

    @property
    def output_size(self) -> int:
        """The number of measured signals p."""
        return self.model.p

    @property
    def sizes(self) -> int:
        """The number of observations that the measured signals are taken from."""
        return self.plant.observation_size

    @property
    def input_size(self) -> int:
        """The number of inputs m."""
        return self.model.m

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states."""
        return self.model.state_names

    def with_design(self, chosen: LQGDesign) -> OutputInjection:
        """Return the observer with the gains of another design for its `model`."""
        if not (rho := radius(self.model.A - chosen.L @ self.model.C)) < 1:
            raise InvalidValueError(f"The design leaves A - L C a spectral radius of {rho:.6g}; expected one below 1.")
        return replace(self, design=chosen)

    def innovation(self, estimate: Tensor, observation: Tensor) -> Tensor:
        """Return y - C xh (..., p), angles wrapped, for estimates (..., n) and observations (..., size)."""
        C, y0, x0 = (_like(estimate, part) for part in (self.model.C, self.model.y0, self.model.x0))
        difference = self.measure(observation.to(estimate.dtype)) - y0 - (estimate - x0) @ C.T
        turned = difference - 2.0 * torch.pi * torch.round(difference / (2.0 * torch.pi))
        angle = torch.as_tensor(np.isin(np.arange(self.model.p), self.model.angles), device=estimate.device)
        return torch.where(angle, turned, difference)

    def start(self, count: int, like: Tensor) -> Tensor:
        """Return the equilibrium's state (count, n), of the dtype and device of `like`."""
        return _like(like, self.model.x0).expand(count, -1).clone()

    def corrected(self, estimate: Tensor, observation: Tensor) -> Tensor:
        """Return xh + M (y - C xh), (..., n), M = 0 for a predictor."""
        gain = self.design.M if self.design.estimator == "current" else 0.0 * self.design.M
        return estimate + self.innovation(estimate, observation) @ _like(estimate, gain).T

    def advance(self, estimate: Tensor, observation: Tensor, applied: Tensor) -> Tensor:
        """Return A xh + phi(y, u) + L (y - C xh) of estimates (..., n), observations (..., size), inputs (..., m)."""
        return self.follow(estimate, self.innovation(estimate, observation), applied)

    def follow(self, estimate: Tensor, innovation: Tensor, applied: Tensor) -> Tensor:
        """Return the next estimates (..., n) from innovations (..., p) and inputs (..., m), which the plant clips.

        phi(y, u) = f(x', u) - A x' for every x' with C x' = y: the estimate moved onto the measurement is one.
        """
        A, L, onto = (_like(estimate, part) for part in (self.model.A, self.design.L, np.linalg.pinv(self.model.C)))
        moved = estimate + innovation @ onto.T
        following = self.plant.advance(moved, applied.to(estimate.dtype), self._params(estimate))
        return following + (estimate - moved) @ A.T + innovation @ L.T

    def _params(self, like: Tensor) -> Any:
        return self.plant.prepare(self.plant.nominal(device=like.device))


def find_output_injection(
    plant: Any, region: Sequence[float], chosen: LQGDesign | None = None, **weights: Any
) -> OutputInjection:
    """Return the output-injection observer of a plant at its nominal parameters, whose form is proven in a region.

    Args:
        plant: its outputs are states, or the cosine and sine of the first one.
        region: half widths (n,) about the equilibrium's state; nothing may be clipped inside.
        chosen: gains for the observer's model; None: `lqg.design` of it.
        **weights: of that design: Q, R, W, V or estimator.

    Raises:
        InvalidValueError: the step has another form (which derivative differs, and how much), nothing is known of it in
            interval arithmetic (a region in which something is clipped), or the outputs are no states.
        ShapeError: the region does not fit.
    """
    model, measure = _measured(plant)
    half = np.asarray(region, float)
    if half.shape != (model.n,) or not (half > 0).all():
        raise ShapeError(
            f"region is {list(region)}; expected {model.n} half widths > 0, of {', '.join(model.state_names)}."
        )
    params = plant.prepare(plant.nominal())
    hidden = scipy.linalg.null_space(model.C)
    if not hidden.size:
        raise InvalidValueError(f"A {plant.kind} plant measures all of its state; nothing is left to estimate.")
    low = np.concatenate((model.x0 - half, plant.action_low))
    high = np.concatenate((model.x0 + half, plant.action_high))
    found = design(model, **weights) if chosen is None else chosen
    if model.exact:
        return OutputInjection(plant, model, found, tuple(half.tolist()), 0.0, measure).with_design(found)
    wanted = model.A @ hidden
    _refuted(plant, params, model, hidden, low, high)
    cells = [max(1, round(_CELLS ** (1 / len(low))))] * len(low)
    bounds = enclosed_jacobian(lambda x, u: plant.advance(x, u, params), model.n, low, high, cells)
    if bounds is None:
        raise InvalidValueError(
            f"Nothing is known of the step of a {plant.kind} plant in this region by interval arithmetic: something is "
            "clipped in it, or an operation has no interval form; give a smaller region."
        )
    middle, spread = (0.5 * (bounds[1] + bounds[0]))[:, : model.n], (0.5 * (bounds[1] - bounds[0]))[:, : model.n]
    defect = float((np.abs(middle @ hidden - wanted) + spread @ np.abs(hidden)).max())
    if defect > _ROUNDING * max(1.0, float(np.abs(wanted).max())):
        raise InvalidValueError(
            f"The step of a {plant.kind} plant is not proven to be linear in what is not measured: its derivative may "
            f"differ by {defect:.3g} within the region; no exact observer of this form is known for it."
        )
    return OutputInjection(plant, model, found, tuple(half.tolist()), defect, measure).with_design(found)


def check_plant(observer: Any, env: Any) -> None:
    """Raise InvalidValueError where an output-injection observer is of another kind of plant than an environment's."""
    plant = getattr(env.unwrapped, "plant", None)
    if isinstance(observer, OutputInjection) and plant is not None and plant.kind != observer.plant.kind:
        raise InvalidValueError(
            f"The observer is of a {observer.plant.kind} plant and the environment's is a {plant.kind} plant; find one "
            "of that plant."
        )


def _measured(plant: Any) -> tuple[LinearModel, Callable[[Tensor], Tensor]]:
    """Return the linear model with the measured states as outputs, and what takes them out of an observation."""
    model = linearize_plant(plant)
    linear = np.isin(model.C, (0.0, 1.0)).all() and (model.C.sum(1) == 1).all()
    if linear and np.allclose(model.y0, model.C @ model.x0):
        return model, lambda observation: observation
    if tuple(getattr(plant, "observed", ())) != ("cos", "sin"):
        raise InvalidValueError(
            f"The outputs of a {plant.kind} plant ({', '.join(model.output_names)}) are no states; expected states, or "
            "the cosine and sine of an angle."
        )
    C = np.eye(1, model.n)
    name, y0 = model.state_names[0], C @ model.x0
    turned = replace(model, C=C, D=np.zeros((1, model.m)), y0=y0, V=None, output_names=(name,), angles=(0,))
    return turned, lambda observation: torch.atan2(observation[..., 1:2], observation[..., :1])


def _refuted(plant: Any, params: Any, model: LinearModel, hidden: Array, low: Array, high: Array) -> None:
    """Raise InvalidValueError where the Jacobian times N is another at one of some samples than at the equilibrium."""
    generator = np.random.default_rng(0)
    points = torch.as_tensor(low + (high - low) * generator.random((_SAMPLES, len(low))))
    state, action = points[:, : model.n], points[:, model.n :]
    slopes = [
        torch.func.jvp(lambda x: plant.advance(x, action, params), (state,), (direction.expand_as(state),))[1]
        for direction in torch.as_tensor(hidden.T)
    ]
    away = (torch.stack(slopes, -1) - torch.as_tensor(model.A @ hidden)).abs()
    worst = float(away.max())
    if worst > 1e-6 * max(1.0, float(np.abs(model.A @ hidden).max())):
        row = model.state_names[int(away.amax((0, 2)).argmax())]
        raise InvalidValueError(
            f"The step of a {plant.kind} plant is not linear in what is not measured: the derivative of the next "
            f"{row} by it differs by {worst:.3g} between states of the region; no exact observer of this form exists."
        )


def _like(tensor: Tensor, array: Array) -> Tensor:
    return torch.as_tensor(np.array(array), dtype=tensor.dtype, device=tensor.device)
