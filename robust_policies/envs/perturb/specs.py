"""What each perturbation is told: one frozen model each, with units, ranges and defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from robust_policies.errors import InvalidValueError
from robust_policies.files.settings import Section, one_line


def _number(value: Any) -> float:
    """Return a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(float(value)):
        raise ValueError("expected a finite number")
    return float(value)


class _Numbers:
    """A validator of one number, or of one for each dimension, within [low, high]."""

    def __init__(self, low: float = -math.inf, high: float = math.inf, above: float = -math.inf, many: bool = True):
        self.low, self.high, self.above, self.many = low, high, above, many

    def __call__(self, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, np.ndarray):
            value = value.tolist()
        several = isinstance(value, (list, tuple))
        try:
            if several and not (self.many and len(value)):
                raise ValueError("expected one number")
            numbers = [_number(one) for one in value] if several else [_number(value)]
            if not all(self.low <= one <= self.high and one > self.above for one in numbers):
                raise ValueError("out of range")
        except ValueError as error:
            raise ValueError(f"expected {self._wanted()}") from error
        return tuple(numbers) if several else numbers[0]

    def _wanted(self) -> str:
        bounds = [
            text
            for bound, text in ((self.above, f"> {self.above:g}"), (self.low, f">= {self.low:g}"))
            if math.isfinite(bound)
        ] + ([f"<= {self.high:g}"] if math.isfinite(self.high) else [])
        one = " ".join(("a finite number", " and ".join(bounds))).strip()
        return f"{one}, or a list with one for each dimension" if self.many else one


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 0:
        raise ValueError("expected a whole number of at least 0")
    return int(value)


class _Range:
    """A validator of one number, or of the ends [low, high] of a range that is drawn from."""

    def __init__(self, low: float = -math.inf) -> None:
        self.low = low

    def __call__(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        several = isinstance(value, (list, tuple))
        at_least = f" >= {self.low:g}" if math.isfinite(self.low) else ""
        try:
            ends = tuple(_number(one) for one in value) if several else (_number(value),) * 2
            if len(ends) != 2 or not self.low <= ends[0] <= ends[1]:
                raise ValueError("not a range")
        except ValueError as error:
            raise ValueError(f"expected a finite number{at_least}, or [low, high] to draw from") from error
        return ends if several else ends[0]


Numbers = Annotated[float | tuple[float, ...], BeforeValidator(_Numbers())]
NonNegativeNumbers = Annotated[float | tuple[float, ...], BeforeValidator(_Numbers(low=0.0))]
Scale = Annotated[float | tuple[float, ...] | None, BeforeValidator(_Numbers(above=0.0))]
Probability = Annotated[float, BeforeValidator(_Numbers(low=0.0, high=1.0, many=False))]
Seconds = Annotated[float | None, BeforeValidator(_Numbers(above=0.0, many=False))]
Hertz = Annotated[float, BeforeValidator(_Numbers(above=0.0, many=False))]
Steps = Annotated[int, BeforeValidator(_whole)]
Range = Annotated[float | tuple[float, float], BeforeValidator(_Range())]
StartRange = Annotated[float | tuple[float, float], BeforeValidator(_Range(low=0.0))]
Kind = Literal["gaussian", "uniform", "sphere", "linf"]
Units = Literal["raw", "normalized"]
Fill = Literal["zero", "hold"]


def _field(default: Any, unit: str, description: str) -> Any:
    return Field(default, description=description, json_schema_extra={"unit": unit})


class Spec(Section):
    """The parameters of one perturbation."""

    acts_on: ClassVar[str] = "observation"

    @property
    def name(self) -> str:
        """The perturbation's name."""
        return type(self).__name__

    @classmethod
    def given(cls, positional: Sequence[Any] = (), named: Mapping[str, Any] | None = None) -> Any:
        """Return the model for arguments in the order of the fields and by name; raise a `UserError` naming one."""
        fields = list(cls.model_fields)
        if len(positional) > len(fields):
            raise InvalidValueError(
                f"{cls.__name__} was given {len(positional)} parameters; expected at most {len(fields)}: "
                f"{', '.join(fields)}."
            )
        values = dict(zip(fields, positional, strict=False))
        twice = [str(name) for name in named or {} if name in values]
        if twice:
            raise InvalidValueError(f"{cls.__name__} was given {twice[0]} twice; expected it once.")
        try:
            return cls.model_validate(values | dict(named or {}))
        except ValidationError as error:
            raise one_line(error, cls, cls.__name__) from error


class _Additive(Spec):
    """Something is added, in raw units or in those of a scale for each dimension."""

    @model_validator(mode="after")
    def _scale_only_when_used(self) -> _Additive:
        if getattr(self, "scale", None) is not None and getattr(self, "units", "") != "normalized":
            raise ValueError("scale was given with units 'raw'; expected units 'normalized', or no scale")
        return self


class _Noise(_Additive):
    @model_validator(mode="after")
    def _one_radius(self) -> _Noise:
        if getattr(self, "kind", "") == "sphere" and isinstance(getattr(self, "size", 0.0), tuple):
            raise ValueError(
                "size is a list and kind is 'sphere'; expected one radius (give a scale for each dimension)"
            )
        return self


_UNITS = "'raw': the signal's own units; 'normalized': multiples of the scale"
_SCALE = "what 1 means in each dimension; left out: half the width of the space, which must be finite"
_KIND = (
    "'gaussian' (size: standard deviation), 'uniform' (within +-size), 'sphere' (l2 norm exactly size), "
    "'linf' (+size or -size in every dimension)"
)


class ObservationNoise(_Noise):
    """Add random numbers to every observation."""

    size: NonNegativeNumbers = _field(0.1, "of the observation", "how large, one number or one for each dimension")
    kind: Kind = _field("gaussian", "", _KIND)
    units: Units = _field("raw", "", _UNITS)
    scale: Scale = _field(None, "of the observation", _SCALE)
    clip: bool = _field(False, "", "clip to the observation space, which is widened to +-inf otherwise")


class ObservationBias(_Additive):
    """Add the same offset to every observation of an episode."""

    size: Numbers = _field(0.1, "of the observation", "the offset, one number or one for each dimension")
    kind: Literal["constant", "uniform"] = _field(
        "constant", "", "'constant': the size itself; 'uniform': drawn within +-size at every episode start"
    )
    units: Units = _field("raw", "", _UNITS)
    scale: Scale = _field(None, "of the observation", _SCALE)
    clip: bool = _field(False, "", "clip to the observation space, which is widened to +-inf otherwise")


class ObservationDropout(Spec):
    """Lose observations: deliver zeros, or the last one delivered."""

    probability: Probability = _field(0.1, "", "of losing one, each step anew")
    fill: Fill = _field("zero", "", "what is delivered instead; an episode's first observation has nothing to hold")
    per_dimension: bool = _field(False, "", "lose each dimension by itself")


class ObservationDelay(Spec):
    """Deliver the observation of some steps before."""

    steps: Steps = _field(1, "steps", "how late; until then the episode's first observation is repeated")


class ObservationQuantize(_Additive):
    """Round observations to multiples of a step, as an encoder or a converter does."""

    step: NonNegativeNumbers = _field(0.1, "of the observation", "the width of a step; 0 leaves a dimension as it is")
    units: Units = _field("raw", "", _UNITS)
    scale: Scale = _field(None, "of the observation", _SCALE)


class ActionNoise(_Noise):
    """Add random numbers to every action (continuous actions only)."""

    acts_on = "action"
    size: NonNegativeNumbers = _field(0.1, "of the action", "how large, one number or one for each dimension")
    kind: Kind = _field("gaussian", "", _KIND)
    units: Units = _field("raw", "", _UNITS)
    scale: Scale = _field(None, "of the action", _SCALE)
    clip: bool = _field(True, "", "clip the sum to the action space")


class ActionDelay(Spec):
    """Apply the action of some steps before."""

    acts_on = "action"
    steps: Steps = _field(1, "steps", "how late; until then the idle action (0 within the space, the first choice)")


class ActionDropout(Spec):
    """Lose actions: apply the idle one, or the last one applied."""

    acts_on = "action"
    probability: Probability = _field(0.1, "", "of losing one, each step anew")
    fill: Fill = _field(
        "zero", "", "'zero': the idle action; 'hold': the last applied (an episode's first is not lost)"
    )
    per_dimension: bool = _field(False, "", "lose each dimension by itself")


class StickyAction(Spec):
    """Repeat the last applied action instead of the new one, at random."""

    acts_on = "action"
    probability: Probability = _field(0.25, "", "of repeating, each step anew; an episode's first action is applied")


class ForceDisturbance(Spec):
    """Push the plant: on its disturbance input, or a body of one of Gymnasium's MuJoCo environments."""

    acts_on = "plant"
    size: Numbers = _field(
        1.0,
        "of the channel; impulse: times s",
        "one number: on the first channel; a list: on the first channels in order",
    )
    kind: Literal["step", "impulse", "sine"] = _field(
        "step", "", "'step': constant; 'impulse': size is the area, force times time; 'sine': amplitude"
    )
    start: StartRange = _field(0.0, "s", "after the episode's start; [low, high]: drawn at every episode start")
    duration: Seconds = _field(None, "s", "left out: to the end of the episode; an impulse: one step")
    frequency: Hertz = _field(1.0, "Hz", "of the sine, which begins at 0 when it starts")
    body: str | None = _field(None, "", "which body of a Gymnasium MuJoCo environment")


class DynamicsShift(Spec):
    """Change a physical parameter: value * factor + offset."""

    acts_on = "plant"
    parameter: str = Field(
        description="the name of a physical parameter, or a field of a MuJoCo model", json_schema_extra={"unit": ""}
    )
    factor: Range = _field(1.0, "", "multiplies the value; [low, high]: drawn at every episode start")
    offset: Range = _field(0.0, "of the parameter", "is added then; [low, high]: drawn at every episode start")


SPECS: dict[str, type[Spec]] = {
    name: model
    for name, model in list(globals().items())
    if isinstance(model, type) and issubclass(model, Spec) and model is not Spec and not name.startswith("_")
}
"""The perturbations by name, in the order above."""
