"""The base controller of a Youla policy on a nonlinear plant whose observer's error is exactly linear."""

from __future__ import annotations

from gymnasium import spaces
from torch import Tensor

from robust_policies.control.observers.injection import OutputInjection
from robust_policies.policies.youla.base import BaseController, YoulaOptions


class InjectionController(BaseController):
    """The base controller with an output-injection observer in place of the linear one.

    In deviations from the equilibrium, xh+ = f(x', u_app) - x0 + A (xh - x') + L yt, x' the estimate moved onto the
    measurement. Without noise the innovation obeys e+ = (A - L C) e, yt = C e on the nonlinear plant itself, whatever
    the Youla input is and whatever is clipped, within the region in which the plant's form is proven.

    Args:
        observer: of the plant.
        observation_space, action_space: the environment's.
        options: as of `BaseController`; a delay beyond the plant's is taken into account as there.

    Raises:
        ShapeError, InvalidValueError: as `BaseController`.
    """

    def __init__(
        self,
        observer: OutputInjection,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        options: YoulaOptions | None = None,
    ) -> None:
        self.observer = observer
        super().__init__(observer.model, observer.design, observation_space, action_space, options)

    def measures(self, count: int) -> int:
        """Return how many signals are measured by an observation of `count` numbers without the reference."""
        return self.observer.model.p if self.observer.sizes == count else count

    def innovation(self, observation: Tensor, state: Tensor) -> Tensor:
        """Return yt (batch, p), angles wrapped, for the environment's observations (batch, size)."""
        measured = observation.to(self.A.dtype).index_select(-1, self.measured)
        return self.observer.innovation(self.x0 + state[..., : self.model.n], measured)

    def predicted(self, innovation: Tensor, applied: Tensor, state: Tensor) -> Tensor:
        """Return the next estimate (batch, n) in deviations, for the inputs (batch, m) that the plant received."""
        return self.observer.follow(self.x0 + state[..., : self.model.n], innovation, applied) - self.x0
