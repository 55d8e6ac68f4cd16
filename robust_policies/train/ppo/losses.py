"""PPO's loss and the log-probability of Gaussian actions, each one operation whose gradient is known in closed form."""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robust_policies.train.ppo.buffer import Minibatch

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Parts(NamedTuple):
    """What a loss is made of, () each and without gradients; see `clipped_loss`."""

    policy_loss: Tensor
    fraction: Tensor
    value_loss: Tensor
    divergence: Tensor


def clipped_loss(
    values: Tensor, log_probs: Tensor, batch: Minibatch, clip: Any, clip_values: Any, weight: float
) -> tuple[Tensor, Parts]:
    """Return policy loss + `weight` value loss, (), and its parts, with the clip fraction and approximate divergence.

    Args:
        values: (time, batch), of the present weights.
        log_probs: (time, batch), of the present weights.
        batch: what was done, with advantages as they count.
        clip: limit of the probability ratio's distance from 1, a number or a float64 tensor ().
        clip_values: limit of what the values may move, as `clip`; None: no limit.
        weight: of the values' mean squared error.

    Source: J. Schulman et al., "Proximal Policy Optimization Algorithms" (arXiv 1707.06347), equation 7, as
    Stable-Baselines3 has it.
    """
    loss, *parts = _ClippedLoss.apply(values, log_probs, batch, clip, clip_values, weight)
    return loss, Parts(*parts)


class Terms(NamedTuple):
    """What a loss is made of besides the data: see `clipped_loss`; `entropy` is the weight of the actions' entropy."""

    clip: Any
    clip_values: Any
    weight: float
    entropy: float


def gaussian_loss(
    values: Tensor, means: Tensor, log_std: Tensor, batch: Minibatch, terms: Terms
) -> tuple[Tensor, Parts, Tensor]:
    """Return the loss () of Gaussian actions, entropy included, its parts, and the entropy (), without a gradient.

    Args:
        values: (time, batch), of the present weights.
        means: (time, batch, na), of the present weights.
        log_std: (na,), of the present weights.
        batch: what was done, with advantages as they count.
        terms: of the loss.
    """
    kernels = _kernels(values.dtype) if values.is_cpu and values.dtype == means.dtype == log_std.dtype else None
    if kernels is None:
        log_probs, entropy = GaussianLogProb.apply(means, log_std, batch.actions), gaussian_entropy(log_std)
        loss, parts = clipped_loss(values, log_probs, batch, *terms[:3])
        return loss - terms.entropy * entropy, parts, entropy.detach()
    loss, *parts, entropy = _GaussianLoss.apply(kernels, values, means, log_std, batch, terms)
    return loss, Parts(*parts), entropy


@cache
def _kernels(dtype: torch.dtype) -> Any:
    """Return the module of the compiled loss, None where numba is not there or it does not run."""
    try:
        kernels = importlib.import_module("robust_policies.train.ppo.loss_kernels")
        one = torch.ones(1, dtype=dtype).numpy()
        kernels.gaussian(one[None], one, one[None], *(one,) * 5, 0.2, math.inf, 0.5, 0.0)
    except Exception:  # whatever ails the compiler: PyTorch needs none
        return None
    return kernels


class _GaussianLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: Any, values: Tensor, means: Tensor, log_std: Tensor, batch: Minibatch, terms: Terms
    ) -> tuple[Tensor, ...]:
        na = len(log_std)
        given = (means.reshape(-1, na), log_std, batch.actions.reshape(-1, na))
        grids = (batch.log_probs, batch.advantages, values, batch.values, batch.returns)
        arrays = (np.ascontiguousarray(one.detach().numpy()) for one in (*given, *(grid.reshape(-1) for grid in grids)))
        limit = math.inf if terms.clip_values is None else terms.clip_values
        parts, *slopes = kernels.gaussian(*arrays, terms.clip, limit, terms.weight, terms.entropy)
        ctx.slopes = [torch.from_numpy(slope).view(one.shape)
                      for slope, one in zip(slopes, (values, means, log_std), strict=True)]  # fmt: skip
        found = torch.from_numpy(parts).to(values.dtype).unbind()
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(slope * grads[0] for slope in ctx.slopes), None, None)


class _ClippedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        log_probs: Tensor,
        batch: Minibatch,
        clip: Any,
        clip_values: Any,
        weight: float,
    ) -> tuple[Tensor, ...]:
        log_ratio = log_probs - batch.log_probs
        ratio = log_ratio.exp()
        gained = batch.advantages * ratio
        limited = batch.advantages * ratio.clamp(1 - clip, 1 + clip)
        moved = ratio - 1
        policy_loss = torch.minimum(gained, limited).mean().neg_()
        divergence = (moved - log_ratio).mean()
        fraction = (moved.abs() > clip).to(values.dtype).mean()
        stuck = None
        if clip_values is not None:
            change = values - batch.values
            values = batch.values + change.clamp(-clip_values, clip_values)
            stuck = change.abs() > clip_values
        error = values - batch.returns
        value_loss = error.square().mean()
        # The derivative of the ratio by the log-probability is the ratio; where the limited term counts there is none.
        by_log_probs = gained.masked_fill_(gained > limited, 0.0).mul_(-1.0 / gained.numel())
        by_values = error.mul_(2.0 * weight / error.numel())
        if stuck is not None:
            by_values.masked_fill_(stuck, 0.0)
        ctx.save_for_backward(by_values, by_log_probs)
        ctx.mark_non_differentiable(policy_loss, fraction, value_loss, divergence)
        return policy_loss + weight * value_loss, policy_loss, fraction, value_loss, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_values, by_log_probs = ctx.saved_tensors
        return by_values * grads[0], by_log_probs * grads[0], None, None, None, None


def gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """Return the log-probability (...) of actions mean + exp(log_std) noise, noise (..., na), log_std (na,)."""
    return noise.square().sum(-1).mul_(-0.5).sub_(log_std.sum() + _HALF_LOG_2PI * log_std.shape[0])


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Return the entropy () of actions with the deviations exp(log_std), (na,)."""
    return (log_std + (0.5 + _HALF_LOG_2PI)).sum()


class GaussianLogProb(torch.autograd.Function):
    """The log-probability (...) of actions (..., na) with means (..., na) and deviations exp(log_std), (na,)."""

    @staticmethod
    def forward(ctx: Any, means: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
        """Return it; the arguments are means, log_std and actions."""
        inverse = (-log_std).exp()
        noise = (actions - means).mul_(inverse)
        ctx.save_for_backward(noise, inverse)
        return gaussian_log_prob(noise, log_std)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of means (..., na) and log_std (na,)."""
        noise, inverse = ctx.saved_tensors
        weighted = noise * grads[0].unsqueeze(-1)
        by_log_std = (weighted * noise).flatten(0, -2).sum(0) - grads[0].sum()
        return weighted.mul_(inverse), by_log_std, None
