"""What a compiled MuJoCo model's controls are called, for tasks and linear models alike. Nothing is imported here."""

from __future__ import annotations

from typing import Any

# MuJoCo's mjtCtrlInput: which inputs an actuator with several takes, in this order.
_INPUTS = {1: "position", 2: "velocity", 4: "feedforward", 8: "voltage", 32: "pressure"}


def control_names(model: Any, unnamed: str = "") -> tuple[str, ...]:
    """Return a name (nu,) for every control: its actuator's, with the input where the actuator owns several.

    Since MuJoCo 4 an actuator may own several controls or none (a PID servo takes a position and a velocity), so the
    number of a control is not that of an actuator. `unnamed`: what stands before the number of one without a name.
    """
    # A model of an older MuJoCo has one control an actuator.
    counts = getattr(model, "actuator_ctrlnum", [1] * model.nu)
    names: list[str] = []
    for actuator, count in enumerate(counts):
        name = model.actuator(actuator).name or f"{unnamed}{actuator}"
        names += [name] if count == 1 else [f"{name} {what}" for what in _inputs(model, actuator, int(count))]
    return tuple(names)


def _inputs(model: Any, actuator: int, count: int) -> list[str]:
    signature = int(model.actuator_ctrlspec[actuator])
    named = [what for bit, what in _INPUTS.items() if signature & bit]
    # The signature of a servo of orientations is no such set: its controls are the parts of one target.
    return named if len(named) == count else [str(i) for i in range(count)]
