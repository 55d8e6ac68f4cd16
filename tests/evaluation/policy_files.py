"""Small untrained policies on disk, without a training library."""

import torch
from gymnasium import spaces

from robust_policies.networks import make_cell
from robust_policies.policies import DeployedPolicy, save_policy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling

OPTIONS = {
    "r2dn": {"state_size": 3, "features": 4, "hidden_sizes": (5,), "gamma": 2.0, "rate": 0.95},
    "lstm": {"state_size": 4},
    "mlp": {"hidden_sizes": (6,)},
}


def written(folder, cell, seed=0):
    """Return `folder` with a policy of that cell: 3 observations in scales of their own, 2 actions."""
    torch.manual_seed(seed)
    body = ScaledCell(make_cell(cell, 3, 2, **OPTIONS[cell]), Scaling(3, [2.0, 0.5, 1.0]))
    actor = Actor(body, MeanHead(2, 2, linear=False, scale=[3.0, 1.0]))
    save_policy(DeployedPolicy(actor, spaces.Box(-9.0, 9.0, (3,)), spaces.Box(-1.0, 1.0, (2,))), folder)
    return folder
