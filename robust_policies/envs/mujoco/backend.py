"""What computes the physics: one small interface, met by MuJoCo's C library and by MuJoCo-Warp."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from robust_policies.envs.mujoco.parameters import MujocoParams

LIMIT = 1e10
"""MuJoCo's own (mjMAXVAL): a simulation with a position, velocity or acceleration beyond it, or NaN, is unstable."""


def unstable(physics: torch.Tensor, moving: int) -> torch.Tensor:
    """Return where (n,) states (n, nq + nv + na) are not finite, or one of the first `moving` is beyond `LIMIT`."""
    return ~(torch.isfinite(physics).all(-1) & (physics[:, :moving].abs() <= LIMIT).all(-1))


class Advanced(NamedTuple):
    """What follows after some time steps; tensors that are good until the backend's next call."""

    physics: torch.Tensor
    """Positions, velocities and activations (n, nq + nv + na)."""
    sensors: torch.Tensor
    """The model's sensors (n, nsensordata) as MuJoCo computed them in the last time step."""
    failed: torch.Tensor
    """Where (n,) the simulation became unstable, bool; the other entries mean nothing there."""


class Evaluated(NamedTuple):
    """What holds at a state; tensors that are good until the backend's next call, but for the acceleration."""

    acceleration: torch.Tensor
    """(n, nv)."""
    sensors: torch.Tensor
    """(n, nsensordata)."""
    failed: torch.Tensor
    """(n,), bool."""


class Backend(Protocol):
    """Computes on float64 tensors on one device; every call begins without a warm start, so results are a function."""

    device: torch.device

    def advance(
        self, physics: torch.Tensor, control: torch.Tensor, push: torch.Tensor | None, params: MujocoParams, steps: int
    ) -> Advanced:
        """Take `steps` time steps of the model with controls (n, nu) and force and torque (n, 6) held constant."""
        ...

    def evaluate(
        self, physics: torch.Tensor, control: torch.Tensor, push: torch.Tensor | None, params: MujocoParams
    ) -> Evaluated:
        """Return accelerations and sensors at states (n, nx), with controls (n, nu) and force and torque (n, 6)."""
        ...

    def close(self) -> None:
        """Release threads and memory."""
        ...
