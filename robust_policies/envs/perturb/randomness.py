"""A perturbation's own random numbers: derived from the environment's generators without advancing them.

At an episode's start, the state of the environment's generator (PCG64) is hashed with a salt, the perturbation's name
and place, into the start state of a generator of the perturbation's own. So a seed determines everything, environment i
of N draws what the single environment with that seed draws, and start states and noise of the plant are the same with
and without perturbation (common random numbers).

Source of the hash: the 64-bit finalizer of G. L. Steele, D. Lea and C. H. Flood, "Fast Splittable Pseudorandom Number
Generators" (OOPSLA 2014), in D. Stafford's variant 13.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from robust_policies.envs.streams import Streams
from robust_policies.errors import InvalidValueError

_FIRST, _SECOND, _GOLDEN = (
    int.from_bytes(value.to_bytes(8, "big"), "big", signed=True)
    for value in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15)
)
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """Return the lowest 64 bits of `value` as the int64 that holds them."""
    return int.from_bytes((value & _MASK).to_bytes(8, "big"), "big", signed=True)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return x shifted right by `bits`, zeros moving in (torch's own shift repeats the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: torch.Tensor) -> torch.Tensor:
    """Return int64 words, of any shape, mixed so that every bit depends on every bit (a bijection)."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def salt(label: str, device: torch.device) -> torch.Tensor:
    """Return the two words (2, 1) that a label stands for."""
    digest = hashlib.sha256(label.encode()).digest()
    words = [[_signed(int.from_bytes(digest[i : i + 8], "big"))] for i in (0, 8)]
    return torch.tensor(words, dtype=torch.int64, device=device)


def derive(words: torch.Tensor, salted: torch.Tensor) -> torch.Tensor:
    """Return 128-bit generator states (2, n) hashed from `words` (k, n) and a salt (2, 1), all int64."""
    state = salted.expand(2, words.shape[1])
    for word in words:
        state = mix((state ^ word) + _GOLDEN)
    return state


def generator_words(env: Any, rows: torch.Tensor) -> torch.Tensor:
    """Return the generators' states of environments `rows` (n,) as words (5, n): state, increment, row.

    `env` is the unwrapped environment: one of ours, whose generators live on the device, any single environment, or a
    vector of them (whose `np_random` is a tuple, or one generator for all: only then does the row tell them apart).
    Raises `InvalidValueError` for a generator that is not NumPy's PCG64.
    """
    streams = getattr(env, "_streams", None)
    if isinstance(streams, Streams):
        words = torch.cat((streams.state[:, rows], streams.increment[:, rows]))
        return torch.cat((words, torch.zeros_like(words[:1])))
    generators = env.np_random
    if isinstance(generators, np.random.Generator):
        several = getattr(env, "num_envs", 1) > 1
        index = rows.tolist() if several else [0]
        chosen = [(_words(generators), row if several else 0) for row in index]
    else:
        chosen = [(_words(generators[row]), 0) for row in rows.tolist()]
    columns = [[*words, row] for words, row in chosen]
    return torch.tensor(columns, dtype=torch.int64, device=rows.device).T


def _words(generator: Any) -> list[int]:
    bits = getattr(generator, "bit_generator", None)
    if not isinstance(bits, np.random.PCG64):
        raise InvalidValueError(
            f"np_random uses {type(bits).__name__}; expected numpy.random.PCG64, which perturbations are seeded from."
        )
    numbers = bits.state["state"]
    return [_signed(value) for number in (numbers["state"], numbers["inc"]) for value in (number >> 64, number)]


class Randomness:
    """One generator for each of `count` environments, restarted at their episodes' starts."""

    def __init__(self, count: int, device: torch.device, label: str) -> None:
        self.streams = Streams(count, device)
        self.salted = salt(label, device)
        # All share one odd increment: what differs is the state, 128 bits of hash.
        self.streams.increment.copy_(salt("increment", device).expand(2, count) | 1)
        self.episodes = torch.zeros(count, dtype=torch.int64, device=device)

    def begin(self, rows: torch.Tensor, words: torch.Tensor, seeded: torch.Tensor | None) -> None:
        """Restart the generators `rows` from the environments' `words`; `seeded` (n,) bool: those just seeded.

        The number of episodes since the seed is hashed too: an environment that draws nothing at a reset would repeat
        its perturbation in every episode otherwise.
        """
        self.episodes[rows] += 1
        if seeded is not None:
            self.episodes[seeded] = 0
        self.streams.state[:, rows] = derive(torch.cat((words, self.episodes[rows].unsqueeze(0))), self.salted)

    def uniform(self, size: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return `size` numbers in [0, 1) for each environment, or each of `rows`: float64 (n, size)."""
        return self.streams.uniform(size, rows)
