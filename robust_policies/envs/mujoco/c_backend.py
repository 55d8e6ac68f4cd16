"""MuJoCo's C library on the CPU: `mujoco.rollout` with a pool of threads, no Python per environment."""

# MuJoCo's compiled binding has no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np
import torch
from mujoco import rollout

from robust_policies.envs.mujoco.backend import Advanced, Evaluated, unstable
from robust_policies.envs.mujoco.parameters import MujocoParams

_CTRL = int(mujoco.mjtState.mjSTATE_CTRL.value)
_PUSH = _CTRL | int(mujoco.mjtState.mjSTATE_XFRC_APPLIED.value)
# A simulation that becomes unstable is reset by MuJoCo, and with it its clock, which starts above zero here. MuJoCo
# looks before each step and at its acceleration, not at what the last step left: that is looked at here.
_CLOCK = 1.0
_INLINE = 8


class _Buffers(NamedTuple):
    initial: np.ndarray
    warm: np.ndarray
    control: np.ndarray
    states: np.ndarray
    sensors: np.ndarray


class CBackend:
    """The backend on the CPU. Results are bit for bit the same for any number of threads."""

    def __init__(self, model: mujoco.MjModel, body: int, threads: int | None = None) -> None:
        """Prepare for models of this model's sizes; the disturbance pushes the body of number `body`."""
        self.model, self.body, self.device = model, body, torch.device("cpu")
        self.threads = torch.get_num_threads() if threads is None else threads
        self._data = [mujoco.MjData(model)]
        self._inline = rollout.Rollout(nthread=0)
        self._pool: rollout.Rollout | None = None
        self._buffers: dict[tuple[int, bool], _Buffers] = {}

    def advance(
        self, physics: torch.Tensor, control: torch.Tensor, push: torch.Tensor | None, params: MujocoParams, steps: int
    ) -> Advanced:
        """Take `steps` time steps from states (n, nx); see `Backend.advance`."""
        return self._roll(physics, control, push, params.for_rows(len(physics)), steps)

    def evaluate(
        self, physics: torch.Tensor, control: torch.Tensor, push: torch.Tensor | None, params: MujocoParams
    ) -> Evaluated:
        """Return accelerations and sensors of (n, nx), from an explicit Euler step: v + h a, sensors before it."""
        after = self._roll(physics, control, push, params.for_rows(len(physics), explicit=True), 1)
        velocities = slice(self.model.nq, self.model.nq + self.model.nv)
        change = after.physics[:, velocities] - physics[:, velocities]
        return Evaluated(change / self.model.opt.timestep, after.sensors, after.failed)

    def _roll(
        self,
        physics: torch.Tensor,
        control: torch.Tensor,
        push: torch.Tensor | None,
        models: list[mujoco.MjModel],
        steps: int,
    ) -> Advanced:
        count, model = len(physics), self.model
        buffers = self._room(count, steps, push is not None)
        buffers.initial[:, 0] = _CLOCK
        buffers.initial[:, 1:] = physics.numpy()
        buffers.control[..., : model.nu] = control.numpy()[:, None]
        if push is not None:
            start = model.nu + 6 * self.body
            buffers.control[..., start : start + 6] = push.numpy()[:, None]
        crew, data = self._crew(count)
        crew.rollout(
            models,
            data,
            buffers.initial,
            buffers.control,
            control_spec=_CTRL if push is None else _PUSH,
            skip_checks=True,
            nstep=steps,
            initial_warmstart=buffers.warm,
            state=buffers.states,
            sensordata=buffers.sensors,
        )
        last = buffers.states[:, -1]
        late = _CLOCK + (steps - 0.5) * model.opt.timestep
        after = torch.from_numpy(last[:, 1:])
        failed = torch.from_numpy(~(last[:, 0] > late)) | unstable(after, model.nq + model.nv)
        return Advanced(after, torch.from_numpy(buffers.sensors[:, -1]), failed)

    def _crew(self, count: int) -> tuple[rollout.Rollout, list[mujoco.MjData]]:
        """Return who steps `count` rows: this thread where they are few, else a pool that starts when first needed."""
        if self.threads < 2 or count < _INLINE:
            return self._inline, self._data[:1]
        if self._pool is None:
            self._data += [mujoco.MjData(self.model) for _ in range(self.threads - len(self._data))]
            self._pool = rollout.Rollout(nthread=self.threads)
        return self._pool, self._data

    def _room(self, count: int, steps: int, push: bool) -> _Buffers:
        """Return buffers for `count` rows, the first rows of ones that grow when that is not enough."""
        room = self._buffers.get((steps, push))
        if room is None or len(room.initial) < count:
            model, columns = self.model, self.model.nu + (6 * self.model.nbody if push else 0)
            size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
            room = _Buffers(
                np.zeros((count, size)),
                np.zeros((count, model.nv)),
                np.zeros((count, steps, columns)),
                np.zeros((count, steps, size)),
                np.zeros((count, steps, model.nsensordata)),
            )
            self._buffers[steps, push] = room
        return room if len(room.initial) == count else _Buffers(*(array[:count] for array in room))

    def close(self) -> None:
        """End the threads."""
        self._inline.close()
        if self._pool is not None:
            self._pool.close()
