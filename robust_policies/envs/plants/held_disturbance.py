"""A stable linear plant under a disturbance that stays constant for many steps, and jumps: to be rejected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt

from robust_policies.envs.plant import (
    NonNegativeNumber,
    Number,
    Params,
    Plant,
    PositiveNumber,
    Section,
    TaskFile,
    columns,
    units,
)


class Parameters(Section):
    """T(z) = gain / (z^2 - 2 r cos(a) z + r^2), with the poles r exp(+-i a)."""

    gain: Number = Field(json_schema_extra={"unit": "1"})
    pole_radius: NonNegativeNumber = Field(json_schema_extra={"unit": "1"})
    pole_angle: NonNegativeNumber = Field(json_schema_extra={"unit": "rad per step"})


class Disturbance(Section):
    """Uniform in +-amplitude, drawn anew every `hold` steps."""

    hold: PositiveInt = Field(json_schema_extra={"unit": "steps"})
    amplitude: NonNegativeNumber = Field(json_schema_extra={"unit": "1"})


class Limits(Section):
    """What is clipped."""

    action: PositiveNumber = Field(json_schema_extra={"unit": "1"})


class Cost(Section):
    """output |z| + action u^2 a step."""

    output: NonNegativeNumber = Field(json_schema_extra={"unit": "1"})
    action: NonNegativeNumber = Field(json_schema_extra={"unit": "1"})


class HeldDisturbanceTask(TaskFile):
    """The task.yaml of the plant."""

    parameters: Parameters
    disturbance: Disturbance
    limits: Limits
    cost: Cost


class HeldDisturbancePlant(Plant):
    """z = T w + T u is to be small, y = -T w is observed: the disturbance's effect, whatever the actions do.

    State (p, p+, q, q+, w, k): the responses p = T w and q = T u now and one step on, the disturbance w that acts in
    this step, and the number k of steps since the start. A process noise number n becomes the next w = amplitude
    (2 Phi(n) - 1), Phi the normal distribution function, where k + 1 is a multiple of `hold`; without noise w stays.
    Source: N. H. Barbara, R. Wang and I. R. Manchester, "R2DN: Scalable parameterization of contracting and Lipschitz
    recurrent deep networks" (arXiv 2504.01250, 2025), the example of learning-based control.
    """

    kind = "held_disturbance"
    Task = HeldDisturbanceTask
    observes_actions = False
    state_size = 6
    observation_size = 1
    reset_size = 1
    process_noise_size = 1
    state_names = ("T w", "T w, next", "T u", "T u, next", "disturbance w", "clock [steps]")
    output_names = ("-T w",)
    action_names = ("u",)
    disturbance_names = ("added to w",)
    parameter_units = units(Parameters)

    def __init__(self, task: HeldDisturbanceTask, folder: Path | None = None) -> None:
        super().__init__(task, folder)
        self.cost = task.cost
        self.limit, self.amplitude, self.hold = task.limits.action, task.disturbance.amplitude, task.disturbance.hold
        self.action_high = np.array([self.limit])
        self.observation_high = np.array([np.inf])
        self.action_low, self.observation_low = -self.action_high, -self.observation_high

    def prepare(self, physical: Params) -> Params:
        """Return the coefficients of T = gain / (z^2 + a1 z + a0), each of the parameters' shape."""
        radius = physical["pole_radius"]
        a1 = -2.0 * radius * physical["pole_angle"].cos()
        return {"gain": physical["gain"], "a1": a1, "a0": radius**2}

    def advance(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        params: Params,
        noise: torch.Tensor | None = None,
        disturbance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the state one step later; the disturbance is added to w in this step."""
        p, p_next, q, q_next, w, clock = state.unbind(-1)
        gain, a1, a0 = (params[name].to(state.dtype) for name in ("gain", "a1", "a0"))
        entering = w if disturbance is None else w + disturbance[..., 0].to(state.dtype)
        u = action[..., 0].to(state.dtype).clamp(-self.limit, self.limit)
        p_after = gain * entering - a1 * p_next - a0 * p
        q_after = gain * u - a1 * q_next - a0 * q
        clock = clock + 1.0
        if noise is not None:
            drawn = self.amplitude * (2.0 * torch.special.ndtr(noise[..., 0].to(state.dtype)) - 1.0)
            w = torch.where(torch.remainder(clock, self.hold) == 0.0, drawn, w)
        return columns(p_next, p_after, q_next, q_after, w, clock)

    def observe(self, state: torch.Tensor, params: Params, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return y = -T w."""
        return -state[..., :1]

    def reward(
        self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor, params: Params
    ) -> torch.Tensor:
        """Return -(|z| + 1e-4 u^2), with the task's weights, for z before the step and the clipped action."""
        u = action[..., 0].to(state.dtype).clamp(-self.limit, self.limit)
        return -(self.cost.output * (state[..., 0] + state[..., 2]).abs() + self.cost.action * u**2)

    def initial(self, uniform: torch.Tensor, params: Params, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return the plant at rest, with the first w uniform."""
        w = self.amplitude * (2.0 * uniform - 1.0)
        return torch.cat((torch.zeros_like(w).expand(-1, 4), w, torch.zeros_like(w)), dim=-1)
