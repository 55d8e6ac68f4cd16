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
from typing import Any

import numpy as np
import torch

from robust_policies.errors import InvalidValueError

_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_MODULUS = 1 << 128
_LOW32 = (1 << 32) - 1
_LARGEST = (1 << 63) - 1
_SMALLEST = -(1 << 63)
Words = tuple[Any, Any]
"""A 128-bit number as its high and low 64-bit words, arrays or tensors."""


def _signed(value: int) -> int:
    """Return the 64-bit pattern `value` as the int64 that holds it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value > _LARGEST else value


def _split(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return 128-bit integers as an int64 tensor (2, len): the high words, then the low words."""
    words = [[_signed(value >> 64) for value in values], [_signed(value) for value in values]]
    return torch.tensor(words, dtype=torch.int64, device=device)


class _Unsigned:
    """The two operations on 64-bit words that differ between NumPy's uint64 and torch's int64."""

    def __init__(self, signed: bool) -> None:
        self.signed = signed

    def shift(self, words: Any, bits: Any) -> Any:
        """Return words >> bits, filled with zeros; bits > 0 where words are signed."""
        return (words >> bits) & ((1 << (64 - bits)) - 1) if self.signed else words >> np.uint64(bits)

    def less(self, a: Any, b: Any) -> Any:
        """Return a < b as unsigned numbers, as 0 and 1 of the words' type."""
        return ((a ^ _SMALLEST) < (b ^ _SMALLEST)).to(torch.int64) if self.signed else (a < b).astype(np.uint64)


_INT64 = _Unsigned(signed=True)


def _multiply(number: Words, factor: Words, unsigned: _Unsigned) -> Words:
    """Return number * factor mod 2^128; both (high, low) words, by 32-bit halves of the low ones."""
    (a_high, a), (b_high, b) = number, factor
    low32 = _LOW32 if unsigned.signed else np.uint64(_LOW32)
    a0, a1, b0, b1 = a & low32, unsigned.shift(a, 32), b & low32, unsigned.shift(b, 32)
    cross, other = a0 * b1, a1 * b0
    middle = unsigned.shift(a0 * b0, 32) + (cross & low32) + (other & low32)
    carry = a1 * b1 + unsigned.shift(cross, 32) + unsigned.shift(other, 32) + unsigned.shift(middle, 32)
    return carry + a * b_high + a_high * b, a * b


def _add(a: Words, b: Words, unsigned: _Unsigned) -> Words:
    """Return a + b mod 2^128; both (high, low) words."""
    low = a[1] + b[1]
    return a[0] + b[0] + unsigned.less(low, a[1]), low


def _output(state: Words, signed: bool) -> Any:
    """Return the upper 53 of the 64 output bits (XSL-RR) of 128-bit states (high, low), as whole float64 numbers."""
    mixed = state[0] ^ state[1]
    if not signed:
        turn = state[0] >> np.uint64(58)
        turned = (mixed >> turn) | (mixed << ((np.uint64(64) - turn) & np.uint64(63)))
        return (turned >> np.uint64(11)).astype(np.float64)
    turn = (state[0] >> 58) & 63
    right = ((mixed & _LARGEST) >> turn) | (((mixed >> 63) & 1) << (63 - turn))
    return (((right | (mixed << ((64 - turn) & 63))) >> 11) & ((1 << 53) - 1)).to(torch.float64)


class Streams:
    """`count` independent generators on one device.

    `state` and `increment` are int64 tensors (2, count): the high and low words of PCG64's two 128-bit numbers.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.count = count
        self.device = device
        self.state = torch.zeros((2, count), dtype=torch.int64, device=device)
        self.increment = torch.zeros((2, count), dtype=torch.int64, device=device)
        self._unsigned = _Unsigned(signed=device.type != "cpu")
        self._powers: dict[int, torch.Tensor] = {}
        self._sums: dict[int, torch.Tensor] = {}
        self._offsets: dict[int, torch.Tensor] = {}

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
        self.forget()

    def store(self, row: int, generator: np.random.BitGenerator) -> None:
        """Set a NumPy PCG64 bit generator to the state of `row`."""
        words = torch.cat((self.state[:, row], self.increment[:, row])).tolist()
        high, low, increment_high, increment_low = (word & ((1 << 64) - 1) for word in words)
        state = {"state": (high << 64) | low, "inc": (increment_high << 64) | increment_low}
        generator.state = {"bit_generator": "PCG64", "state": state, "has_uint32": 0, "uinteger": 0}

    def forget(self) -> None:
        """Compute anew, in place, what was computed from `increment`, which has been set from outside."""
        for size, offsets in self._offsets.items():
            offsets.copy_(self._offsets_of(size))

    def uniform(self, size: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the next `size` numbers in [0, 1) of each generator (or of `rows`): float64 (n, size)."""
        # NumPy's calls cost a fraction of torch's on the few rows that begin an episode.
        powers, offsets = (self._native(words) for words in self.jumps(size))
        states = self._native(self.state)
        index = slice(None) if rows is None else rows if self._unsigned.signed else rows.numpy()
        numbers, following = _draw(states[:, index], powers, offsets[:, :, index], self._unsigned)
        states[0, index], states[1, index] = following
        return numbers if self._unsigned.signed else torch.from_numpy(numbers)

    def uniform_where(self, size: int, mask: torch.Tensor) -> torch.Tensor:
        """Return the next `size` numbers of each generator, (count, size); only those in `mask` (count,) move on."""
        numbers, following = draw(self.state, *self.jumps(size))
        self.state.copy_(torch.where(mask, following, self.state))
        return numbers

    def jumps(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return M^j as (2, size, 1) and (1 + ... + M^(j-1)) inc as (2, size, count), for j = 1 .. size: int64."""
        if size not in self._offsets:
            powers, sums, power, total = [], [], 1, 0
            for _ in range(size):
                total = (total + power) % _MODULUS
                power = power * _MULTIPLIER % _MODULUS
                powers.append(power)
                sums.append(total)
            # To be written again later, outside of an inference mode too.
            with torch.inference_mode(False), torch.no_grad():
                self._powers[size] = _split(powers, self.device)[..., None]
                self._sums[size] = _split(sums, self.device)[..., None]
                self._offsets[size] = self._offsets_of(size)
        return self._powers[size], self._offsets[size]

    def _offsets_of(self, size: int) -> torch.Tensor:
        factors, increments = self._sums[size], self.increment
        return torch.stack(_multiply((increments[0], increments[1]), (factors[0], factors[1]), _INT64))

    def _native(self, words: torch.Tensor) -> Any:
        """Return words as what this device computes with: int64 tensors, or NumPy's uint64 on the CPU."""
        return words if self._unsigned.signed else words.numpy().view(np.uint64)


class SeededStreams(Streams):
    """`Streams` that know their seeds, and get random ones where nobody gave them any.

    Attributes:
        seeds: of each generator, None before there are any.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        super().__init__(count, device)
        self.seeds: list[int] | None = None

    def reseed(self, seeds: Sequence[int | None], rows: torch.Tensor | None = None) -> None:
        """Seed generator i with seeds[i] where that is not None: all of them, or those of `rows` (n,)."""
        if rows is not None or any(one is None for one in seeds):
            self.ensure_seeded()
        chosen = [row for row in (range(self.count) if rows is None else rows.tolist()) if seeds[row] is not None]
        values = [int(seeds[row] or 0) for row in chosen]
        self.seed(chosen, values)
        self.seeds = self.seeds or [0] * self.count
        for row, value in zip(chosen, values, strict=True):
            self.seeds[row] = value

    def ensure_seeded(self) -> None:
        """Seed the generators at random if nobody has."""
        if self.seeds is None:
            seeds: list[int] = np.random.default_rng().integers(0, 2**63, self.count).tolist()
            self.seed(range(self.count), seeds)
            self.seeds = seeds

    def generators(self) -> tuple[np.random.Generator, ...]:
        """Return NumPy's generators in the same states; drawing from them changes nothing here."""
        self.ensure_seeded()
        found = tuple(np.random.Generator(np.random.PCG64(0)) for _ in range(self.count))
        for row, generator in enumerate(found):
            self.store(row, generator.bit_generator)
        return found


def draw(state: torch.Tensor, powers: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return numbers in [0, 1) (n, size) and the states (2, n) that follow, from `Streams.state` and `Streams.jumps`.

    Tensors alone and nothing in place: what `Streams.uniform` does, for a compiler.
    """
    numbers, following = _draw(state, powers, offsets, _INT64)
    return numbers, torch.stack(following)


def _draw(state: Any, powers: Any, offsets: Any, unsigned: _Unsigned) -> tuple[Any, Words]:
    jumped = _multiply((state[0], state[1]), (powers[0], powers[1]), unsigned)
    high, low = _add(jumped, (offsets[0], offsets[1]), unsigned)
    return (_output((high, low), unsigned.signed) * 2.0**-53).T, (high[-1], low[-1])


def uniforms_for_normals(size: int) -> int:
    """Return how many uniform numbers `normals` needs for `size` normal ones."""
    return size + size % 2


def normals(uniform: torch.Tensor, size: int) -> torch.Tensor:
    """Return standard normal numbers (n, size) from uniform (n, uniforms_for_normals(size)), by Box and Muller."""
    first, second = uniform.chunk(2, dim=-1)
    radius = (-2.0 * torch.log1p(-first)).sqrt()
    angle = 2.0 * math.pi * second
    return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=-1)[..., :size]
