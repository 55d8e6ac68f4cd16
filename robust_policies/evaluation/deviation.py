"""How far perturbations moved the actions: measured in float64, after the episodes, from what was recorded."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robust_policies.certificates.gain_search import running_map
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.spaces import limits, one_hot

_ROWS_AT_ONCE = 100_000


def action_deviation(
    policy: DeployedPolicy, clean: Tensor, perturbed: Tensor, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return |actions - clean actions| / |perturbation|, l2 over each episode: (applied, before clipping), (batch,).

    The clean actions are those of a twin with its own recurrent state that reads the unperturbed observations of the
    same visited states. So what is measured is one pair of input sequences of the policy as an open loop: before
    clipping the ratio is a lower bound of the incremental l2 gain and cannot exceed a proven one. It says nothing about
    returns. Of choices the second is of the logits, the first of vectors of 0 and 1. NaN where nothing was perturbed.

    Args:
        policy: whose arrays are upcast exactly to float64.
        clean: observations (time, batch, nu) of the visited states.
        perturbed: what the policy read instead.
        lengths: (batch,) numbers of steps that count.
    """
    if torch.equal(clean, perturbed):
        return np.full(clean.shape[1], np.nan), np.full(clean.shape[1], np.nan)
    run = running_map(policy).run
    space = policy.action_space
    low, high = (torch.as_tensor(bound, dtype=torch.float64) for bound in limits(space))
    time, batch = clean.shape[:2]
    counted = torch.arange(time).unsqueeze(1) < torch.as_tensor(lengths)
    found = np.full((2, batch), np.nan)
    size = max(1, _ROWS_AT_ONCE // time)
    for first in range(0, batch, size):
        rows = slice(first, first + size)
        mask = counted[:, rows].unsqueeze(-1)
        pair = [torch.where(mask, value[:, rows].cpu().double(), 0.0) for value in (clean, perturbed)]
        with torch.no_grad():
            actions = run(torch.cat(pair, dim=1)).chunk(2, dim=1)
        spent = _norm(pair[1] - pair[0])
        applied = [a.clamp(low, high) if isinstance(space, spaces.Box) else one_hot(space, a) for a in actions]
        for i, values in enumerate((applied, actions)):
            moved = _norm(torch.where(mask, values[1] - values[0], 0.0))
            found[i, rows] = torch.where(spent > 0, moved / spent, torch.nan).numpy()
    return found[0], found[1]


def _norm(value: Tensor) -> Tensor:
    return value.square().sum(dim=(0, 2)).sqrt()
