"""PPO's loss of Gaussian actions and its gradients in one pass over the samples; `losses` says what it is.

Needs numba (the extra `fast`); compiled once, kept on the disk.
"""

from __future__ import annotations

import math

import numpy as np

from robust_policies.networks.kernels import compiled

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@compiled
def gaussian(
    means, log_std, actions, log_probs, advantages, values, before, returns, clip, clip_values, weight, by_entropy
):
    """Return (loss, policy loss, clip fraction, value loss, divergence, entropy) and the loss's gradients.

    Those are of values (n,), means (n, na) and log_std (na,).

    Args:
        means: (n, na), of the present weights.
        log_std: (na,), of the present weights.
        actions: (n, na), what was done.
        log_probs: (n,), of the weights that acted.
        advantages: (n,), of what was done.
        values: (n,), of the present weights.
        before: (n,), values of the weights that acted.
        returns: (n,), targets of the values.
        clip: limit of the probability ratio's distance from 1.
        clip_values: limit of what the values may move, infinite: none.
        weight: of the values' mean squared error.
        by_entropy: the weight of the actions' entropy.
    """
    n, na = means.shape
    by_values, by_means, by_log_std = np.empty_like(values), np.empty_like(means), np.zeros_like(log_std)
    inverse, constant = np.exp(-log_std), -na * _HALF_LOG_2PI
    for k in range(na):
        constant -= log_std[k]
    ratios = np.empty_like(values)
    for i in range(n):
        square = 0.0
        for k in range(na):
            noise = (actions[i, k] - means[i, k]) * inverse[k]
            by_means[i, k] = noise
            square += noise * noise
        ratios[i] = constant - 0.5 * square - log_probs[i]
    policy_loss, fraction, value_loss, divergence = 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        log_ratio = ratios[i]
        ratio = math.exp(log_ratio)
        gained = advantages[i] * ratio
        # Asked of the ratio itself: of two products that are equal a compiler may keep one unrounded.
        stuck = (ratio > 1.0 + clip and advantages[i] > 0.0) or (ratio < 1.0 - clip and advantages[i] < 0.0)
        slope = 0.0 if stuck else -gained / n
        policy_loss -= advantages[i] * min(max(ratio, 1.0 - clip), 1.0 + clip) if stuck else gained
        divergence += (ratio - 1.0) - log_ratio
        fraction += 1.0 if abs(ratio - 1.0) > clip else 0.0
        change = values[i] - before[i]
        moved = before[i] + min(max(change, -clip_values), clip_values) if abs(change) > clip_values else values[i]
        error = moved - returns[i]
        value_loss += error * error
        by_values[i] = 0.0 if abs(change) > clip_values else 2.0 * weight / n * error
        for k in range(na):
            noise = by_means[i, k]
            by_log_std[k] += slope * (noise * noise - 1.0)
            by_means[i, k] = slope * noise * inverse[k]
    entropy = 0.0
    for k in range(na):
        entropy += log_std[k] + 0.5 + _HALF_LOG_2PI
        by_log_std[k] -= by_entropy
    policy_loss, value_loss = policy_loss / n, value_loss / n
    loss = policy_loss + weight * value_loss - by_entropy * entropy
    parts = np.array([loss, policy_loss, fraction / n, value_loss, divergence / n, entropy])
    return parts, by_values, by_means, by_log_std
