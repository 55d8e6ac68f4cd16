"""Lower bounds of the incremental l2 gain: two input sequences that show it, in float64.

A value found is a fact about the two sequences; how far it lies below a proven bound says that the bound is loose or
the search weak, never which of the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_policies import checks
from robust_policies.certificates.gain_search import (
    Budget,
    Map,
    Pairs,
    evaluate,
    generated_bases,
    input_units,
    recorded_bases,
    running_map,
    search,
)
from robust_policies.certificates.witness import read_witness
from robust_policies.errors import InvalidValueError
from robust_policies.files.atomic import write_atomic

CURVE_STEPS = (1, 2, 5, 10, 20, 50, 100, 200)
# Shorter searches' pairs that a longer one starts from, and the horizon above which a search is cut to cost no more.
_CARRIED = 4
_FULL = 50


@dataclass(frozen=True)
class GainResult:
    """The largest gain found and the two input sequences (time, nu) float64 that show it, from equal initial states."""

    gain: float
    inputs_a: np.ndarray
    inputs_b: np.ndarray

    def save(self, path: str | Path) -> Path:
        """Return `path` after writing the witness there as npz, whole or not at all."""
        arrays = {"inputs_a": self.inputs_a, "inputs_b": self.inputs_b, "gain": np.float64(self.gain)}
        return write_atomic(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> GainResult:
        """Return the witness in `path`; raises MissingFileError, CorruptFileError."""
        return read_witness(path, lambda file: cls(float(file["gain"]), file["inputs_a"], file["inputs_b"]))


@dataclass(frozen=True)
class GainCurve:
    """The largest gain found within each number of steps, non-decreasing, and the witness of each."""

    steps: tuple[int, ...]
    witnesses: tuple[GainResult, ...]

    @property
    def gain(self) -> tuple[float, ...]:
        """The gains found, in the order of `steps`."""
        return tuple(witness.gain for witness in self.witnesses)

    def at(self, steps: int) -> GainResult:
        """Return the witness over `steps` steps; raises InvalidValueError if the curve has none."""
        if steps not in self.steps:
            raise InvalidValueError(f"The curve has no witness over {steps!r} steps; it has {list(self.steps)}.")
        return self.witnesses[self.steps.index(steps)]

    def to_json(self, path: str | Path, gamma_raw: float | None = None) -> Path:
        """Return `path` after writing the curve there beside the proven gain, if there is one."""
        content = {"schema": 1, "steps": list(self.steps), "gain": list(self.gain), "gamma_raw": gamma_raw}
        return write_atomic(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def empirical_gain(
    model: Any,
    steps: int = 50,
    seed: int = 0,
    *,
    batch: int = 32,
    power_iterations: int = 20,
    adam_iterations: int = 120,
    bases: Any = None,
    input_scale: Any = None,
) -> GainResult:
    """Return the largest incremental l2 gain over `steps` steps that a search finds for a cell, actor or policy.

    Power iteration on the exact linearization along base sequences (noise, constants and sinusoids of log-spaced
    sizes, and windows of recorded rollouts), Adam on base, direction and size of the difference for the log central
    secant gain, power iteration again. Float64 throughout, on the arrays that run.

    Args:
        model: what to search; its initial state is the same for both sequences.
        steps: length of the sequences.
        seed: of the generated bases and the first directions.
        batch: samples in the ascent, the best of three times as many bases.
        power_iterations: most products with the linearization and its transpose in each power iteration.
        adam_iterations: ascent steps in all.
        bases: recorded inputs (time, n, nu), cut into windows of `steps` that start from the initial state.
        input_scale: (nu,) sizes of the inputs' units; those of the model's own fixed scaling if None.

    Raises:
        DivergedError: the model's arrays or its outputs for finite inputs are not finite.
        NonFiniteError, ShapeError: `bases` or `input_scale` do not fit.
    """
    searcher = _Searcher(model, seed, batch, power_iterations, adam_iterations, bases, input_scale)
    return searcher.witness(searcher.pairs(checks.positive_int("steps", steps)))


def gain_curve(
    model: Any,
    steps: Iterable[int] = CURVE_STEPS,
    seed: int = 0,
    *,
    batch: int = 32,
    power_iterations: int = 20,
    adam_iterations: int = 120,
    bases: Any = None,
    input_scale: Any = None,
) -> GainCurve:
    """Return the largest gain found within each of `steps` time steps; arguments and errors as `empirical_gain`'s.

    A shorter witness followed by equal inputs is a longer one: the map is causal, so its difference of outputs can
    only grow. Longer searches start from shorter witnesses padded in this way, which makes the curve non-decreasing.
    Above 50 steps there are fewer bases and ascent steps, so that no horizon costs much more than that one.
    """
    wanted = sorted({checks.positive_int("an entry of steps", value) for value in steps})
    if not wanted:
        raise InvalidValueError("steps names no horizon; expected at least one, such as (1, 10, 50).")
    searcher = _Searcher(model, seed, batch, power_iterations, adam_iterations, bases, input_scale)
    found: list[GainResult] = []
    carried: Pairs | None = None
    for count in wanted:
        padded = None if carried is None else searcher.padded(carried, count)
        pairs = searcher.pairs(count, padded)
        witness = searcher.witness(pairs)
        if found and witness.gain < found[-1].gain:
            # The same difference of outputs, rounded in sums over another number of steps.
            witness = GainResult(found[-1].gain, witness.inputs_a, witness.inputs_b)
        found.append(witness)
        carried = pairs.largest(_CARRIED)
    return GainCurve(tuple(wanted), tuple(found))


def secant_gain(model: Any, inputs_a: np.ndarray, inputs_b: np.ndarray) -> float:
    """Return |y_a - y_b| / |u_a - u_b| in float64, less what may be rounding, for two input sequences (time, nu)."""
    return _secant(running_map(model), inputs_a, inputs_b)


def _secant(model: Map, inputs_a: np.ndarray, inputs_b: np.ndarray) -> float:
    pair = torch.as_tensor(np.stack([inputs_a, inputs_b], axis=1), dtype=torch.float64)
    checks.shape("inputs", pair, (None, 2, model.input_size))
    a, b = pair.unbind(1)
    found = evaluate(model, 0.5 * (a + b).unsqueeze(1), (a - b).unsqueeze(1))
    return max(0.0, float(found.gain))


class _Searcher:
    """A model with the settings of a search; one generator for all horizons."""

    def __init__(self, model: Any, seed: int, batch: int, power: int, adam: int, bases: Any, input_scale: Any) -> None:
        self.map = running_map(model)
        self.batch = checks.positive_int("batch", batch)
        self.power = checks.positive_int("power_iterations", power, minimum=0)
        self.adam = checks.positive_int("adam_iterations", adam, minimum=0)
        self.recorded = bases
        self.centre, self.units = input_units(model, self.map.input_size)
        if input_scale is not None:
            self.units = torch.as_tensor(np.asarray(input_scale), dtype=torch.float64)
            checks.shape("input_scale", self.units, (self.map.input_size,))
            checks.finite_tensor("input_scale", self.units)
        self.generator = torch.Generator().manual_seed(seed)

    def pairs(self, steps: int, padded: Pairs | None = None) -> Pairs:
        """Return what the search finds over `steps` steps, the best first, no worse than the `padded` pairs."""
        # Short horizons are cheap to look at, and few samples cover a box of few dimensions badly.
        effort = min(8.0, _FULL / steps)
        count = max(self.batch, int(3 * self.batch * effort)) if self.power else self.batch
        base = self.centre + self.units * generated_bases(steps, count, self.map.input_size, self.generator)
        if self.recorded is not None:
            base = torch.cat((recorded_bases(self.recorded, steps, self.map.input_size, 3 * self.batch), base), dim=1)
        delta = torch.randn(base.shape, generator=self.generator, dtype=torch.float64)
        if padded is not None:
            base, delta = torch.cat((padded.base, base), dim=1), torch.cat((padded.delta, delta), dim=1)
        share = min(1.0, effort)
        # Padded pairs have risen already.
        adam = math.ceil(self.adam * share * (1.0 if padded is None else 0.5))
        budget = Budget(self.batch, self.power, adam, generations=math.ceil(4 * share))
        found = search(self.map, base, delta, self.units, self.generator, budget)
        if padded is None:
            return found
        parts = zip(evaluate(self.map, padded.base, padded.delta), found, strict=True)
        return Pairs(*(torch.cat(part, dim=1) for part in parts)).largest(self.batch)

    def padded(self, pairs: Pairs, steps: int) -> Pairs:
        """Return the pairs followed by equal inputs up to `steps`: the unit's zero, and the last midpoint held."""
        missing = steps - pairs.base.shape[0]
        rest = pairs.base.new_zeros(missing, *pairs.base.shape[1:])
        tails: list[Tensor] = [rest + self.centre, rest + pairs.base[-1:]]
        base = torch.cat([torch.cat((pairs.base, tail)) for tail in tails], dim=1)
        delta = torch.cat((pairs.delta, rest)).repeat(1, len(tails), 1)
        return Pairs(pairs.gain.repeat(1, len(tails), 1), base, delta)

    def witness(self, pairs: Pairs) -> GainResult:
        """Return the best pair as the two sequences, evaluated again as they are."""
        best = pairs.largest(1)
        a, b = ((best.base + sign * 0.5 * best.delta)[:, 0].numpy().copy() for sign in (1, -1))
        return GainResult(_secant(self.map, a, b), a, b)
