"""The base controller of a Youla policy on a nonlinear plant, around an observer other than the linear one."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from torch import Tensor

from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.errors import ShapeError
from robust_policies.policies.youla.base import BaseController, YoulaOptions


class ObserverController(BaseController):
    """The base controller with another observer in place of the linear one.

    In deviations from the equilibrium: xh+ = follow(xh, yt, u_app), yt = y - h(xh). With output injection, without
    noise, the innovation obeys e+ = (A - L C) e, yt = C e on the nonlinear plant itself, whatever the Youla input is
    and whatever is clipped, within the region in which the plant's form is proven. With a learned contracting observer
    it is bounded uniformly in the Youla input where the observer's error is (`identification.observer_bound`).

    Args:
        observer: has sizes, start, innovation and follow: `control.observers.OutputInjection`, or
            `identification.LearnedObserver`, whose estimate is a prediction: the design's estimator is "predictor".
        model: linear, with the equilibrium; what is measured are its outputs.
        design: whose K is the feedback.
        observation_space, action_space: the environment's.
        options: as of `BaseController`; a delay beyond the plant's is taken into account as there.

    Raises:
        ShapeError, InvalidValueError: as `BaseController`.
    """

    def __init__(
        self,
        observer: Any,
        model: LinearModel,
        design: LQGDesign,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        options: YoulaOptions | None = None,
    ) -> None:
        self.observer = observer
        super().__init__(model, design, observation_space, action_space, options)

    def measures(self, count: int) -> int:
        """Return how many signals are measured by an observation of `count` numbers without the reference."""
        if self.observer.sizes != count:
            raise ShapeError(
                f"The environment has {count} observation(s) without its reference; the observer reads "
                f"{self.observer.sizes}."
            )
        return self.observer.output_size

    def initial_state(self, batch: int) -> Tensor:
        """Return the state (batch, state_size) at an episode's start: the observer's own, and idle inputs."""
        state = super().initial_state(batch)
        state[:, : self.model.n] = self.observer.start(batch, self.x0) - self.x0
        return state

    def innovation(self, observation: Tensor, state: Tensor) -> Tensor:
        """Return yt (batch, p), angles wrapped, for the environment's observations (batch, size)."""
        measured = observation.to(self.A.dtype).index_select(-1, self.measured)
        return self.observer.innovation(self.x0 + state[..., : self.model.n], measured)

    def predicted(self, innovation: Tensor, applied: Tensor, state: Tensor) -> Tensor:
        """Return the next estimate (batch, n) in deviations, for the inputs (batch, m) that the plant received."""
        return self.observer.follow(self.x0 + state[..., : self.model.n], innovation, applied) - self.x0
