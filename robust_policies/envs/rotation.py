"""Attitudes as unit quaternions (w, x, y, z): the rotation from body to world axes, batched and differentiable.

A quaternion q and its negative are the same attitude. No attitude is singular, unlike with roll, pitch and yaw.
Source of the formulas: J. Diebel, "Representing Attitude: Euler Angles, Unit Quaternions, and Rotation Vectors",
Stanford University (2006), sections 6 and 7.
"""

from __future__ import annotations

import math

import torch


def unit(quaternion: torch.Tensor) -> torch.Tensor:
    """Return `quaternion` (..., 4) divided by its norm."""
    return quaternion / quaternion.norm(dim=-1, keepdim=True)


def from_rotation_vector(vector: torch.Tensor) -> torch.Tensor:
    """Return the unit quaternion (..., 4) of turning by |vector| [rad] about `vector` (..., 3)."""
    # The half angle's cosine and sinc as smooth functions: at no rotation |vector| itself has no gradient.
    half = 0.5 * vector.square().sum(-1, keepdim=True).clamp_min(torch.finfo(vector.dtype).tiny).sqrt()
    return torch.cat((half.cos(), 0.5 * torch.sinc(half / math.pi) * vector), dim=-1)


def matrix(quaternion: torch.Tensor) -> torch.Tensor:
    """Return the rotation matrix (..., 9), row by row, of a unit quaternion (..., 4): body vectors in world axes."""
    w, x, y, z = quaternion.unbind(-1)
    return 2.0 * torch.stack(
        (
            0.5 - (y * y + z * z), x * y - w * z, x * z + w * y,
            x * y + w * z, 0.5 - (x * x + z * z), y * z - w * x,
            x * z - w * y, y * z + w * x, 0.5 - (x * x + y * y),
        ),
        dim=-1,
    )  # fmt: skip


def vertical(quaternion: torch.Tensor) -> torch.Tensor:
    """Return the body's z axis in world axes (..., 3): the last column of `matrix`."""
    w, x, y, z = quaternion.unbind(-1)
    return 2.0 * torch.stack((x * z + w * y, y * z - w * x, 0.5 - (x * x + y * y)), dim=-1)


def rate(quaternion: torch.Tensor, body_rates: torch.Tensor) -> torch.Tensor:
    """Return the time derivative (..., 4) of a quaternion (..., 4): q' = q * (0, omega) / 2, omega (..., 3) [rad/s]."""
    scalar, vector = quaternion.split((1, 3), dim=-1)
    return 0.5 * torch.cat(
        (
            -(vector * body_rates).sum(-1, keepdim=True),
            scalar * body_rates + torch.linalg.cross(vector, body_rates),
        ),
        dim=-1,
    )
