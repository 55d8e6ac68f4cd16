"""What the single and the vector wrappers share: their arguments, their place in the stack, the keys of their info."""

from __future__ import annotations

import inspect
import re
import types
from typing import Any, TypeVar

import gymnasium
import numpy as np
import torch

from robust_policies.envs.perturb import actions, observations, physics
from robust_policies.envs.perturb.core import Perturbation
from robust_policies.envs.perturb.specs import SPECS, Spec
from robust_policies.errors import ShapeError
from robust_policies.files.settings import units

IMPLEMENTATIONS: dict[str, type[Perturbation]] = {
    "ObservationNoise": observations.Noise,
    "ObservationBias": observations.Bias,
    "ObservationDropout": observations.Dropout,
    "ObservationDelay": observations.Delay,
    "ObservationQuantize": observations.Quantize,
    "ActionNoise": actions.Noise,
    "ActionDelay": actions.Delay,
    "ActionDropout": actions.Dropout,
    "StickyAction": actions.Sticky,
    "ForceDisturbance": physics.Force,
    "DynamicsShift": physics.Shift,
}


W = TypeVar("W")


def made(base: type[W], module: str) -> dict[str, type[W]]:
    """Return one subclass of a wrapper's `base` for each specification, by name, as if written in `module`."""
    return {
        name: types.new_class(
            name, (base,), exec_body=lambda body, spec=spec: body.update(Spec=spec, __module__=module)
        )
        for name, spec in SPECS.items()
    }


def signature(spec: type[Spec]) -> inspect.Signature:
    """Return a wrapper's signature: the environment, then the fields of its specification."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("env", kind)] + [
        inspect.Parameter(name, kind, default=inspect.Parameter.empty if field.is_required() else field.default)
        for name, field in spec.model_fields.items()
    ]
    return inspect.Signature(parameters)


def documentation(spec: type[Spec]) -> str:
    """Return a wrapper's help: what it does, then each parameter with unit, meaning and default."""
    lines = [(spec.__doc__ or "").strip(), "", "Args:", "    env: what is wrapped."]
    for name, field in spec.model_fields.items():
        unit = units(spec)[name]
        default = "" if field.is_required() else f" Default: {field.default!r}."
        lines.append(f"    {name}{f' [{unit}]' if unit else ''}: {field.description}.{default}")
    return "\n".join(lines)


def position(env: Any, name: str) -> int:
    """Return how many perturbations of this name the environment already wears."""
    count = 0
    while env is not env.unwrapped:
        specification = getattr(env, "specification", None)
        count += isinstance(specification, Spec) and specification.name == name
        env = env.env
    return count


def natural_space(env: Any, attribute: str) -> gymnasium.Space:
    """Return the observation space beneath the perturbations that are directly further in."""
    while isinstance(getattr(env, "specification", None), Spec):
        env = env.env
    return getattr(env, attribute)


def info_key(name: str, place: int, end: str = "size") -> str:
    """Return "observation_noise_size" for ObservationNoise, "observation_noise_2_size" for the second one."""
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    return "_".join((snake, *((str(place + 1),) if place else ()), end))


def tensor_of(what: str, given: Any, device: torch.device) -> torch.Tensor:
    """Return numbers as a tensor on `device`; raise `ShapeError` for what is no array of numbers or elsewhere."""
    if isinstance(given, torch.Tensor):
        if given.device.type != device.type or device.index not in {None, given.device.index}:
            raise ShapeError(f"{what} are on device {given.device}; expected {device}.")
        return given.detach()
    try:
        return torch.as_tensor(np.ascontiguousarray(given), device=device).reshape(np.shape(given))
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{what} are not an array of numbers: {error}.") from error
