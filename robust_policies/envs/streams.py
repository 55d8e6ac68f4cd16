"""Random numbers for many environments at once: one NumPy PCG64 generator each, advanced together on the device.

Row i of `Streams` produces bit for bit what `numpy.random.Generator(PCG64(seed_i)).random()` produces, without a Python
loop over rows: so environment i of N equals the single environment with that seed, and the single environment draws the
start states that Gymnasium's own draws.

Source: M. E. O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for Random Number
Generation" (2014), the variant setseq_xsl_rr_128_64. Draw j of a block starts from the current state directly:
s_j = M^j s + (1 + M + ... + M^(j-1)) inc (mod 2^128).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from robust_policies.errors import InvalidValueError

_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_MODULUS = 1 << 128
_LOW32 = (1 << 32) - 1
_LARGEST = (1 << 63) - 1
_SMALLEST = -(1 << 63)


def _signed(value: int) -> int:
    """Return the 64-bit pattern `value` as the int64 that holds it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value > _LARGEST else value


def _split(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return 128-bit integers as an int64 tensor (2, len): the high words, then the low words."""
    words = [[_signed(value >> 64) for value in values], [_signed(value) for value in values]]
    return torch.tensor(words, dtype=torch.int64, device=device)


def _multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a * b mod 2^128; both (2, ...) high and low words."""
    a0, a1 = a[1] & _LOW32, (a[1] >> 32) & _LOW32
    b0, b1 = b[1] & _LOW32, (b[1] >> 32) & _LOW32
    cross, other = a0 * b1, a1 * b0
    middle = ((a0 * b0 >> 32) & _LOW32) + (cross & _LOW32) + (other & _LOW32)
    carry = a1 * b1 + ((cross >> 32) & _LOW32) + ((other >> 32) & _LOW32) + (middle >> 32)
    return torch.stack((carry + a[0] * b[1] + a[1] * b[0], a[1] * b[1]))


def _add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a + b mod 2^128; both (2, ...) high and low words."""
    low = a[1] + b[1]
    carry = (low ^ _SMALLEST) < (a[1] ^ _SMALLEST)
    return torch.stack((a[0] + b[0] + carry, low))


def _output(state: torch.Tensor) -> torch.Tensor:
    """Return the 64-bit outputs (XSL-RR) of 128-bit states (2, ...)."""
    mixed = state[0] ^ state[1]
    turn = (state[0] >> 58) & 63
    right = ((mixed & _LARGEST) >> turn) | (((mixed >> 63) & 1) << (63 - turn))
    return right | (mixed << ((64 - turn) & 63))


class Streams:
    """`count` independent generators on one device.

    `state` and `increment` are int64 tensors (2, count): the high and low words of PCG64's two 128-bit numbers.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.count = count
        self.device = device
        self.state = torch.zeros((2, count), dtype=torch.int64, device=device)
        self.increment = torch.zeros((2, count), dtype=torch.int64, device=device)
        self._offsets: dict[int, torch.Tensor] = {}
        self._powers: dict[int, torch.Tensor] = {}

    def seed(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Restart the generators `rows` from `seeds`, as `numpy.random.default_rng(seed)` does."""
        self.load(rows, [np.random.PCG64(seed) for seed in seeds])

    def load(self, rows: Sequence[int], generators: Sequence[np.random.BitGenerator]) -> None:
        """Take over the states of NumPy bit generators, which must be PCG64."""
        wrong = next((g for g in generators if not isinstance(g, np.random.PCG64)), None)
        if wrong is not None:
            raise InvalidValueError(f"np_random uses {type(wrong).__name__}; expected numpy.random.PCG64.")
        numbers = [generator.state["state"] for generator in generators]
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.device)
        self.state[:, index] = _split([number["state"] for number in numbers], self.device)
        self.increment[:, index] = _split([number["inc"] for number in numbers], self.device)
        self._offsets.clear()

    def store(self, row: int, generator: np.random.BitGenerator) -> None:
        """Set a NumPy PCG64 bit generator to the state of `row`."""
        words = torch.cat((self.state[:, row], self.increment[:, row])).tolist()
        high, low, increment_high, increment_low = (word & ((1 << 64) - 1) for word in words)
        state = {"state": (high << 64) | low, "inc": (increment_high << 64) | increment_low}
        generator.state = {"bit_generator": "PCG64", "state": state, "has_uint32": 0, "uinteger": 0}

    def uniform(self, size: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the next `size` numbers in [0, 1) of each generator (or of `rows`): float64 (n, size)."""
        powers, offsets = self._jumps(size)
        state, shift = (self.state, offsets) if rows is None else (self.state[:, rows], offsets[:, rows])
        states = _add(_multiply(state.unsqueeze(-1), powers.unsqueeze(1)), shift)
        if rows is None:
            self.state.copy_(states[..., -1])
        else:
            self.state[:, rows] = states[..., -1]
        return ((_output(states) >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53

    def _jumps(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return M^j as (2, size) and (1 + ... + M^(j-1)) inc as (2, count, size), for j = 1 .. size."""
        if size not in self._offsets:
            powers, sums, power, total = [], [], 1, 0
            for _ in range(size):
                total = (total + power) % _MODULUS
                power = power * _MULTIPLIER % _MODULUS
                powers.append(power)
                sums.append(total)
            self._powers[size] = _split(powers, self.device)
            factors = _split(sums, self.device)
            self._offsets[size] = _multiply(self.increment.unsqueeze(-1), factors.unsqueeze(1))
        return self._powers[size], self._offsets[size]


def uniforms_for_normals(size: int) -> int:
    """Return how many uniform numbers `normals` needs for `size` normal ones."""
    return size + size % 2


def normals(uniform: torch.Tensor, size: int) -> torch.Tensor:
    """Return standard normal numbers (n, size) from uniform (n, uniforms_for_normals(size)), by Box and Muller."""
    first, second = uniform.chunk(2, dim=-1)
    radius = (-2.0 * torch.log1p(-first)).sqrt()
    angle = 2.0 * math.pi * second
    return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=-1)[..., :size]
