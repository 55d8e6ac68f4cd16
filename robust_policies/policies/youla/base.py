"""The base controller of a Youla policy: observer, state feedback and actuator, batched and differentiable.

One step, in deviations from the equilibrium (x0, u0, y0), with yt the innovation and ut the Youla input:

    yt = y - C xh,   u = -K (xh + M yt) + ut,   xh+ = A xh + B u_app + L yt        (M = 0 for the predictor)

u is clipped and rounded as the actuator does before it is sent, and u_app is what the plant really receives. Then the
error e = x - xh follows e+ = (A - L C) e + w - L v, yt = C e + v, whatever ut is and whatever is clipped: the
innovation of the linear plant does not depend on ut, so any ut that is a function of past innovations with a finite
gain keeps the loop stable while the actuator does not saturate.

Sources: D. C. Youla, H. A. Jabr and J. J. Bongiorno, IEEE Trans. Automatic Control 21 (1976), pages 319-338; with
nonlinear ut: R. Wang, N. H. Barbara, M. Revay and I. R. Manchester, "Learning over all stabilizing nonlinear
controllers for a partially-observed linear system", IEEE Control Systems Letters 7 (2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, cast

import numpy as np
import torch
from gymnasium import spaces
from pydantic import Field
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.norms import radius
from robust_policies.control.saturation import SaturationBudget, saturation_budget
from robust_policies.control.scope import Scope
from robust_policies.control.youla import normalisation
from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError


@dataclass(frozen=True)
class YoulaOptions:
    """What a user chooses beside model and design: of the wrappers, the policy and a recipe's `youla` section."""

    reserve: Annotated[float, Field(ge=0, lt=1, description="share of the actuators' range kept from the policy")] = 0.0
    """Share [0, 1) of the actuators' range about u0 that the Youla input leaves to the base controller."""
    limit: Annotated[
        float | None, Field(gt=0, description="largest normalised Youla input; null: all that the reserve leaves")
    ] = None
    """Largest size of each normalised Youla input; None: all that the reserve leaves."""
    quantum: Annotated[float, Field(ge=0, description="the actuators take multiples of it")] = 0.0
    """The actuators take multiples of this, in the input's units; 0: any value."""
    delay: Annotated[int, Field(ge=0, description="steps by which inputs act late, beyond what the model says")] = 0
    """Steps by which the plant applies an input late, beyond what the model says."""
    reference: Annotated[
        tuple[int, ...] | None,
        Field(description="observations that no action can influence; null: found by a trial"),
    ] = None
    """Indices of observations that no action can influence (a reference): the policy reads them, not the observer.

    None: those that a trial of the environment's plant finds, where there is one and no model is given; else none."""
    region: Annotated[
        tuple[float, ...],
        Field(description="half widths of the model's states in which the nonlinear plant is judged"),
    ] = ()
    """Half widths of the linear model's states about x0: where a monitor expects the estimate; (): everywhere."""

    @classmethod
    def of(cls, options: YoulaOptions | None = None, **chosen: Any) -> YoulaOptions:
        """Return `options`, None for the defaults, with the chosen ones in place of theirs.

        Raises:
            UnknownNameError: one has another name. InvalidValueError: a value is not allowed.
        """
        known = [field.name for field in fields(cls)]
        for name in chosen:
            if name not in known:
                raise UnknownNameError.among("option of the Youla wrapper", name, known)
        return replace(options or cls(), **chosen)

    def __post_init__(self) -> None:
        checks.finite_float("reserve", self.reserve, at_least=0.0)
        if self.reserve >= 1.0:
            raise InvalidValueError(
                f"reserve is {self.reserve!r}; expected less than 1: nothing is left for the Youla input."
            )
        if self.limit is not None:
            checks.finite_float("limit", self.limit, above=0.0)
        checks.finite_float("quantum", self.quantum, at_least=0.0)
        checks.positive_int("delay", self.delay, minimum=0)
        if self.reference is not None:
            indices = tuple(checks.positive_int("an entry of reference", index, minimum=0) for index in self.reference)
            if len(set(indices)) != len(indices):
                raise InvalidValueError(f"reference is {self.reference}; expected every index once.")
            object.__setattr__(self, "reference", indices)
        widths = tuple(checks.finite_float("an entry of region", width, above=0.0) for width in self.region)
        object.__setattr__(self, "region", widths)


class BaseController(nn.Module):
    """Observer and state feedback of `design` for `model` in an environment with the given spaces.

    Everything is computed in float64. The state (batch, state_size) is zero at an episode's start: xh (n), then the
    inputs on their way to the plant (delay, m), oldest first, as deviations from the idle input (0, or the nearest
    that the actuators allow).

    Attributes:
        scope: what is known of the plant beside the model; the wrappers write it here.
        observation_space, action_space: the environment's own.
        youla_observation_space: of the normalised innovation (p,), followed by the reference.
        youla_action_space: of the normalised Youla input (m,), a Box of one size in all directions.

    Raises:
        ShapeError: model, design and spaces do not fit one another. InvalidValueError: the design leaves the model
        unstable, u0 is not within the limits, a space is no Box, or an option asks for too much.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    K: Tensor
    L: Tensor
    M: Tensor
    x0: Tensor
    u0: Tensor
    y0: Tensor
    low: Tensor
    high: Tensor
    idle: Tensor
    innovation_scale: Tensor
    input_scale: Tensor
    angle: Tensor
    measured: Tensor
    exogenous: Tensor
    youla_high: Tensor
    region: Tensor

    def __init__(
        self,
        model: LinearModel,
        design: LQGDesign,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        options: YoulaOptions | None = None,
    ) -> None:
        super().__init__()
        options = options or YoulaOptions()
        self.model, self.design, self.options = model, design, replace(options, reference=options.reference or ())
        self.scope = Scope("linear") if model.exact else Scope()
        self.observation_space, self.action_space = _vectors(observation_space), _vectors(action_space)
        self._check_fit()
        for name in ("A", "B", "C", "x0", "u0", "y0"):
            self._keep(name, getattr(model, name))
        current = design.estimator == "current"
        for name, value in (("K", design.K), ("L", design.L), ("M", design.M if current else 0.0 * design.M)):
            self._keep(name, value)
        low, high = (np.asarray(bound, dtype=np.float64) for bound in (self.action_space.low, self.action_space.high))
        self._keep("low", low)
        self._keep("high", high)
        self._keep("idle", np.clip(np.zeros(model.m), low, high))
        scales = normalisation(design, model)
        self._keep("innovation_scale", scales[0])
        self._keep("input_scale", scales[1])
        self._keep("angle", np.isin(np.arange(model.p), model.angles))
        count, reference = self.observation_space.shape[0], list(self.options.reference or ())
        self._keep("measured", np.setdiff1d(np.arange(count), reference))
        self._keep("exogenous", np.asarray(reference, dtype=np.int64))
        bound = np.full(model.m, self._largest(low, high))
        kind: Any = np.dtype(self.action_space.dtype).type
        self.youla_action_space = spaces.Box(-bound.astype(kind), bound.astype(kind), dtype=kind)
        kind = np.dtype(self.observation_space.dtype).type
        free = np.full(model.p, np.inf)
        ends = [
            np.concatenate((sign * free, side[reference])).astype(kind)
            for sign, side in ((-1.0, self.observation_space.low), (1.0, self.observation_space.high))
        ]
        self.youla_observation_space = spaces.Box(ends[0], ends[1], dtype=kind)
        self.numbers = getattr(torch, np.dtype(kind).name)
        self.inputs = getattr(torch, np.dtype(self.action_space.dtype).name)
        self._keep("youla_high", self.youla_action_space.high.astype(np.float64))
        self._keep("region", np.array(self.options.region or np.full(model.n, np.inf)))

    @property
    def state_size(self) -> int:
        """The number of states: the model's, and the inputs on their way."""
        return self.model.n + self.options.delay * self.model.m

    def initial_state(self, batch: int) -> Tensor:
        """Return the state (batch, state_size) at an episode's start."""
        return self.A.new_zeros(batch, self.state_size)

    def innovation(self, observation: Tensor, state: Tensor) -> Tensor:
        """Return yt (batch, p), angles wrapped, for the environment's observations (batch, size)."""
        measured = observation.to(self.A.dtype).index_select(-1, self.measured)
        difference = measured - self.y0 - state[..., : self.model.n] @ self.C.T
        turns = torch.round(difference / (2.0 * math.pi))
        return torch.where(self.angle, difference - 2.0 * math.pi * turns, difference)

    def seen(self, innovation: Tensor, observation: Tensor) -> Tensor:
        """Return what the policy reads, (batch, p + references) in the number type of the environment."""
        normalised = innovation @ self.innovation_scale.T
        return torch.cat(
            (normalised.to(self.numbers), observation.index_select(-1, self.exogenous).to(self.numbers)), -1
        )

    def estimate(self, innovation: Tensor, state: Tensor) -> Tensor:
        """Return the estimate (batch, n) that is fed back, in the plant's own units."""
        return self.x0 + state[..., : self.model.n] + innovation @ self.M.T

    def outside(self, estimate: Tensor) -> Tensor:
        """Return where (batch,) an estimate (batch, n) lies outside the region, or is no number."""
        return ~((estimate - self.x0).abs() <= self.region).all(-1)

    def saturated(self, sent: Tensor) -> Tensor:
        """Return where (batch,) an input that was sent lies at a limit of its actuator."""
        return ((sent <= self.low) | (sent >= self.high)).any(-1)

    def command(self, innovation: Tensor, youla: Tensor, state: Tensor) -> Tensor:
        """Return the inputs (batch, m) to send, for normalised Youla inputs (batch, m): clipped, as the actuator can.

        They are float64, and exactly what the environment's number type can hold.
        """
        youla = torch.minimum(torch.maximum(youla.to(self.A.dtype), -self.youla_high), self.youla_high)
        u = self._within(self.unclipped(innovation, youla, state))
        if self.options.quantum:
            u = self._within(self.options.quantum * torch.round(u / self.options.quantum))
        return u.to(self.inputs).to(self.A.dtype)

    def unclipped(self, innovation: Tensor, youla: Tensor, state: Tensor) -> Tensor:
        """Return the inputs (batch, m) that normalised Youla inputs within their limits ask the actuator for."""
        estimate = state[..., : self.model.n] + innovation @ self.M.T
        return self.u0 - estimate @ self.K.T + youla @ self.input_scale.T

    def update(self, innovation: Tensor, sent: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (inputs (batch, m) that the plant received, next state) after `sent` has been sent."""
        n, m = self.model.n, self.model.m
        line = torch.cat((state[..., n:], sent - self.idle), -1)
        applied = self.idle + line[..., :m] if self.options.delay else sent
        return applied, torch.cat((self.predicted(innovation, applied, state[..., :n]), line[..., m:]), -1)

    def predicted(self, innovation: Tensor, applied: Tensor, state: Tensor) -> Tensor:
        """Return the next estimate (batch, n) in deviations, for the inputs (batch, m) that the plant received."""
        return state @ self.A.T + (applied - self.u0) @ self.B.T + innovation @ self.L.T

    def measures(self, count: int) -> int:
        """Return how many signals are measured by an observation of `count` numbers without the reference."""
        return count

    def saturation(self) -> SaturationBudget:
        """Return how large innovations may be before an input can saturate, Youla inputs taking all they may.

        Raises InvalidValueError where the actuators have no limits.
        """
        spare = torch.minimum(self.u0 - self.low, self.high - self.u0) - self.options.quantum / 2.0
        if not bool(torch.isfinite(spare).any()):
            raise InvalidValueError("The actuators have no limits; expected one at least.")
        youla = torch.minimum(self.input_scale.abs() @ self.youla_high, spare)
        return saturation_budget(self.model, self.design, spare.cpu().numpy(), youla.cpu().numpy())

    def _within(self, u: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(u, self.low), self.high)

    def _keep(self, name: str, value: Any) -> None:
        self.register_buffer(name, torch.as_tensor(np.array(value, order="C")), persistent=False)

    def _check_fit(self) -> None:
        model, design = self.model, self.design
        n, m, p = model.n, model.m, model.p
        for name, expected in (("K", (m, n)), ("L", (n, p)), ("M", (n, p))):
            checks.shape(f"{name} of the design", getattr(design, name), expected)
        if self.options.region and len(self.options.region) != n:
            raise ShapeError(
                f"region has {len(self.options.region)} number(s); expected {n}, one for each of the "
                f"model's states {', '.join(model.state_names)}."
            )
        size, references = self.observation_space.shape[0], self.options.reference or ()
        if any(index >= size for index in references):
            raise InvalidValueError(
                f"reference is {references}; expected indices below {size}, the size of an observation."
            )
        measured = self.measures(size - len(references))
        if measured != p or self.action_space.shape[0] != m:
            raise ShapeError(
                f"The environment measures {measured} output(s) beside {len(references)} reference(s) "
                f"and takes {self.action_space.shape[0]} input(s); the model has {p} output(s) and {m} input(s)."
            )
        for name, matrix in (("A - B K", model.A - model.B @ design.K), ("A - L C", model.A - design.L @ model.C)):
            if not (rho := radius(matrix)) < 1.0:
                raise InvalidValueError(
                    f"The design leaves {name} of the model a spectral radius of {rho:.6g}; "
                    "expected one below 1. Is it the design of another model?"
                )

    def _largest(self, low: np.ndarray, high: np.ndarray) -> float:
        """Return the half-width of the Box of normalised Youla inputs."""
        u0, options = self.model.u0, self.options
        if not ((low < u0) & (u0 < high)).all():
            raise InvalidValueError(f"u0 is {u0}; expected an equilibrium within the limits {low} to {high}.")
        spare = (1.0 - options.reserve) * np.minimum(u0 - low, high - u0)
        # All of the Box must fit, for clipping each normalised input alone has gain 1 in the norm that is certified.
        largest = float((spare / np.abs(self.input_scale.numpy()).sum(1)).min())
        if options.limit is None and not math.isfinite(largest):
            raise InvalidValueError(
                "The environment's actions have no limits; give limit=..., the largest normalised Youla input."
            )
        if options.limit is not None and options.limit > largest:
            raise InvalidValueError(
                f"limit is {options.limit:g}; with a reserve of {options.reserve:g} the actuators "
                f"allow at most {largest:.6g}. Lower one of them."
            )
        return largest if options.limit is None else float(options.limit)


def _vectors(space: spaces.Space) -> spaces.Box:
    floating = isinstance(space, spaces.Box) and np.issubdtype(space.dtype or np.int64, np.floating)
    if not floating or len(space.shape or ()) != 1:
        raise InvalidValueError(
            f"The environment has the space {space}; expected a Box of vectors of floating numbers "
            "for observations and actions."
        )
    return cast(spaces.Box, space)
