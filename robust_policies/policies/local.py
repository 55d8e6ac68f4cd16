"""What errors of bounded size can do to each action of a policy without memory, or with a window, in a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from robust_policies import checks
from robust_policies.certificates.chains import chain_of, chain_over, linear
from robust_policies.certificates.lmi import UNIT
from robust_policies.certificates.local import METHOD, Layer, local_peaks
from robust_policies.certificates.slopes import IDENTITY, SHAPES, clipped
from robust_policies.errors import InvalidValueError, NotCertifiableError, ShapeError
from robust_policies.files import numbers
from robust_policies.policies.actor import Actor
from robust_policies.policies.certify import observation_weights
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.window import WindowCell


@dataclass(frozen=True)
class LocalBounds:
    """How far each action can move while every observation stays in a box.

    Attributes:
        low, high: (nu,) the corners of the box, in the observation's own units.
        units: (nu,) how far each entry of the observations may differ at every step.
        gamma: (na,) how far each mean action may then differ, before it is clipped.
        boxes: the largest number of boxes that one of them took.
        window: how many observations the policy reads.
        method: its name.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    units: tuple[float, ...]
    gamma: tuple[float, ...]
    boxes: int
    window: int
    method: str = METHOD

    @property
    def claim(self) -> str:
        """The sentence that holds."""
        box = ", ".join(f"[{low:.6g}, {high:.6g}]" for low, high in zip(self.low, self.high, strict=True))
        units = ", ".join(f"{unit:.6g}" for unit in self.units)
        moved = ", ".join(map(numbers.upper, self.gamma))
        read = "the observation" if self.window == 1 else f"each of the last {self.window} observations"
        return (
            f"If {read} stays in the box {box} and each of its entries differs by at most its unit ({units}), the mean "
            f"actions differ by at most {moved}. Proven for the arrays that run, in exact arithmetic; nothing is said "
            "outside the box."
        )


def local_bounds(
    policy: DeployedPolicy,
    low: Sequence[float],
    high: Sequence[float],
    units: Sequence[float] | None = None,
    splits: int = 200,
    *,
    known: Sequence[float] | None = None,
) -> LocalBounds:
    """Return how far each mean action may differ where two observations in a box differ by little.

    Args:
        policy: without memory (MLP, LBDN), or with a window of observations around one of these, an R2DN or a REN.
        low: (nu,) the lower corner of the box, in the observation's own units.
        high: (nu,) the upper one.
        units: (nu,) how far each entry may differ, > 0; None: 1 each. Both observations stay in the box.
        splits: into so many boxes it is split at most, for each action; more are closer to the truth.
        known: (na,) proven bounds that hold everywhere, `policy.peak(units)["gamma"]`: no bound is larger; None: none.

    In a window every observation is in the box and may differ; the bound also holds while it is not yet full.

    Raises:
        NotCertifiableError: the policy has a memory without a window, an activation whose slopes are not known, or
            choices as actions.
        InvalidValueError, ShapeError: the box or the units are wrong.
    """
    size = policy.cell.input_size
    corners = [np.asarray(list(corner), dtype=np.float64) for corner in (low, high)]
    if any(corner.shape != (size,) for corner in corners):
        raise ShapeError(f"low and high have {[len(c) for c in corners]} numbers; expected {size}, one an observation.")
    lower, upper = corners
    if not (np.isfinite(corners).all() and (lower <= upper).all()):
        raise InvalidValueError(f"The box is from {lower.tolist()} to {upper.tolist()}; expected finite, low <= high.")
    reach = np.ones(size) if units is None else observation_weights(units, size)
    checks.positive_int("splits", splits)
    if not isinstance(policy.action_space, spaces.Box):
        raise NotCertifiableError("The actions are choices, which do not change by a little.")
    count = policy.head.output_size
    everywhere = np.full(count, np.inf) if known is None else np.asarray(list(known), dtype=np.float64)
    if everywhere.shape != (count,) or not (everywhere >= 0).all():
        raise ShapeError(f"known is {everywhere.tolist()}; expected {count} number(s) >= 0, one an action.")
    window = policy.cell.window if isinstance(policy.cell, WindowCell) else 1
    gamma, most = np.zeros(count), 1
    for chain, read in _chains(policy.actor):
        box = np.tile(lower, read), np.tile(upper, read)
        found, boxes = local_peaks(chain, *box, np.tile(reach, read), splits)
        gamma, most = np.maximum(gamma, found), max(most, boxes)
    shown = (tuple(values.tolist()) for values in (lower, upper, reach, np.minimum(gamma, everywhere)))
    return LocalBounds(*shown, boxes=most, window=window)


def _chains(actor: Actor) -> list[tuple[list[Layer], int]]:
    """Return chains from raw observations to mean actions, and how many observations each reads.

    A window that is not yet full is a chain of its own.
    """
    cell, after = actor.cell, _after(actor)
    if not isinstance(cell, WindowCell):
        chain = chain_of(cell)
        if chain is None:
            raise _unknown(cell.name)
        return [([*_before(actor, 1), *chain, *after], 1)]
    perceptron = chain_of(cell.perceptron)
    if perceptron is None:
        raise _unknown(cell.perceptron.name)
    blank = cell.blank.detach().cpu().double().numpy()
    # Of a cell without memory all but the last observation do nothing.
    counts = range(cell.window, cell.window + 1) if chain_of(cell.inner) is not None else range(1, cell.window + 1)
    chains = []
    for count in counts:
        absent = 0 if cell.masked else cell.window - count
        inner = chain_over(cell.inner, count + absent)
        if inner is None:
            raise _unknown(cell.inner.name)
        placed = np.vstack((np.zeros((absent * len(blank), count * len(blank))), np.eye(count * len(blank))))
        filled = linear(placed, np.concatenate((np.tile(blank, absent), np.zeros(count * len(blank)))))
        chains.append(([*_before(actor, count), filled, *inner, *perceptron, *after], count))
    return chains


def _before(actor: Actor, count: int) -> list[Layer]:
    """Return what stands before the cell, for `count` observations at once."""
    folded, chain = actor.folded(), []
    if actor.normalizer is not None:
        mean, std = (value.detach().cpu().double().numpy() for value in (actor.normalizer.mean, actor.normalizer.std))
        chain += _shifted(mean, std, count)
        chain.append(linear(np.eye(len(mean) * count), None, clipped(actor.normalizer.clip)))
    return chain + _shifted(folded.offset, folded.scale, count)


def _shifted(offset: np.ndarray, scale: np.ndarray, count: int) -> list[Layer]:
    """Return (x - offset) / scale."""
    factors = np.tile(1.0 / scale, count)
    divided = linear(np.diag(factors), error=np.diag(2.0 * UNIT * np.abs(factors)))
    return [linear(np.eye(len(factors)), -np.tile(offset, count)), divided]


def _after(actor: Actor) -> list[Layer]:
    """Return what follows the cell."""
    folded, head, chain = actor.folded(), actor.head, []
    bias = None if head.linear is None else head.linear.bias.detach().cpu().double().numpy()
    chain.append(linear(folded.head, bias, SHAPES["tanh"] if head.squash else IDENTITY))
    sizes = np.ones(head.output_size) if folded.sizes is None else folded.sizes
    return [*chain, linear(np.diag(sizes), folded.centre)]


def _unknown(name: str) -> NotCertifiableError:
    return NotCertifiableError(
        f"{name!r} has a memory that is no window, or an activation whose slopes are not known: in a box nothing is "
        "proven of it. `certify` states a bound for every step, for ever, of cells that have one."
    )
