"""A task from an MJCF model and a task.yaml, in the same interface as the plants written in torch."""

# MuJoCo's compiled binding has no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch

from robust_policies.envs.mujoco.backend import Backend
from robust_policies.envs.mujoco.c_backend import CBackend
from robust_policies.envs.mujoco.model import (
    Reading,
    body_named,
    compile_model,
    key_named,
    model_path,
    name_of,
    place_mocap,
    read,
)
from robust_policies.envs.mujoco.parameters import UNITS, MujocoParams, ParameterTable
from robust_policies.envs.mujoco.reset import Start
from robust_policies.envs.mujoco.rewards import Judge
from robust_policies.envs.mujoco.signals import Layout, Signal, readings, signal_item
from robust_policies.envs.mujoco.stages import runge_kutta
from robust_policies.envs.mujoco.task import MujocoTask
from robust_policies.envs.mujoco.warp_backend import WarpBackend
from robust_policies.envs.plant import Params, Plant
from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.mujoco_names import control_names

BACKENDS = ("auto", "c", "warp")


class MujocoPlant(Plant):
    """The physics of an MJCF model, `frame_skip` time steps a step; everything else as task.yaml lists it.

    State: positions, velocities and activations as MuJoCo orders them, then the readings (sensors, points and limit
    forces that the task's signals name), then 1 where the simulation failed. It is all there is: every step begins
    without the solver's warm start, so equal states and actions give equal steps, for any number of threads.

    Where a simulation is unstable by MuJoCo's own limit (a position, velocity or acceleration beyond 1e10, or NaN; it
    would reset it silently, whatever the model says of that here), the state stays what it was, marked as failed, and
    the episode terminates; MuJoCo in C notes it in MUJOCO_LOG.TXT in the working directory.

    `readings: after` computes readings at the new state; `last_stage` takes those of the last evaluation in the step,
    as an environment sees them that reads MuJoCo's data right after mj_step, like Gymnasium's.
    """

    kind = "mujoco"
    Task = MujocoTask
    differentiable = False
    terminates = True
    parameter_units = UNITS

    def __init__(self, task: MujocoTask, folder: Path | None = None) -> None:
        super().__init__(task, folder)
        self.frame_skip = task.frame_skip
        self.model_file = model_path(task.model, folder)
        items = [(signal_item(given, f"observation, item {i + 1}"), f"observation, item {i + 1}")
                 for i, given in enumerate(task.observation)]  # fmt: skip
        judge = Judge(task.reward, task.termination)
        wanted = [reading for item, place in items for reading in readings(item, place)] + judge.readings()
        wanted = list(dict.fromkeys(wanted))
        self.model = compile_model(read(self.model_file), self.model_file, task.options, wanted)
        self._check_model(task, wanted)
        if task.reset.keyframe is not None:
            place_mocap(self.model, key_named(self.model, task.reset.keyframe))
        self.layout = Layout(self.model, wanted)
        self.state_size, self.state_names = self.layout.size, self.layout.names()
        self.signals = [Signal(item, self.layout, place) for item, place in items]
        judge.bind(self.layout, self.time_step)
        self.judge = judge
        self.output_names = tuple(name for signal in self.signals for name in signal.names)
        self.observation_size = len(self.output_names)
        self.observation_high = np.concatenate([signal.high for signal in self.signals])
        self.observation_low = -self.observation_high
        self.action_low, self.action_high = self.model.actuator_ctrlrange.T.copy()
        self.action_names = tuple(f"control of {name}" for name in control_names(self.model))
        self.body = self._pushed_body(task)
        name = name_of(self.model, mujoco.mjtObj.mjOBJ_BODY, self.body)
        self.disturbance_names = tuple(
            f"{what} {axis} on {name} [{unit}]" for what, unit in (("force", "N"), ("torque", "N m")) for axis in "xyz"
        )
        self.start = Start(task.reset, self.layout)
        self.reset_size = self.start.size
        self.table = ParameterTable(self.model)
        self.parameter_units = {name: UNITS[name] for name in self.table.values}
        self.threads: int | None = None
        self._backend: Backend | None = None
        self._beginner: Backend | None = None
        self.renderer: Any = None
        self._constants: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}

    def _check_model(self, task: MujocoTask, wanted: list[Reading]) -> None:
        model = self.model
        expected = task.frame_skip * model.opt.timestep
        if abs(task.time_step - expected) > 1e-9 * expected:
            raise InvalidValueError(
                f"time_step is {task.time_step:g} s; expected frame_skip times the model's time step, "
                f"{task.frame_skip} * {model.opt.timestep:g} = {expected:g} s."
            )
        if not task.observation:
            raise InvalidValueError("observation is empty; expected at least one item, such as {positions: all}.")
        if not model.nu:
            raise InvalidValueError("the model has no actuator; expected at least one.")
        for name, limited in zip(control_names(model), model.actuator_ctrllimited, strict=True):
            if not limited:
                raise InvalidValueError(f"control {name!r} has no ctrlrange; expected one, which bounds the actions.")
        self.by_stages = bool(
            wanted and task.readings == "last_stage" and model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
        )
        if self.by_stages and (model.nq != model.nv or model.na):
            raise InvalidValueError("readings is 'last_stage' for a model with RK4 and a ball or free joint, or with "
                                    "activations; expected hinges and slides only, or readings: after.")  # fmt: skip

    def _pushed_body(self, task: MujocoTask) -> int:
        if task.disturbance.body is not None:
            return body_named(self.model, task.disturbance.body)
        moving = np.flatnonzero(self.model.body_weldid)
        if not len(moving):
            raise InvalidValueError("the model has no body that can move; expected at least one joint.")
        return int(moving[0])

    def use(self, backend: str, device: torch.device, num_envs: int) -> None:
        """Choose what computes the physics: "c", "warp", or "auto": C on the CPU and Warp on CUDA.

        Raises:
            InvalidValueError: an unknown backend, a package that is missing, or a feature Warp cannot run.
        """
        if backend not in BACKENDS:
            raise InvalidValueError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}.")
        if backend == "warp" or (backend == "auto" and device.type == "cuda"):
            chosen: Backend = WarpBackend(self.model, self.body, device, self.task.warp)  # type: ignore[attr-defined]
        else:
            chosen = CBackend(self.model, self.body, self.threads)
        self.close()
        self._backend = chosen

    @property
    def backend(self) -> Backend:
        """What computes the physics; MuJoCo's C library unless `use` chose another."""
        if self._backend is None:
            self._backend = CBackend(self.model, self.body, self.threads)
        return self._backend

    @property
    def _reader(self) -> Backend:
        """Computes the readings of start states: always in C, since their number changes from reset to reset."""
        if isinstance(self._backend, CBackend) or self._backend is None:
            return self.backend
        if self._beginner is None:
            self._beginner = CBackend(self.model, self.body, self.threads)
        return self._beginner

    def close(self) -> None:
        """Release threads, device memory and the renderer; they come back with the next use."""
        for held in (self._backend, self._beginner):
            if held is not None:
                held.close()
        if self.renderer is not None:
            self.renderer.close()
        self._backend = self._beginner = self.renderer = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_backend": None, "_beginner": None, "_constants": {}, "renderer": None}

    def nominal(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> dict[str, torch.Tensor]:
        """Return the model's own values of the parameters of `parameter_units`, in the shapes MuJoCo gives them."""
        return {name: torch.tensor(value, dtype=dtype, device=device) for name, value in self.table.values.items()}

    def prepare(self, physical: Params) -> MujocoParams:
        """Return the parameters with their models: one for all, or a copy per environment with its own values."""
        return self.table.prepare(physical)

    def take(self, params: Params, rows: torch.Tensor) -> MujocoParams:
        """Return the prepared parameters of the environments `rows`, int64 (k,)."""
        prepared = self._prepared(params)
        return prepared.take(rows, self.table.batched(prepared))

    def put(self, params: Params, rows: torch.Tensor, part: Params) -> None:
        """Replace the prepared parameters of the environments `rows` in place by those of `part`."""
        prepared = self._prepared(params)
        prepared.put(rows, self._prepared(part), self.table.batched(prepared))

    def _prepared(self, params: Params) -> MujocoParams:
        return params if isinstance(params, MujocoParams) else self.prepare(params)

    def clip(self, action: torch.Tensor) -> torch.Tensor:
        """Return the action (..., nu) within the actuators' ranges."""
        key = (action.device, action.dtype)
        if key not in self._constants:
            limits = (self.action_low, self.action_high)
            with torch.inference_mode(False):
                low, high = (torch.tensor(limit, dtype=action.dtype, device=action.device) for limit in limits)
            self._constants[key] = low, high
        low, high = self._constants[key]
        return torch.maximum(torch.minimum(action, high), low)

    def advance(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        params: Params,
        noise: torch.Tensor | None = None,
        disturbance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the state after `frame_skip` time steps of the model.

        The disturbance (..., 6) is a force [N] at the centre of mass and a torque [N m] on one body, world frame.
        Raises `ShapeError` for another number of actions or disturbances than of states.
        """
        shape = state.shape
        with torch.no_grad():
            before = state.detach().reshape(-1, self.state_size)
            there = {"device": self.backend.device, "dtype": torch.float64}
            control = self.clip(action.detach()).reshape(-1, self.action_size).to(**there)
            push = None if disturbance is None else disturbance.detach().reshape(-1, 6).to(**there)
            if len(control) != len(before) or (push is not None and len(push) != len(before)):
                raise ShapeError(f"{len(before)} states come with {len(control)} actions; expected one each.")
            physics = before[:, : self.layout.physics].to(**there)
            after, read, failed = self._advance(physics, control, push, self._prepared(params))
            if read.shape[-1]:
                failed = failed | ~torch.isfinite(read).all(-1)
            to = {"device": state.device, "dtype": state.dtype}
            mark = failed.to(**to).unsqueeze(-1)
            following = torch.cat((after.to(**to), read.to(**to), mark), dim=-1)
            # On a GPU asking would wait for it; on the CPU it saves copying all states.
            if failed.is_cuda or bool(failed.any()):
                kept = torch.cat((before[:, : self.layout.failed], torch.ones_like(mark)), dim=-1)
                following = torch.where(mark.bool(), kept, following)
            return following.reshape(shape)

    def _advance(
        self, physics: torch.Tensor, control: torch.Tensor, push: torch.Tensor | None, params: MujocoParams
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the physics, the readings and where it failed, after a step."""
        backend, columns = self.backend, self.layout.sensor_columns
        if self.by_stages:
            now, failed = physics, None
            if self.frame_skip > 1:
                advanced = backend.advance(now, control, push, params, self.frame_skip - 1)
                now, failed = advanced.physics.clone(), advanced.failed
            last = runge_kutta(
                lambda at: backend.evaluate(at, control, push, params), now, self.model.nq, self.model.opt.timestep
            )
            failed = last.failed if failed is None else last.failed | failed
            return last.physics, last.sensors[:, columns], failed
        advanced = backend.advance(physics, control, push, params, self.frame_skip)
        if not columns or self.task.readings == "last_stage":  # type: ignore[attr-defined]
            return advanced.physics, advanced.sensors[:, columns], advanced.failed
        after, failed = advanced.physics.clone(), advanced.failed
        evaluated = backend.evaluate(after, control, push, params)
        return after, evaluated.sensors[:, columns], failed | evaluated.failed

    def settle(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return states (n, state_size) with readings computed from their positions and velocities, without action.

        A start that is unstable has none: it is marked as failed, with zeros in their place.
        """
        if not self.layout.sensor_columns:
            return state
        physics = state[:, : self.layout.physics].to("cpu", torch.float64)
        control = torch.zeros((len(state), self.action_size), dtype=torch.float64)
        evaluated = self._reader.evaluate(physics, control, None, self._prepared(params))
        read = evaluated.sensors[:, self.layout.sensor_columns]
        failed = (evaluated.failed | ~torch.isfinite(read).all(-1)).unsqueeze(-1)
        read = torch.where(failed, 0.0, read).to(state.device, state.dtype)
        mark = torch.maximum(state[:, self.layout.failed :], failed.to(state.device, state.dtype))
        return torch.cat((state[:, : self.layout.physics], read, mark), dim=-1)

    def initial(self, uniform: torch.Tensor, params: Params, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return start states as `reset` in task.yaml describes them, with their readings."""
        physics = self.start(uniform)
        rest = torch.zeros((len(physics), self.state_size - physics.shape[-1]), dtype=uniform.dtype).to(uniform.device)
        return self.settle(torch.cat((physics, rest), dim=-1), params)

    def observe(self, state: torch.Tensor, params: Params, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the signals that `observation` in task.yaml lists."""
        return torch.cat([signal(state) for signal in self.signals], dim=-1)

    def reward(
        self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor, params: Params
    ) -> torch.Tensor:
        """Return the sum of the terms that `reward` in task.yaml lists, of the step from `state` to `following`."""
        return self.judge.reward(state, self.clip(action).to(following.dtype), following)

    def terminated(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return where a signal has left its range in `termination` of task.yaml, or the simulation failed."""
        return self.judge.terminated(state)
