"""Where forces and physical parameters are written: our plants, Gymnasium's MuJoCo environments, and lists of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError

MODEL_UNITS = {
    "body_mass": "kg",
    "body_inertia": "kg m^2",
    "body_ipos": "m",
    "geom_friction": "1, m, m",
    "dof_damping": "N s/m or N m s/rad",
    "dof_armature": "kg or kg m^2",
    "dof_frictionloss": "N or N m",
    "jnt_stiffness": "N/m or N m/rad",
    "actuator_gear": "1",
    "actuator_gainprm": "of the actuator",
    "opt.gravity": "m/s^2",
    "opt.wind": "m/s",
    "opt.density": "kg/m^3",
    "opt.viscosity": "Pa s",
}
"""Fields of a MuJoCo model that are named when one is not found; any other field of real numbers works too."""
_WRENCH = ("x [N]", "y [N]", "z [N]", "about x [N m]", "about y [N m]", "about z [N m]")


class Target:
    """The plants of `num_envs` environments; values have a leading dimension of that size."""

    num_envs: int
    time_step: float
    """[s]"""
    channels: tuple[str, ...]
    """What `push` pushes, with units."""

    def push(self, force: torch.Tensor) -> None:
        """Add a disturbance (n, channels) for the coming step."""
        raise NotImplementedError

    def pull(self) -> None:
        """Take it back."""
        raise NotImplementedError

    def known(self) -> dict[str, str]:
        """Return physical parameters by name, with units."""
        raise NotImplementedError

    def get(self, name: str) -> torch.Tensor:
        """Return the current value (num_envs, ...) in float64, or raise `UnknownNameError`."""
        raise NotImplementedError

    def put(self, name: str, value: torch.Tensor) -> None:
        """Set the value (n, ...)."""
        raise NotImplementedError

    def shared(self, name: str) -> object | None:
        """Return an object that stays the same until somebody assigns the parameter, None if that cannot be seen."""
        return None

    def check(self, name: str, value: torch.Tensor) -> None:
        """Raise `InvalidValueError` if the parameter cannot have this value (n, ...)."""

    def unknown(self, name: str) -> UnknownNameError:
        """Return the error for a parameter that does not exist, with those that do."""
        known = ", ".join(f"{other} [{unit}]" for other, unit in self.known().items())
        hint = str(UnknownNameError.among("parameter", name, self.known())).split(" Known:")[0]
        return UnknownNameError(f"DynamicsShift: {hint} Known: {known}.")


class PlantTarget(Target):
    """One of this package's environments, single or vectorized."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.several = isinstance(env, VectorEnv)
        self.num_envs = env.num_envs if self.several else 1
        self.time_step = float(env.plant.time_step)
        self.channels = tuple(env.plant.disturbance_names)
        self.device = torch.device(env.device) if self.several else torch.device("cpu")
        self.before: Any = None

    def push(self, force: torch.Tensor) -> None:
        """Add to the disturbance that is set, so that forces of several wrappers and of the user's act together."""
        self.before = self.env.disturbance
        given = force if self.several else force[0].cpu().numpy()
        self.env.disturbance = given if self.before is None else self.before + given

    def pull(self) -> None:
        """Restore the disturbance that was set."""
        self.env.disturbance = self.before

    def known(self) -> dict[str, str]:
        """Return the plant's parameters."""
        units = self.env.plant.parameter_units
        return {name: units.get(name, "") for name in self.env.params}

    def get(self, name: str) -> torch.Tensor:
        """Return the value of `env.params`."""
        if name not in self.env.params:
            raise self.unknown(name)
        value, shape = self.env.params[name], self._shape(name)
        return value if value.ndim > len(shape) else value.expand(self.num_envs, *shape)

    def put(self, name: str, value: torch.Tensor) -> None:
        """Assign to `env.params`: one value for all where there is one for all now and all are the same."""
        one = self.shared(name) is not None and bool((value == value[:1]).all())
        self.env.params[name] = value[0] if one else value

    def shared(self, name: str) -> object | None:
        """Return the tensor in `env.params` while it holds one value for all; a batched one is written in place."""
        value = self.env.params[name]
        return value if value.ndim == len(self._shape(name)) else None

    def check(self, name: str, value: torch.Tensor) -> None:
        """Raise what the task file's model says about the value."""
        section: Any = getattr(self.env.plant.task, "parameters", None)
        fields = getattr(type(section), "model_fields", {})
        if name not in fields:
            return
        model: Any = type(section)
        try:
            model.model_validate({**section.model_dump(), name: value.tolist()})
        except ValueError as error:
            # pydantic's error is a ValueError, with its findings.
            message = next(iter(error.errors()), {}).get("msg", "") if hasattr(error, "errors") else str(error)  # type: ignore[attr-defined]
            unit = self.known()[name]
            raise InvalidValueError(
                f"DynamicsShift: {name} would become {value.tolist()} [{unit}]; {message[:1].lower()}{message[1:]}."
            ) from error

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.env.params.nominal[name].shape)


class MujocoTarget(Target):
    """A MuJoCo environment of Gymnasium's (one with `model` and `data`)."""

    channels = _WRENCH

    def __init__(self, env: Any, body: str | None = None) -> None:
        self.env, self.num_envs = env, 1
        self.time_step = float(env.dt)
        self.body = None if body is None else self._body(body)

    def _body(self, name: str) -> int:
        names = [self.env.model.body(i).name for i in range(self.env.model.nbody)]
        if name not in names:
            raise UnknownNameError(f"ForceDisturbance: {UnknownNameError.among('body', name, names[1:])}")
        return names.index(name)

    def push(self, force: torch.Tensor) -> None:
        """Add force and torque to the body's xfrc_applied."""
        self.before = self.env.data.xfrc_applied[self.body].copy()
        self.env.data.xfrc_applied[self.body] += force[0].cpu().numpy()

    def pull(self) -> None:
        """Restore xfrc_applied."""
        self.env.data.xfrc_applied[self.body] = self.before

    def known(self) -> dict[str, str]:
        """Return the usual fields of the model."""
        return dict(MODEL_UNITS)

    def get(self, name: str) -> torch.Tensor:
        """Return a field of the model, `opt.NAME` for one of its options."""
        holder, field = self._place(name)
        value = getattr(holder, field, None)
        real = isinstance(value, (float, np.ndarray)) and np.issubdtype(np.asarray(value).dtype, np.floating)
        if field.startswith("_") or not real:
            raise self.unknown(name)
        return torch.tensor(np.asarray(value, dtype=np.float64))[None]

    def put(self, name: str, value: torch.Tensor) -> None:
        """Write a field of the model and what MuJoCo derives from it."""
        mujoco: Any = importlib.import_module("mujoco")

        holder, field = self._place(name)
        if isinstance(getattr(holder, field), np.ndarray):
            getattr(holder, field)[...] = value[0].cpu().numpy()
        else:
            setattr(holder, field, float(value[0]))
        # mj_setConst works in the data it is given: not in those of the running episode.
        mujoco.mj_setConst(self.env.model, mujoco.MjData(self.env.model))

    def _place(self, name: str) -> tuple[Any, str]:
        return (self.env.model.opt, name[4:]) if name.startswith("opt.") else (self.env.model, name)


class ManyTargets(Target):
    """The environments of Gymnasium's SyncVectorEnv, one by one."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = list(targets)
        self.num_envs = len(self.targets)
        self.time_step, self.channels = self.targets[0].time_step, self.targets[0].channels

    def push(self, force: torch.Tensor) -> None:
        """Push each."""
        for row, target in enumerate(self.targets):
            target.push(force[row : row + 1])

    def pull(self) -> None:
        """Restore each."""
        for target in self.targets:
            target.pull()

    def known(self) -> dict[str, str]:
        """Return the first one's parameters."""
        return self.targets[0].known()

    def get(self, name: str) -> torch.Tensor:
        """Return all values."""
        return torch.cat([target.get(name) for target in self.targets])

    def put(self, name: str, value: torch.Tensor) -> None:
        """Set each value that changes."""
        for row, target in enumerate(self.targets):
            if not torch.equal(target.get(name)[0], value[row]):
                target.put(name, value[row : row + 1])

    def check(self, name: str, value: torch.Tensor) -> None:
        """Ask the first."""
        self.targets[0].check(name, value)


def target_of(env: Any, perturbation: str, body: str | None = None) -> Target:
    """Return where to write in an unwrapped environment; raise `InvalidValueError` for one without physics we know."""
    if hasattr(env, "plant") and isinstance(getattr(env, "params", None), Mapping):
        if body is not None:
            raise InvalidValueError(
                f"{perturbation}: body is {body!r}, but this environment takes forces on its channels "
                f"{', '.join(env.plant.disturbance_names) or '(none)'}; leave body out."
            )
        return PlantTarget(env)
    if hasattr(env, "model") and hasattr(env, "data") and hasattr(env.model, "nbody"):
        return MujocoTarget(env, body)
    if isinstance(env, VectorEnv) and isinstance(getattr(env, "envs", None), Sequence):
        # Gymnasium's SyncVectorEnv alone has them.
        return ManyTargets([target_of(one.unwrapped, perturbation, body) for one in env.envs])  # type: ignore[attr-defined]
    raise InvalidValueError(
        f"{perturbation} was given {env}, whose physics cannot be reached; expected an environment of this package, "
        "a MuJoCo environment of Gymnasium's, or a SyncVectorEnv of them."
    )


def channel_sizes(target: Target, size: float | tuple[float, ...]) -> torch.Tensor:
    """Return one number for each channel (channels,): those given from the first channel on, 0 for the others."""
    # One number for all would add newtons and newton metres on a body's six channels.
    given = size if isinstance(size, tuple) else (size,)
    count = len(target.channels)
    if len(given) > count:
        raise ShapeError(
            f"ForceDisturbance: size has {len(given)} numbers; expected at most {count}: {', '.join(target.channels)}."
        )
    return torch.tensor([*given, *(0.0,) * (count - len(given))], dtype=torch.float64)
