"""The physical parameters of a MuJoCo model: tensors by name, and the models they make."""

# MuJoCo's compiled binding has no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import mujoco
import numpy as np
import torch

from robust_policies.envs.plant import Params
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError, UnknownNameError

UNITS = {
    "gravity": "m/s^2, world frame",
    "body_mass": "kg, a number a body",
    "body_inertia": "kg m^2, about the principal axes of each body",
    "geom_friction": "sliding [1], torsional [m] and rolling [m] of each geom",
    "dof_damping": "N s/m or N m s/rad, a number a degree of freedom",
    "dof_armature": "kg or kg m^2, a number a degree of freedom",
    "dof_frictionloss": "N or N m, a number a degree of freedom",
    "jnt_stiffness": "N/m or N m/rad, a number a joint",
    "actuator_gear": "force [N] or torque [N m] a unit of action, six numbers an actuator",
}
"""The parameters by MuJoCo's names for them, with their units."""
_SIGNED = {"gravity", "actuator_gear"}


def nominal_values(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Return copies of the model's values of all parameters it has."""
    values = {name: np.array(_field(model, name)) for name in UNITS}
    return {name: value for name, value in values.items() if value.size}


def _field(model: mujoco.MjModel, name: str) -> np.ndarray:
    return model.opt.gravity if name == "gravity" else getattr(model, name)


class MujocoParams(Mapping[str, torch.Tensor]):
    """Parameters with the models they belong to: one for all environments, or one for each.

    `models` has one entry or as many as there are environments; `explicit` the same ones with the explicit Euler
    integrator, one step of which reveals the acceleration. `version` grows whenever an entry is replaced.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], models: list[mujoco.MjModel]) -> None:
        self.tensors = dict(tensors)
        self.models = models
        self.version = 0
        self._explicit: list[mujoco.MjModel] | None = None
        self._repeated: dict[bool, list[mujoco.MjModel]] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def explicit(self) -> list[mujoco.MjModel]:
        """The models with the explicit Euler integrator."""
        if self._explicit is None:
            self._explicit = [_explicit(model) for model in self.models]
        return self._explicit

    def check(self, count: int) -> None:
        """Raise `ShapeError` unless the parameters are shared, or those of `count` environments."""
        if len(self.models) not in {1, count}:
            raise ShapeError(
                f"the parameters are those of {len(self.models)} environments; expected {count} of them, one a state."
            )

    def for_rows(self, count: int, explicit: bool = False) -> list[mujoco.MjModel]:
        """Return one model a row: the shared one `count` times, or the environments' own, which must be `count`."""
        models = self.explicit if explicit else self.models
        self.check(count)
        if len(models) == count:
            return models
        if len(self._repeated.get(explicit, ())) != count:
            self._repeated[explicit] = models * count
        return self._repeated[explicit]

    def take(self, rows: torch.Tensor, batched: set[str]) -> MujocoParams:
        """Return the parameters of the environments `rows` (n,), int64; `batched` names those with one value each."""
        if not batched:
            return self
        tensors = {name: value[rows] if name in batched else value for name, value in self.tensors.items()}
        numbers = rows.tolist()
        part = MujocoParams(tensors, [self.models[row] for row in numbers])
        if self._explicit is not None:
            part._explicit = [self._explicit[row] for row in numbers]
        return part

    def put(self, rows: torch.Tensor, part: MujocoParams, batched: set[str]) -> None:
        """Replace the parameters of the environments `rows` (n,), int64, by those of `part`."""
        if not batched:
            return
        for name in batched:
            self.tensors[name][rows] = part.tensors[name].to(self.tensors[name].dtype)
        for i, row in enumerate(rows.tolist()):
            self.models[row] = part.models[min(i, len(part.models) - 1)]
            if self._explicit is not None:
                self._explicit[row] = part.explicit[min(i, len(part.models) - 1)]
        self.version += 1


class ParameterTable:
    """Turns physical parameters into models."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self.values = nominal_values(model)
        self._shared = MujocoParams({}, [model])

    def batched(self, physical: Params) -> set[str]:
        """Return the parameters that have a value per environment."""
        return {name for name, value in physical.items() if value.ndim == self.values[name].ndim + 1}

    def prepare(self, physical: Params) -> MujocoParams:
        """Return the parameters with their models; the model's own where all values are nominal.

        A model of each environment is a copy, about 0.1 MB, with MuJoCo's derived constants computed anew.

        Raises:
            UnknownNameError, ShapeError, NonFiniteError, InvalidValueError: what is wrong with a parameter.
        """
        values = {name: self._checked(name, value) for name, value in physical.items()}
        changed = {name: value for name, value in values.items() if not np.array_equal(value, self.values[name])}
        batched = {name: value for name, value in changed.items() if value.ndim == self.values[name].ndim + 1}
        tensors = {name: value.clone() for name, value in physical.items()}
        per_environment = {len(values[name]) for name in self.batched(physical)}
        if len(per_environment) > 1:
            raise ShapeError(
                f"parameters are given for {' and '.join(map(str, sorted(per_environment)))} "
                "environments; expected the same number for all of them."
            )
        if not changed and not per_environment:
            shared = MujocoParams(tensors, self._shared.models)
            shared._explicit, shared._repeated = self._shared.explicit, self._shared._repeated
            return shared
        base = copy.copy(self.model)
        data = mujoco.MjData(base)
        write(base, data, {name: value for name, value in changed.items() if name not in batched})
        if not per_environment:
            return MujocoParams(tensors, [base])
        models = [copy.copy(base) for _ in range(per_environment.pop())]
        for row, model in enumerate(models):
            write(model, data, {name: value[row] for name, value in batched.items()})
        return MujocoParams(tensors, models)

    def _checked(self, name: str, value: torch.Tensor) -> np.ndarray:
        if name not in self.values:
            raise UnknownNameError.among("parameter", name, self.values)
        array, own = value.detach().to("cpu", torch.float64).numpy(), self.values[name].shape
        if array.shape != own and array.shape[1:] != own:
            raise ShapeError(
                f"{name} has shape {array.shape}; expected {own} or, per environment, (num_envs, "
                f"{', '.join(map(str, own))})."
            )
        if not np.isfinite(array).all():
            raise NonFiniteError(f"{name} holds NaN or infinite values; expected finite numbers [{UNITS[name]}].")
        if name not in _SIGNED and (array < 0).any():
            raise InvalidValueError(
                f"{name} is {array.min():g} somewhere; expected numbers of at least 0 [{UNITS[name]}]."
            )
        return array


def write(model: mujoco.MjModel, data: mujoco.MjData, values: Mapping[str, np.ndarray]) -> None:
    """Set parameters of a model, each of the shape MuJoCo gives it, and compute what MuJoCo derives from them."""
    for name, value in values.items():
        _field(model, name)[:] = value
    mujoco.mj_setConst(model, data)


def _explicit(model: mujoco.MjModel) -> mujoco.MjModel:
    copied = copy.copy(model)
    copied.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    copied.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_EULERDAMP)
    return copied
