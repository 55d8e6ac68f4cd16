"""Linear systems of this package for python-control (the extra `robust-policies[control]`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robust_policies.control.linear_model import LinearModel
from robust_policies.control.norms import StateSpace
from robust_policies.errors import InvalidValueError, MissingFileError


def to_control(
    system: LinearModel | StateSpace,
    time_step: float | None = None,
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    name: str | None = None,
) -> Any:
    """Return a python-control `StateSpace` in discrete time.

    Args:
        system: a plant's linear model, whose own time step and names it has, or the four matrices of a system.
        time_step: [s], of a `StateSpace`; the model's own is not to be given again.
        inputs: their names; None: the model's, else python-control's.
        outputs: likewise.
        name: of the system.

    Raises:
        MissingFileError: python-control is not installed. InvalidValueError: a time step too many or too few.
    """
    try:
        import control
    except ImportError as error:
        raise MissingFileError("python-control is not installed; install robust-policies[control].") from error
    names: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "name": name}
    if isinstance(system, LinearModel):
        if time_step is not None and time_step != system.time_step:
            raise InvalidValueError(
                f"time_step is {time_step!r}; expected none, as the model's is {system.time_step:g} s."
            )
        time_step = system.time_step
        own = {"inputs": system.input_names, "outputs": system.output_names, "states": system.state_names}
        names = {**{key: list(map(_plain, value)) for key, value in own.items()}, **_given(names)}
    if time_step is None:
        raise InvalidValueError("time_step is missing; expected that of one step, in seconds.")
    return control.ss(system.A, system.B, system.C, system.D, time_step, **_given(names))


def _given(names: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in names.items() if value is not None}


def _plain(name: str) -> str:
    # A dot in a name is a system's and a signal's there.
    return name.replace(".", "_")
