"""MuJoCo-Warp on a GPU: all worlds advance together in float32, a step replayed as one CUDA graph.

On the CPU it gives the same results slowly, which is for testing. Tensors are exchanged through views of Warp's memory:
nothing leaves the device.
"""

# MuJoCo's compiled binding has no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import torch

from robust_policies.envs import incidents
from robust_policies.envs.mujoco.backend import LIMIT, Advanced, Evaluated, unstable
from robust_policies.envs.mujoco.parameters import UNITS, MujocoParams
from robust_policies.envs.mujoco.task import WarpSizes
from robust_policies.errors import DeviceError, InvalidValueError

_DERIVED = (
    "body_subtreemass",
    "body_invweight0",
    "dof_invweight0",
    "tendon_length0",
    "tendon_invweight0",
    "actuator_acc0",
)
_KINDS = {
    "BROADPHASE": "contacts",
    "NARROWPHASE": "contacts",
    "CCD": "contacts",
    "NEFC": "constraints",
    "NJMAX_NNZ": "constraints",
}
"""What each of MuJoCo-Warp's overflow flags is about; others go by their name."""


def _load() -> tuple[Any, Any]:
    """Return the modules warp and mujoco_warp, or raise `InvalidValueError` with what to install."""
    try:
        return importlib.import_module("warp"), importlib.import_module("mujoco_warp")
    except ImportError as error:
        raise InvalidValueError(
            f"backend is 'warp', which needs the package {error.name}; install it with "
            "`pip install robust-policies[warp]`, or use backend='c'."
        ) from error


def _marker(wp: Any) -> Any:
    """Return the kernel that marks the worlds with a value beyond MuJoCo's limit, or NaN."""

    def mark(values: Any, limit: float, beyond: Any) -> None:
        world, column = wp.tid()
        # Written so that NaN is beyond the limit.
        if not (wp.abs(values[world, column]) <= limit):
            beyond[world] = 1

    mark.__annotations__ = {"values": wp.array2d(dtype=float), "limit": float, "beyond": wp.array(dtype=int)}
    return wp.kernel(mark)


class _Worlds:
    """The memory of one number of worlds, and the graphs recorded on it."""

    def __init__(self, data: Any, beyond: Any, views: dict[str, torch.Tensor]) -> None:
        self.data, self.beyond, self.views = data, beyond, views
        self.graphs: dict[int, Any] = {}


class WarpBackend:
    """The backend on a CUDA device (on the CPU for testing)."""

    def __init__(self, model: mujoco.MjModel, body: int, device: torch.device, sizes: WarpSizes) -> None:
        """Check that MuJoCo-Warp can run the model; raise `InvalidValueError` with the feature that it cannot."""
        self.wp, self.mjw = _load()
        self.model, self.body, self.device, self.sizes = model, body, device, sizes
        if device.type == "cpu":
            warnings.warn(
                "MuJoCo-Warp runs on the CPU here, which is slow and meant for testing; use backend='c', or "
                "a CUDA device.",
                UserWarning,
                stacklevel=2,
            )
        self.wp.init()
        if device.type == "cuda" and (device.index or 0) >= self.wp.get_cuda_device_count():
            raise DeviceError(
                f"Device {str(device)!r} runs this task by MuJoCo-Warp, and warp {self.wp.__version__} sees "
                f"{self.wp.get_cuda_device_count()} CUDA device(s); install a CUDA build of warp-lang, or use 'cpu'."
            )
        self._warp_device = self.wp.get_device("cpu" if device.type == "cpu" else f"cuda:{device.index or 0}")
        self._worlds: dict[int, _Worlds] = {}
        self._of: tuple[MujocoParams | None, int] = (None, 0)
        self._many = 1
        self._model = self._put(model)
        # It is said below in words, once, and not by every kernel in every step.
        self._model.opt.warn_overflow = 0
        self._mark = _marker(self.wp)
        self._runge_kutta = model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4

    def _put(self, model: mujoco.MjModel) -> Any:
        try:
            with self.wp.ScopedDevice(self._warp_device):
                return self.mjw.put_model(model)
        except (NotImplementedError, ValueError) as error:
            raise InvalidValueError(
                f"backend is 'warp', and MuJoCo-Warp cannot run a feature of the model: {' '.join(str(error).split())} "
                "Expected a model without it; use backend='c'."
            ) from error

    def advance(
        self, physics: torch.Tensor, control: torch.Tensor, push: torch.Tensor | None, params: MujocoParams, steps: int
    ) -> Advanced:
        """Take `steps` time steps from states (n, nx); see `Backend.advance`."""
        worlds = self._fill(physics, control, push, params)
        self._run(worlds, steps)
        after, sensors = self._physics(worlds), worlds.views["sensordata"].to(torch.float64)
        failed = worlds.views["beyond"].bool() | unstable(after, self.model.nq + self.model.nv)
        return Advanced(after, sensors, failed)

    def evaluate(
        self, physics: torch.Tensor, control: torch.Tensor, push: torch.Tensor | None, params: MujocoParams
    ) -> Evaluated:
        """Return accelerations and sensors at states (n, nx)."""
        worlds = self._fill(physics, control, push, params)
        self._run(worlds, 0)
        acceleration = worlds.views["qacc"].to(torch.float64)
        sensors = worlds.views["sensordata"].to(torch.float64)
        return Evaluated(acceleration, sensors, worlds.views["beyond"].bool())

    def _physics(self, worlds: _Worlds) -> torch.Tensor:
        parts = [worlds.views[name] for name in ("qpos", "qvel", "act")[: 3 if self.model.na else 2]]
        return torch.cat(parts, dim=-1).to(torch.float64)

    def _fill(
        self, physics: torch.Tensor, control: torch.Tensor, push: torch.Tensor | None, params: MujocoParams
    ) -> _Worlds:
        self._use(params, len(physics))
        worlds = self._worlds_of(len(physics))
        nq, nv, views = self.model.nq, self.model.nv, worlds.views
        views["qpos"].copy_(physics[:, :nq])
        views["qvel"].copy_(physics[:, nq : nq + nv])
        if self.model.na:
            views["act"].copy_(physics[:, nq + nv :])
        if self.model.nu:
            views["ctrl"].copy_(control)
        views["qacc_warmstart"].zero_()
        views["time"].zero_()
        views["beyond"].zero_()
        pushed = views["xfrc_applied"][:, self.body]
        pushed.zero_() if push is None else pushed.copy_(push)
        return worlds

    def _worlds_of(self, count: int) -> _Worlds:
        if count not in self._worlds:
            with self.wp.ScopedDevice(self._warp_device):
                data = self.mjw.make_data(
                    self.model, nworld=count, nconmax=self.sizes.pooled_contacts_per_world, njmax=self.sizes.constraints
                )
                beyond = self.wp.zeros(count, dtype=int)
            # Warp cleared this memory on its own stream; torch writes to it on another.
            self.wp.synchronize_device(self._warp_device)
            names = ["qpos", "qvel", "qacc", "qacc_warmstart", "time", "xfrc_applied", "sensordata", "overflow"]
            names += (["act"] if self.model.na else []) + (["ctrl"] if self.model.nu else [])
            views = {name: self.wp.to_torch(getattr(data, name)) for name in names}
            self._worlds[count] = _Worlds(data, beyond, views | {"beyond": self.wp.to_torch(beyond)})
        return self._worlds[count]

    def _run(self, worlds: _Worlds, steps: int) -> None:
        """Take `steps` time steps, or with 0 only evaluate; recorded as a graph the first time on a GPU."""

        def launch() -> None:
            for _ in range(max(1, steps)):
                self._look(worlds, "qpos", "qvel")
                if self._runge_kutta or not steps:
                    # After a step of Runge and Kutta the acceleration is a mean of its stages: MuJoCo looks at the
                    # first.
                    self.mjw.forward(self._model, worlds.data)
                    self._look(worlds, "qacc")
                    if steps:
                        self.mjw.rungekutta4(self._model, worlds.data)
                else:
                    self.mjw.step(self._model, worlds.data)
                    self._look(worlds, "qacc")

        if self.device.type == "cpu":
            with self.wp.ScopedDevice(self._warp_device):
                launch()
        else:
            if steps not in worlds.graphs:
                worlds.graphs[steps] = self._record(worlds, launch)
            stream = self.wp.stream_from_torch(torch.cuda.current_stream(self.device))
            self.wp.capture_launch(worlds.graphs[steps], stream=stream)
        self._report(worlds)

    def _look(self, worlds: _Worlds, *names: str) -> None:
        """Mark the worlds that MuJoCo would call unstable: it looks before each step, and at its acceleration."""
        for name in names:
            values = getattr(worlds.data, name)
            self.wp.launch(self._mark, dim=values.shape, inputs=[values, LIMIT], outputs=[worlds.beyond])

    def _report(self, worlds: _Worlds) -> None:
        """Tell where room ran out in the last steps: forces are missing then, and the run is not MuJoCo's."""
        flags = worlds.views["overflow"]
        if not bool(flags.any()):
            return
        bits = int(np.bitwise_or.reduce(flags.cpu().numpy()))
        flags.zero_()
        for kind in self._kinds(bits):
            incidents.report(
                f"MuJoCo-Warp had no room for all {kind}: forces are missing, so what it computed is wrong. "
                + self._room(kind, worlds)
            )

    def _kinds(self, bits: int) -> list[str]:
        """Return of what there was more than room, by MuJoCo-Warp's flags."""
        # A solver that stops at its limit of iterations, as it does in C, is no lack of room.
        others = {"ALL", "ITERATIONS", "LS_ITERATIONS"}
        names = {str(flag.name) for flag in self.mjw.OverflowType if flag.value & bits} - others
        return sorted({_KINDS.get(name, f"{name.lower()} entries") for name in names})

    def _room(self, kind: str, worlds: _Worlds) -> str:
        count = len(worlds.views["overflow"])
        if kind == "contacts":
            total = worlds.data.naconmax
            return (
                f"All {count} worlds share one pool of {total}, {total // count} for each on average; set a larger "
                "warp.pooled_contacts_per_world in task.yaml."
            )
        if kind == "constraints":
            return f"Each world has room for {worlds.data.njmax}; set a larger warp.constraints in task.yaml."
        return "Use backend='c' for this model."

    def _record(self, worlds: _Worlds, launch: Callable[[], None]) -> Any:
        """Return the graph of `launch`, recorded on Warp's own stream since torch's usual one cannot be.

        The first run compiles kernels and must not be recorded; what it did to the worlds is undone.
        """
        torch.cuda.synchronize(self.device)
        kept = {name: view.clone() for name, view in worlds.views.items()}
        torch.cuda.synchronize(self.device)
        with self.wp.ScopedDevice(self._warp_device):
            launch()
            self.wp.synchronize_device(self._warp_device)
            with self.wp.ScopedCapture(device=self._warp_device) as capture:
                launch()
        for name, view in worlds.views.items():
            view.copy_(kept[name])
        return capture.graph

    def _use(self, params: MujocoParams, count: int) -> None:
        """Bring the physical parameters onto the device, in place where the model is there already."""
        params.check(count)
        if self._of[0] is params and self._of[1] == params.version:
            return
        models = params.models
        replace = self._many != len(models)
        if replace:
            # The fields' shapes change, and recorded graphs hold the old fields' addresses.
            for worlds in self._worlds.values():
                worlds.graphs.clear()
        names = [name for name in (*UNITS, *_DERIVED) if name == "gravity" or hasattr(self._model, name)]
        for name in names:
            self._write(name, models, replace)
        self._many, self._of = len(models), (params, params.version)
        self.wp.synchronize_device(self._warp_device)

    def _write(self, name: str, models: list[mujoco.MjModel], replace: bool) -> None:
        owner, source = (self._model.opt, "opt") if name == "gravity" else (self._model, "")
        values = np.stack([getattr(model.opt if source else model, name) for model in models]).astype(np.float32)
        if not values.size:
            return
        if replace:
            old = getattr(owner, name)
            setattr(owner, name, self.wp.array(values, dtype=old.dtype, device=self._warp_device))
        else:
            self.wp.to_torch(getattr(owner, name)).copy_(torch.from_numpy(values))

    def close(self) -> None:
        """Release the worlds."""
        self._worlds.clear()
