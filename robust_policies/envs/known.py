"""Episodes of a task whose start and noise are known before they are played."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robust_policies.envs.plant import Plant
from robust_policies.envs.streams import Streams, normals, uniforms_for_normals


class Known(NamedTuple):
    """What chance does in episodes: `start` (episodes, nx), `process` and `measurement` (time, episodes, n), float64.

    The noises are standard normal numbers, n = 0 where the plant has none; those of the measurement are of the
    observation that the action of the same step is chosen from.
    """

    start: Tensor
    process: Tensor
    measurement: Tensor


def known_episodes(plant: Plant, seeds: Sequence[int], steps: int) -> Known:
    """Return what the vectorized environment of a plant draws in episodes of these seeds, at its nominal parameters."""
    streams = Streams(len(seeds), torch.device("cpu"))
    streams.seed(range(len(seeds)), seeds)
    process, measurement = plant.process_noise_size, plant.measurement_noise_size

    def drawn(count: int) -> Tensor:
        if not count:
            return torch.zeros(len(seeds), 0, dtype=torch.float64)
        return normals(streams.uniform(uniforms_for_normals(count)), count).double()

    # One draw for a start, in which the numbers of its observation follow those of the state.
    uniform = streams.uniform(plant.reset_size + uniforms_for_normals(measurement))
    start = plant.initial(uniform[:, : plant.reset_size], plant.prepare(plant.nominal()), {}).double()
    first = normals(uniform[:, plant.reset_size :], measurement).double() if measurement else drawn(0)
    later = [drawn(process + measurement) for _ in range(steps)]
    noise = torch.stack([numbers[:, :process] for numbers in later])
    seen = torch.stack([first, *(numbers[:, process:] for numbers in later[:-1])])
    return Known(start, noise, seen)


def seeds_of(seed: int, episodes: int) -> list[int]:
    """Return the environments' seeds of the episodes of an evaluation seed; no two seeds share one."""
    return [seed * 100_003 + i for i in range(episodes)]
