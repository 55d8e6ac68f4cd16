"""Small untrained models and policies."""

import numpy as np
import torch
from gymnasium import spaces
from small_data import TIME_STEP

from robust_policies.identification import IdentifiedModel, Signals
from robust_policies.networks import make_cell
from robust_policies.policies import policy_from_cell

SMALL = {"state_size": 4, "features": 6, "hidden_sizes": [8], "activation": "tanh"}
OPTIONS = {
    "r2dn": {"state_size": 3, "features": 4, "hidden_sizes": [5, 3], "gamma": 0.3},
    "ren": {"state_size": 3, "features": 4, "gamma": 0.3},
    "lbdn": {"hidden_sizes": [4, 3], "gamma": 0.3},
    "mlp": {"hidden_sizes": [4]},
}
LIMIT = 0.2


def small_model(name="r2dn", nu=2, ny=2, initial=None, dtype=torch.float64, **options):
    """Return an untrained model of two inputs and two outputs with uneven scales."""
    torch.manual_seed(0)
    sizes = {key: SMALL[key] for key in (SMALL if name == "r2dn" else ["state_size"])}
    cell = make_cell(name, nu, ny, **{**sizes, **options}).to(dtype)
    scales = [np.array([0.5, 20.0])[:nu], np.array([3.0, 0.01])[:ny]]
    offsets = [np.array([1.0, -2.0])[:nu], np.array([-1.0, 5.0])[:ny]]
    inputs, outputs = (tuple(f"{name}{k}" for k in range(count)) for name, count in (("u", nu), ("y", ny)))
    u0, u1, y0, y1 = (tuple(map(float, v)) for v in (offsets[0], scales[0], offsets[1], scales[1]))
    signals = Signals(inputs, outputs, TIME_STEP, u0, u1, y0, y1)
    return IdentifiedModel(cell, signals, None if initial is None else initial(cell))


def policy_of(name="r2dn", ny=1, nu=1, gain=1.0, limit=LIMIT, dtype=torch.float64, **options):
    """Return a policy, its output multiplied by `gain`."""
    torch.manual_seed(1)
    kind = np.float64 if dtype is torch.float64 else np.float32
    cell = make_cell(name, ny, nu, **{**OPTIONS[name], **options}).to(dtype)
    box = spaces.Box(-np.inf, np.inf, (ny,), kind), spaces.Box(-limit, limit, (nu,), kind)
    # With an offset observations are read in their own precision.
    scales = {"observation_scale": np.linspace(0.5, 1.5, ny), "observation_offset": np.zeros(ny)}
    scales["action_scale"] = gain * np.linspace(1.0, 0.5, nu)
    policy = policy_from_cell(cell, *box, **scales)
    policy.actor.to(dtype)
    return policy
