"""What a recipe says of the Youla wrapper that its policy is trained in: `youla: {...}`."""

from __future__ import annotations

from dataclasses import fields
from functools import reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import Field, create_model, field_validator

from robust_policies.files.settings import Strict
from robust_policies.policies.youla.base import YoulaOptions

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
        return {
            name: np.diag(value) if not isinstance(value[0], list) else np.array(value) for name, value in given.items()
        }

    @field_validator("Q", "R", "W", "V")
    @classmethod
    def _square(cls, value: Numbers | None) -> Numbers | None:
        sizes = {len(row) for row in value or () if isinstance(row, list)}
        if value is not None and (not value or (sizes and sizes != {len(value)})):
            raise ValueError("expected a list of numbers (a diagonal), or a square list of lists")
        return value


class _Designed(Strict):
    """How the base controller is designed."""

    estimator: Literal["current", "predictor"] = Field(default="current", description="of the base controller")
    weights: WeightsSection = Field(default_factory=WeightsSection)


def _as_key(hint: Any) -> Any:
    """Return the type of an option as a recipe has it, where lists stand for tuples; limits and description stay."""
    if get_origin(hint) is tuple:
        return list[get_args(hint)[0]]
    if get_origin(hint) is UnionType:
        return reduce(or_, map(_as_key, get_args(hint)))
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        return Annotated[_as_key(inner), *notes]
    return hint


def _keys() -> dict[str, Any]:
    """Return the options of the Youla wrapper by name, each with type and default."""
    hints = get_type_hints(YoulaOptions, include_extras=True)
    return {
        field.name: (_as_key(hints[field.name]), Field(default_factory=list) if field.default == () else field.default)
        for field in fields(YoulaOptions)
    }


class YoulaSection(create_model("_Options", __base__=_Designed, **_keys())):
    """The policy reads the innovation of an observer and adds to a base controller; null: it acts alone."""

    @field_validator("region")
    @classmethod
    def _widths(cls, value: list[float]) -> list[float]:
        if any(width <= 0 for width in value):
            raise ValueError("expected numbers > 0, one for each state of the linear model")
        return value

    def options(self) -> YoulaOptions:
        """Return the options of the wrapper."""
        return YoulaOptions(**{field.name: getattr(self, field.name) for field in fields(YoulaOptions)})

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the wrapper."""
        return {"options": self.options(), "estimator": self.estimator, "weights": self.weights.arrays()}
