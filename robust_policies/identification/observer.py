"""A learned contracting observer: an identified model whose outputs are the state, run as an estimator.

xh+ = o(xh, y, u) with |o(a, y, u) - o(b, y, u)|_P <= al |a - b|_P by construction: two estimates that see the same
measurements forget where they began, however well or badly they estimate. What is proven of the error is in
`observer_bound`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_policies.control.linearize import linearize_plant
from robust_policies.envs import load_plant
from robust_policies.errors import CorruptFileError, InvalidValueError, ShapeError
from robust_policies.files.atomic import read_json
from robust_policies.identification.model import JSON, SCHEMA, IdentifiedModel, load_model
from robust_policies.identification.records import Array


class LearnedObserver:
    """xh+ = o(xh, y, u) in the plant's units, an `control.observers.Observer`; it runs in float64.

    Args:
        model: whose outputs are the state, and whose inputs are the measured signals, then the inputs of the plant.
        measured: how many of the model's inputs are measured signals, p.
        initial: (n,) the estimate at the beginning of episodes.
        task: name or folder of the plant's task, "" where none is known: `innovation` needs one.

    Raises:
        InvalidValueError: the model's output is not its state. ShapeError: the numbers do not fit it.
    """

    def __init__(self, model: IdentifiedModel, measured: int, initial: Sequence[float], task: str = "") -> None:
        if not model.measures_state:
            raise InvalidValueError("The model's output is not its state; identify it with cell.output=state.")
        signals = model.signals
        if not 0 < measured <= len(signals.inputs) or len(initial) != len(signals.outputs):
            raise ShapeError(
                f"measured is {measured} and initial has {len(initial)} number(s); the model has "
                f"{len(signals.inputs)} inputs and {len(signals.outputs)} states."
            )
        self.model, self.task = model, task
        self.initial = tuple(map(float, initial))
        self.state_size, self.output_size = len(signals.outputs), measured
        self.input_size = len(signals.inputs) - measured
        self.state_names = signals.outputs
        self.cell = model.cell.double_copy().requires_grad_(False)
        with torch.no_grad():
            self.explicit = self.cell.explicit()

    @cached_property
    def plant(self) -> Any:
        """The plant of the task; raises InvalidValueError where none is known."""
        if not self.task:
            raise InvalidValueError("This observer was learned from records alone; give task=... of its plant.")
        return load_plant(self.task)

    @property
    def sizes(self) -> int:
        """The number of observations that the measured signals are taken from."""
        return self.output_size

    @property
    def rate(self) -> float:
        """The contraction rate al that the cell was built for."""
        return self.cell.rate or 1.0

    def start(self, count: int, like: Tensor) -> Tensor:
        """Return the first estimates (count, n), of the dtype and device of `like`."""
        return torch.as_tensor(self.initial, dtype=like.dtype, device=like.device).expand(count, -1).clone()

    def corrected(self, estimate: Tensor, observation: Tensor) -> Tensor:
        """Return the estimates (..., n) as they are: they are predictions from the measurements before."""
        return estimate

    def advance(self, estimate: Tensor, observation: Tensor, applied: Tensor) -> Tensor:
        """Return o(xh, y, u), the next estimates (..., n), from observations (..., p) and inputs (..., m)."""
        like = estimate
        both = torch.cat((observation.to(torch.float64), applied.to(torch.float64)), -1)
        offset, scale, x_offset, x_scale = self._scales(like.device)
        u, x = (both - offset) / scale, (estimate.to(torch.float64) - x_offset) / x_scale
        cell, explicit = self._on(like.device)
        _, following = cell.step(explicit, u.reshape(-1, u.shape[-1]), x.reshape(-1, x.shape[-1]))
        return (following.reshape(estimate.shape) * x_scale + x_offset).to(like.dtype)

    def innovation(self, estimate: Tensor, observation: Tensor) -> Tensor:
        """Return y - h(xh) (..., p) for estimates (..., n) and observations (..., p), h being the plant's."""
        return observation.to(estimate.dtype) - self.measurement(estimate)

    def follow(self, estimate: Tensor, innovation: Tensor, applied: Tensor) -> Tensor:
        """Return the next estimates (..., n) from innovations (..., p) and inputs (..., m), which the plant clips."""
        return self.advance(estimate, self.measurement(estimate) + innovation, self._clipped(applied))

    def measurement(self, estimate: Tensor) -> Tensor:
        """Return h(xh) (..., p) without noise."""
        return self.plant.observe(estimate, self.plant.prepare(self.plant.nominal(device=estimate.device)))

    def save(self, folder: str | Path) -> Path:
        """Return `folder` after writing model.json and model.safetensors there, as `identify` does."""
        own = {"measured": self.output_size, "initial": list(self.initial), "task": self.task}
        return self.model.save(folder, observer=own)

    def _clipped(self, applied: Tensor) -> Tensor:
        low, high = (torch.as_tensor(end).to(applied) for end in (self.plant.action_low, self.plant.action_high))
        return torch.minimum(torch.maximum(applied, low), high)

    def _scales(self, device: torch.device) -> tuple[Tensor, ...]:
        s = self.model.signals
        return tuple(
            torch.as_tensor(part, dtype=torch.float64, device=device)
            for part in (s.input_offset, s.input_scale, s.output_offset, s.output_scale)
        )

    def _on(self, device: torch.device) -> tuple[Any, Any]:
        """Return the cell and its arrays on a device."""
        if next(self.cell.parameters()).device != device:
            self.cell = self.cell.to(device)
            with torch.no_grad():
                self.explicit = self.cell.explicit()
        return self.cell, self.explicit


def load_observer(folder: str | Path, task: str | None = None) -> LearnedObserver:
    """Return the observer in a folder that `LearnedObserver.save` wrote.

    Args:
        folder: of model.json and model.safetensors.
        task: of its plant, in place of the one that was saved.

    Raises:
        MissingFileError, SchemaError: as `load_model`. CorruptFileError: the same, or the model is no observer.
    """
    model, path = load_model(folder), Path(folder) / JSON
    own = read_json(path, "model", SCHEMA).get("observer")
    if not isinstance(own, dict):
        raise CorruptFileError(f"{path} is of a model that is no observer; see LearnedObserver(model, ...).")
    try:
        return LearnedObserver(model, own["measured"], own["initial"], own["task"] if task is None else task)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path} holds no whole observer ({error}); learn it again.") from error


def observed(plant: Any, region: Sequence[float], inputs: Sequence[float] | None = None) -> tuple[Array, Array, str]:
    """Return the corners (n + m,) of a box of states and inputs about a plant's equilibrium, and the box in words.

    Args:
        plant: of a task.
        region: half widths (n,) of the states.
        inputs: half widths (m,) of the inputs, cut with the actuators' limits; None: all that they allow.
    """
    model = linearize_plant(plant)
    if model.n != plant.state_size:
        raise InvalidValueError(
            f"A {plant.kind} plant has states that nothing moves; expected one whose states all do."
        )
    x, half = np.asarray(model.x0, float), np.asarray(region, float)
    low, high = (np.asarray(end, float) for end in (plant.action_low, plant.action_high))
    for name, given, size in (("region", region, len(x)), ("inputs", inputs, len(low))):
        if given is not None and (len(given) != size or not (np.asarray(given, float) > 0).all()):
            raise ShapeError(f"{name} is {list(given)}; expected {size} half widths > 0.")
    if inputs is not None:
        low, high = np.maximum(low, model.u0 - np.asarray(inputs)), np.minimum(high, model.u0 + np.asarray(inputs))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise InvalidValueError("The actuators have no limits; give inputs=..., half widths about the equilibrium's.")
    corners = np.concatenate((x - half, low)), np.concatenate((x + half, high))
    names = (*map(plain_name, plant.state_names), *map(plain_name, plant.action_names))
    words = ", ".join(f"{a:g} <= {name} <= {b:g}" for name, a, b in zip(names, *corners, strict=True))
    return *corners, words


def plain_name(name: str) -> str:
    """Return a signal's name without its unit."""
    return name.split(" [")[0]
