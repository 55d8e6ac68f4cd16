"""Random perturbations of the observations, by name; a size multiplies them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robust_policies.errors import UnknownNameError

Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return noise uniform in [-1, 1] in each component."""
    return 2 * torch.rand(shape, generator=generator) - 1


def gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return standard normal noise."""
    return torch.randn(shape, generator=generator)


def sphere(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return vectors of l2 norm 1 (last axis) with random directions."""
    noise = torch.randn(shape, generator=generator)
    return noise / noise.norm(dim=-1, keepdim=True).clamp(min=1e-12)


PERTURBATIONS: dict[str, Draw] = {"uniform": uniform, "gaussian": gaussian, "l2": sphere}
DESCRIPTIONS = {
    "uniform": "uniform in +-size",
    "gaussian": "standard deviation size",
    "l2": "random direction, norm size",
}


def unit_noise(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the noise `name` of size 1, (time, episodes, components); the same for the same seed."""
    if name not in PERTURBATIONS:
        raise UnknownNameError.among("perturbation", name, PERTURBATIONS)
    return PERTURBATIONS[name](shape, torch.Generator().manual_seed(seed))
