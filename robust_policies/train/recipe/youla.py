"""What a recipe says of the Youla wrapper that its policy is trained in: `youla: {...}`."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from robust_policies.files.settings import Strict

Numbers = list[float] | list[list[float]]


class WeightsSection(Strict):
    """Weights of the base controller, each a diagonal or a full matrix; null: the default of `control.lqg.design`."""

    Q: Numbers | None = Field(default=None, description="of the states")
    R: Numbers | None = Field(default=None, description="of the inputs")
    W: Numbers | None = Field(default=None, description="covariance of the process noise")
    V: Numbers | None = Field(default=None, description="covariance of the measurement noise")

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights that are set, as matrices."""
        given = {name: value for name in "QRWV" if (value := getattr(self, name)) is not None}
        return {name: np.diag(value) if not isinstance(value[0], list) else np.array(value)
                for name, value in given.items()}  # fmt: skip

    @field_validator("Q", "R", "W", "V")
    @classmethod
    def _square(cls, value: Numbers | None) -> Numbers | None:
        sizes = {len(row) for row in value or () if isinstance(row, list)}
        if value is not None and (not value or (sizes and sizes != {len(value)})):
            raise ValueError("expected a list of numbers (a diagonal), or a square list of lists")
        return value


class YoulaSection(Strict):
    """The policy reads the innovation of an observer and adds to a base controller; null: it acts alone."""

    estimator: Literal["current", "predictor"] = Field(default="current", description="of the base controller")
    weights: WeightsSection = Field(default_factory=WeightsSection)
    reserve: float = Field(default=0.0, ge=0, lt=1, description="share of the actuators' range kept from the policy")
    limit: float | None = Field(
        default=None, gt=0, description="largest normalised Youla input; null: all that the reserve leaves"
    )
    quantum: float = Field(default=0.0, ge=0, description="the actuators take multiples of it")
    delay: int = Field(default=0, ge=0, description="steps by which inputs act late, beyond what the model says")
    reference: list[int] | None = Field(
        default=None, description="observations that no action can influence; null: found by a trial"
    )
    region: list[float] = Field(
        default_factory=list, description="half widths of the model's states in which the nonlinear plant is judged"
    )

    @field_validator("region")
    @classmethod
    def _widths(cls, value: list[float]) -> list[float]:
        if any(width <= 0 for width in value):
            raise ValueError("expected numbers > 0, one for each state of the linear model")
        return value

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the wrapper."""
        names = ("estimator", "reserve", "limit", "quantum", "delay", "reference", "region")
        return {name: getattr(self, name) for name in names} | {"weights": self.weights.arrays()}
