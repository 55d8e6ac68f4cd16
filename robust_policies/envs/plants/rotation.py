"""Attitudes as unit quaternions (w, x, y, z): the rotation from body to world axes, batched and differentiable.

A quaternion q and its negative are the same attitude. No attitude is singular, unlike with roll, pitch and yaw. Vectors
and quaternions are tuples of tensors, one a component, all (...): arithmetic on whole components runs several times
faster on a CPU than on slices of a tensor (..., 4).
Source of the formulas: J. Diebel, "Representing Attitude: Euler Angles, Unit Quaternions, and Rotation Vectors",
Stanford University (2006), sections 6 and 7.
"""

from __future__ import annotations

import math

import torch

Vector = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Quaternion = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def unit(quaternion: Quaternion) -> Quaternion:
    """Return `quaternion` divided by its norm."""
    w, x, y, z = quaternion
    norm = (w * w + x * x + y * y + z * z).sqrt()
    return w / norm, x / norm, y / norm, z / norm


def from_rotation_vector(vector: Vector) -> Quaternion:
    """Return the unit quaternion of turning by |vector| [rad] about `vector`."""
    x, y, z = vector
    # Clamped, because the square root has no gradient at zero; sinc has one there.
    half = 0.5 * (x * x + y * y + z * z).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    scale = 0.5 * torch.sinc(half / math.pi)
    return half.cos(), scale * x, scale * y, scale * z


def matrix(quaternion: Quaternion) -> tuple[torch.Tensor, ...]:
    """Return the nine entries, row by row, of a unit quaternion's rotation matrix: body vectors in world axes."""
    w, x, y, z = quaternion
    xx, yy, zz = 2.0 * x * x, 2.0 * y * y, 2.0 * z * z
    xy, xz, yz = 2.0 * x * y, 2.0 * x * z, 2.0 * y * z
    wx, wy, wz = 2.0 * w * x, 2.0 * w * y, 2.0 * w * z
    return 1.0 - yy - zz, xy - wz, xz + wy, xy + wz, 1.0 - xx - zz, yz - wx, xz - wy, yz + wx, 1.0 - xx - yy


def vertical(quaternion: Quaternion) -> Vector:
    """Return the body's z axis in world axes: the last column of `matrix`."""
    w, x, y, z = quaternion
    return 2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y)


def rate(quaternion: Quaternion, body_rates: Vector) -> Quaternion:
    """Return the time derivative of a quaternion: q' = q * (0, omega) / 2, omega [rad/s] in body axes."""
    w, x, y, z = quaternion
    a, b, c = 0.5 * body_rates[0], 0.5 * body_rates[1], 0.5 * body_rates[2]
    return -x * a - y * b - z * c, w * a + y * c - z * b, w * b + z * a - x * c, w * c + x * b - y * a
