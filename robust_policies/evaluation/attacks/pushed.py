"""What perturbed observations do to a policy's actions, where the observations themselves are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_policies.evaluation.attacks.search import Objective
from robust_policies.networks.collapsed_run import columns, rows
from robust_policies.policies.frozen import FrozenActor


class Measure(NamedTuple):
    """A number made of how far actions are moved, (time, batch, na).

    value: moved -> (batch,). slope: moved -> its gradient, of moved's shape or one that broadcasts to it.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


SQUARED = Measure(lambda moved: moved.square().sum(dim=(0, 2)), lambda moved: 2.0 * moved)
ABSOLUTE = Measure(lambda moved: moved.abs().sum(dim=(0, 2)), torch.sign)


def directed(side: Tensor) -> Measure:
    """Return the sum of what actions are moved to one side (batch, na)."""
    return Measure(lambda moved: (moved * side).sum(dim=(0, 2)), lambda moved: side)


def pushed(actor: FrozenActor, observations: Tensor, hidden: Tensor, clean: Tensor, measure: Measure) -> Objective:
    """Return how far perturbations move the actions, by a compiled run where there is one.

    Args:
        actor: the policy.
        observations: (time, batch, nu), which are perturbed.
        hidden: (batch, nx), its state before them.
        clean: (time, batch, na), the actions that are moved.
        measure: of the actions, as `FrozenActor.clip` has them, without the clean ones.
    """
    compiled = actor.compiled
    if compiled is None:

        def plain(delta: Tensor) -> Tensor:
            read = observations + delta
            actions = actor.run(read, hidden) if len(read) > 1 else actor.step(read[0], hidden)[0].unsqueeze(0)
            return measure.value(actor.clip(actions) - clean)

        return Objective(plain)
    run, first = compiled.run, columns(hidden)

    def moved(delta: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Return how far the actions are moved, these before clipping, and what the gradient needs."""
        found, kept = run.forward(columns(actor.inward(observations + delta)), first.copy())
        actions = actor.head(rows(found))
        return actor.clip(actions) - clean, actions, kept

    def slope(delta: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            far, actions, kept = moved(delta)
            slopes = measure.slope(far) * actor.clip_slope(actions) * compiled.outward
            gradient = rows(run.input_gradient(kept, columns(slopes)))
            return measure.value(far), (gradient * compiled.inward).to(delta.dtype)

    return Objective(lambda delta: measure.value(moved(delta)[0]), slope)
