"""One update: the gradient steps that follow a rollout, by sb3-contrib's loss on whole sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust_policies.policies.adam import FusedAdam, forget_gradients, gradient_norm, take_step
from robust_policies.train.ppo.buffer import Pieces, TensorRolloutBuffer
from robust_policies.train.ppo.fused import fused
from robust_policies.train.ppo.losses import Terms
from robust_policies.train.ppo.policy import Apart, TensorPolicy
from robust_policies.train.run.ranks import Ranks

# What a CPU differentiates at once: more samples at a time are no faster there and take more memory.
_CPU_ROWS_AT_ONCE = 2**13


@dataclass(frozen=True)
class Settings:
    """What an update's steps depend on besides the data: as `RecurrentPPO`'s options, `minibatches` of an epoch."""

    epochs: int
    minibatches: int
    normalize_advantage: bool
    terms: Terms
    max_grad_norm: float
    target_kl: float | None


class Taken:
    """What the gradient steps of an update gave.

    Attributes:
        steps: (5,) of each: loss, policy loss, clip fraction, value loss, entropy loss.
        norms: () of each gradient; the last is missing where the update ended there.
        divergences: approximate ones, () of each step of the last epoch.
        epochs: how many were begun.
        stopped_at: the divergence that ended the update; None: all steps were taken.
    """

    def __init__(self) -> None:
        self.steps: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.divergences: list[Tensor] = []
        self.epochs = 0
        self.stopped_at: float | None = None


class Update:
    """Updates a policy by what a buffer holds."""

    def __init__(self, tensors: TensorPolicy, buffer: TensorRolloutBuffer, ranks: Ranks) -> None:
        self.tensors, self.buffer, self.ranks = tensors, buffer, ranks

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The policy's."""
        return self.tensors.policy.optimizer

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The policy's."""
        return list(self.tensors.policy.parameters())

    def ready(self, settings: Settings) -> Any:
        """Return what differentiates, to be given to `take`, once a rollout is in the buffer."""
        quick = fused(self.tensors, self.buffer, max(1, self.buffer.n_envs // settings.minibatches))
        if isinstance(self.optimizer, FusedAdam):
            self.optimizer.quick = quick is not None
        if self.tensors.cut:
            self.buffer.find_begins()
        return self if quick is None else quick

    def take(
        self, settings: Settings, differentiates: Any, taken: Taken, orders: Sequence[Tensor] | None = None
    ) -> None:
        """Take the gradient steps of an update, and note in `taken` what they gave, one after the other.

        `orders` (env,) int64 of the environments in the minibatches of each epoch, None: drawn here.
        """
        parameters, optimizer, buffer = self.parameters, self.optimizer, self.buffer
        at_once = _CPU_ROWS_AT_ONCE if buffer.device.type == "cpu" else None
        limit = None if settings.target_kl is None else 1.5 * settings.target_kl
        try:
            for epoch in range(settings.epochs):
                taken.divergences, taken.epochs = [], epoch + 1
                order = None if orders is None else orders[epoch]
                for pieces in buffer.minibatches(settings.minibatches, settings.normalize_advantage, at_once, order):
                    found = differentiates.differentiate(pieces, settings.terms)
                    if not self.ranks.alone:
                        found = torch.stack(self.ranks.sum_gradients(parameters, found.unbind()))
                    taken.steps.append(found[:5])
                    taken.divergences.append(found[5])
                    if limit is not None and float(found[5]) > limit:
                        taken.stopped_at = float(found[5])
                        return
                    taken.norms.append(gradient_norm(parameters, optimizer))
                    take_step(optimizer, parameters, taken.norms[-1], settings.max_grad_norm)
        finally:
            forget_gradients(parameters)

    def differentiate(self, pieces: Pieces, terms: Terms) -> Tensor:
        """Leave the gradient of a minibatch's loss in the parameters, in place of what was there.

        Returns loss, policy loss, clip fraction, value loss, entropy loss and approximate divergence, (6,).
        """
        forget_gradients(self.parameters)
        arrays, begins = self.tensors.arrays(), self.buffer.begins
        apart = None if pieces.whole else Apart(arrays)
        sums: list[Tensor] = []
        for batch, share in pieces:
            used = arrays if apart is None else apart.arrays
            loss, found, entropy = self.tensors.loss(batch, used, terms, begins)
            (loss if apart is None else share * loss).backward()
            parts = (loss.detach(), *found[:3], -entropy, found.divergence)
            if apart is not None:
                parts = [share * part for part in parts]
                parts = [before + part for before, part in zip(sums, parts, strict=True)] if sums else parts
            sums = list(parts)
        if apart is not None:
            apart.backward()
        return torch.stack(sums)

    def summary(self, taken: Taken) -> dict[str, float]:
        """Return what is logged of an update, by name; the device is asked once."""
        buffer, policy = self.buffer, self.tensors.policy
        steps, divergences = torch.stack(taken.steps), torch.stack(taken.divergences)
        norm = torch.stack(taken.norms).mean() if taken.norms else torch.zeros((), device=buffer.device)
        spread = self.ranks.variance(buffer.returns)
        unexplained = self.ranks.variance(buffer.returns - buffer.values) / spread
        deviation = policy.log_std.detach().exp().mean() if self.tensors.gaussian else torch.zeros_like(spread)
        sums = (*steps.mean(0)[1:], divergences.mean(), steps[-1, 0], 1 - unexplained, deviation, norm)
        policy_loss, fraction, value_loss, entropy_loss, kl, loss, explained, std, norm = torch.stack(sums).tolist()
        found = {
            "entropy_loss": entropy_loss,
            "policy_gradient_loss": policy_loss,
            "value_loss": value_loss,
            "approx_kl": kl,
            "clip_fraction": fraction,
            "loss": loss,
            "gradient_norm": norm,
            "explained_variance": explained if math.isfinite(explained) else math.nan,
        }
        return {**found, "std": std} if self.tensors.gaussian else found
