"""The gain of a policy from what it reads to its raw mean action, factor by factor and proven together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from robust_policies.certificates import (
    Certificate,
    Factor,
    Verification,
    compose,
    verify,
    verify_chain,
    verify_layers,
)
from robust_policies.certificates.layers import spectral_bound
from robust_policies.certificates.signals import Signals
from robust_policies.errors import InvalidValueError, NotCertifiableError, ShapeError
from robust_policies.networks.once import once
from robust_policies.policies.actor import Actor, FrozenNormalizer
from robust_policies.policies.window import WindowCell

UP = 1 + 2e-15
_PRODUCT_UP = 1 + 1e-13


@dataclass
class Scales:
    """What stands before a cell: factors, and the size (nu,) of the raw observation that one unit of input is."""

    unit: np.ndarray
    factors: list[Factor] = field(default_factory=list)

    def divide(self, name: str, scale: np.ndarray, note: str) -> None:
        """Add a division by `scale` (nu,)."""
        self.factors.append(Factor(name, float((1 / scale).max()) * UP, note))
        self.unit = self.unit * scale

    def largest(self, weights: np.ndarray | None = None) -> float:
        """Return the gain of the divisions together, of observations in units of `weights` (nu,)."""
        return float(((1.0 if weights is None else weights) / self.unit).max()) * UP


def certify_actor(
    actor: Actor,
    action_space: spaces.Space,
    weights: Sequence[float] | None = None,
    *,
    reads: str,
    state_dependent_noise: bool = False,
) -> Certificate:
    """Return the certificate of the gain from what an actor reads to its raw mean action, of choices to the logits.

    Args:
        actor: its mean action is judged.
        action_space: in which it acts.
        weights: (nu,) the size of one unit of each observation, such as 1 m, 1 rad, 0.1 m/s: the certificate then
            also has the gain of observations measured in these units.
        reads: what the observations are, in words: `certificates.signals` has some.
        state_dependent_noise: it explores with gSDE.

    Raises:
        NotCertifiableError: there is no such gain; the message names the reason.
        ShapeError, InvalidValueError: the weights do not fit.
    """
    cell = actor.cell
    units = None if weights is None else observation_weights(weights, cell.input_size)
    if state_dependent_noise:
        raise NotCertifiableError(
            "The policy explores with state-dependent noise (gSDE), which is a function of the observation with a gain "
            "of its own; train with use_sde=False."
        )
    if isinstance(cell, WindowCell):
        return _certify_window(actor, cell, units, reads, action_space)
    verification = verify(cell)
    scales, after = scales_of(actor), _after(actor, action_space)
    joint = weighted = None
    if verification.gamma is not None:
        head, sizes = actor.folded().head, _sizes(actor)
        outside = spectral_bound(sizes[:, None] * head) * _PRODUCT_UP if len(head) else 0.0
        joint = _least(actor, 1 / scales.unit, scales.largest() * verification.gamma * outside * UP)
        if units is not None:
            whole = scales.largest(units) * verification.gamma * outside * UP
            weighted = _least(actor, units / scales.unit, whole)
    if verification.status == "PASS" and _is_constant(actor):
        joint, weighted = 0.0, None if units is None else 0.0
    return compose(
        verification,
        signals=Signals.between(reads, cell.input_size, action_space),
        before=scales.factors,
        after=after,
        joint=joint,
        weights=None if units is None else units.tolist(),
        weighted=weighted,
        arrays=running_arrays(actor),
        cell_note=cell.name,
        choices=choices(action_space, cell.state_size > 0),
    )


def _certify_window(
    actor: Actor, cell: WindowCell, units: np.ndarray | None, reads: str, action_space: spaces.Space
) -> Certificate:
    """Return the certificate of an actor whose cell runs anew over a window at every step."""
    signals = Signals.between(reads, cell.input_size, action_space)
    found, scales, after = verify(cell.inner), scales_of(actor), _after(actor, action_space)
    layers = [layer for layer in cell.perceptron.layers if isinstance(layer, nn.Linear)]
    net = verify_layers([layer.weight.detach().cpu().double().numpy() for layer in layers])
    if net.status != "PASS":
        return compose(net, signals=signals, before=scales.factors)
    window = window_factor(cell.window)
    after = [Factor("perceptron", net.gamma, net.method), *after]
    weighted = None
    if units is not None and found.gamma is not None:
        gains = [scales.largest(units), found.gamma, *(factor.gain or 0.0 for factor in (window, *after))]
        weighted = float(np.prod(gains)) * _PRODUCT_UP
    return compose(
        verification_of_window(found),
        signals=signals,
        before=[*scales.factors[:-1], window, scales.factors[-1]],
        after=after,
        weights=None if units is None else units.tolist(),
        weighted=weighted,
        arrays=running_arrays(actor),
        cell_note=cell.inner.name,
        choices=choices(action_space, True),
    )


def verification_of_window(cell: Verification) -> Verification:
    """Return what is proven of a cell that runs in windows: nothing is older than they are, so it has no rate."""
    return replace(cell, rate=None, overshoot=None, forgets=None)


def window_factor(window: int) -> Factor:
    """Return the factor of a window that is read anew at every step."""
    note = f"each observation is read in {window} windows: sqrt({window})"
    return Factor("history window", float(np.sqrt(window)) * UP, note)


def _is_constant(actor: Actor) -> bool:
    """Return whether the maps from the cell's signals to the action are exactly zero: nothing that is read matters."""
    folded = actor.folded()
    if not folded.head.any() or (folded.sizes is not None and not folded.sizes.any()):
        return True
    explicit = once(actor.cell, "explicit")
    if hasattr(explicit, "weights"):
        return not bool(explicit.weights[-1].any())
    out = [getattr(explicit, name, None) for name in ("C2", "D21", "D22")]
    return all(array is not None and not bool(array.any()) for array in out)


def scales_of(actor: Actor) -> Scales:
    """Return what stands before the cell: the frozen normalizer and the observation scale."""
    scales = Scales(np.ones(actor.cell.input_size))
    if actor.normalizer is not None:
        normalized(scales, actor.normalizer)
    note = "none" if actor.body.scaling.scale is None else "1 / smallest observation_scale"
    scales.divide("observation scale", actor.folded().scale, note)
    return scales


def normalized(scales: Scales, normalizer: FrozenNormalizer) -> None:
    """Add a frozen normalizer to what stands before a cell."""
    std = normalizer.std.detach().cpu().double().numpy()
    scales.divide("observation normalization", std, "frozen VecNormalize: 1 / smallest deviation")
    scales.factors.append(Factor("observation clip", 1.0, "clipping is 1-Lipschitz"))


def observation_weights(weights: Sequence[float], size: int) -> np.ndarray:
    """Return the units of the observations as an array (size,); raises ShapeError, InvalidValueError."""
    units = np.asarray(weights, dtype=np.float64).reshape(-1)
    if units.size != size:
        raise ShapeError(f"weights has {units.size} number(s) and an observation {size}; give one for each of them.")
    if not (np.isfinite(units).all() and (units > 0).all()):
        raise InvalidValueError(
            f"weights is {units.tolist()}; expected finite numbers > 0: the size of one unit of each observation."
        )
    return units


def choices(space: spaces.Space, memory: bool) -> dict[str, Any] | None:
    """Return what a certificate of a gain to logits says of the choices, None where the actions are numbers.

    Two logits approach each other by at most sqrt(2) times the norm of the change of all; a bit has one logit.
    """
    if isinstance(space, spaces.Box):
        return None
    bits = isinstance(space, spaces.MultiBinary)
    return {"space": type(space).__name__, "divisor": 1.0 if bits else math.sqrt(2.0) * UP, "memory": memory}


def running_arrays(actor: Actor) -> dict[str, Any]:
    """Return the arrays that run: the cell's explicit ones and those of the scalings and the head, by name."""
    arrays = dict(_flat("cell", once(actor.cell, "explicit")))
    return arrays | {k: v for k, v in actor.state_dict().items() if not k.startswith("body.cell.")}


def _least(actor: Actor, inputs: np.ndarray, product: float) -> float:
    """Return the smaller of `product` and the gain of scale, cell, head and action scale in one inequality.

    A frozen normalizer's clip lies between two scales; the inequality needs only that no channel grows by more than
    their product, `inputs`.
    """
    head, sizes = None if actor.head.linear is None else actor.folded().head, _sizes(actor)
    if head is None and np.ptp(inputs) == 0 and np.ptp(sizes) == 0:
        # One number before and one after the cell: the product is what the one inequality would prove.
        return product
    found = verify_chain(actor.cell, inputs=inputs, outputs=sizes, head=head)
    return product if found is None else min(found, product)


def _sizes(actor: Actor) -> np.ndarray:
    """Return the size (na,) of each action that one unit of the head's output is, >= 0."""
    folded = actor.folded()
    return np.ones(len(folded.head)) if folded.sizes is None else np.abs(folded.sizes)


def _after(actor: Actor, action_space: spaces.Space) -> list[Factor]:
    weight, sizes, numbers = actor.folded().head, _sizes(actor), isinstance(action_space, spaces.Box)
    none = "none: the cell's output is the mean action" if numbers else "none: the cell's output is the logits"
    head = actor.head.linear is not None
    return [
        Factor("head", spectral_bound(weight) if head else 1.0, "spectral norm of the linear head" if head else none),
        *([Factor("squashing", 1.0, "tanh is 1-Lipschitz")] if actor.head.squash else []),
        Factor("action scale", float(sizes.max()), _scale_note(actor)),
        *([Factor("action clip", 1.0, "clipping to the action space is 1-Lipschitz")] if numbers else []),
    ]


def _scale_note(actor: Actor) -> str:
    note = "largest action_scale"
    return note if actor.head.offset is None else f"{note}; the action_offset changes no difference"


def _flat(name: str, value: Any) -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    if hasattr(value, "_asdict"):
        parts = value._asdict().items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        return []
    return [pair for key, part in parts for pair in _flat(f"{name}.{key}", part)]
