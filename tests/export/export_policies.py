"""Small policies of every kind, and runs of them, for the tests of export."""

import numpy as np
import torch
from gymnasium import spaces

from robust_policies.control import lqg
from robust_policies.control.linear_model import from_matrices
from robust_policies.envs import load_plant
from robust_policies.networks import make_cell
from robust_policies.networks.baselines import MLPCell
from robust_policies.policies import DeployedPolicy, YoulaOptions, YoulaPolicy, save_policy
from robust_policies.policies.actor import Actor, FrozenNormalizer, MeanHead, ScaledCell, Scaling
from robust_policies.policies.window import WindowCell
from robust_policies.policies.youla.base import BaseController

LIMITS = np.array([1.0, 1.0, 8.0], np.float32)
BOX, ACTION = spaces.Box(-LIMITS, LIMITS), spaces.Box(-2.0, 2.0, (1,), np.float32)
CELLS = {
    "r2dn": ("r2dn", {"state_size": 4, "features": 5, "hidden_sizes": [6, 7], "gamma": 3.0}),
    "r2dn tanh": ("r2dn", {"state_size": 3, "features": 4, "hidden_sizes": [6], "activation": "tanh"}),
    "ren": ("ren", {"state_size": 4, "features": 5, "gamma": 3.0, "activation": "elu"}),
    "nemon": ("nemon", {"state_size": 4, "features": 6, "gamma": 3.0, "block_size": 2}),
    "nemon implicit": ("nemon", {"state_size": 3, "features": 4, "gamma": 3.0, "implicit": True, "passes": 5}),
    "l2ru": ("l2ru", {"state_size": 4, "features": 3, "layers": 1, "gamma": 3.0}),
    "convex": ("convex", {"state_size": 4, "gamma": 3.0}),
    "lipschitz_rnn": ("lipschitz_rnn", {"state_size": 4, "method": "rk2"}),
    "lbdn": ("lbdn", {"hidden_sizes": [6, 6], "gamma": 4.0, "activation": "softsign"}),
    "mlp": ("mlp", {"hidden_sizes": [8, 4], "activation": "maxmin"}),
    "mlp softplus": ("mlp", {"hidden_sizes": [8, 4], "activation": "softplus"}),
    "lstm": ("lstm", {"state_size": 8}),
    "gru": ("gru", {"state_size": 5}),
}
KINDS = [*CELLS, "window", "window masked", "youla", "normalizer", "squash", "choices", "bits"]


def small_policy(kind):
    """Return a policy with random parameters."""
    torch.manual_seed(1)
    if kind == "youla":
        return youla()
    actions, normalizer = ACTION, None
    if kind in CELLS:
        name, options = CELLS[kind]
        cell = make_cell(name, 3, 2, **options)
    elif kind.startswith("window"):
        cell = WindowCell(make_cell("r2dn", 3, 4, **CELLS["r2dn"][1]), MLPCell(4, [5], 2), 4, kind.endswith("masked"))
        cell.blank.fill_(0.3)
    else:
        cell = make_cell("r2dn", 3, 2, **CELLS["r2dn"][1])
        if kind == "normalizer":
            normalizer = FrozenNormalizer(torch.tensor([0.1, -0.5, 2.0]), torch.tensor([0.5, 1.0, 3.0]), 1.5)
        if kind in ("choices", "bits"):
            actions = spaces.MultiDiscrete([3, 2]) if kind == "choices" else spaces.MultiBinary(3)
    count = {"choices": 5, "bits": 3}.get(kind, 1)
    head = MeanHead(cell.output_size, count, True, 0.7, 0.1, squash=kind == "squash")
    scaling = Scaling(3, [0.5, 1.0, 4.0], 0.2)
    with torch.no_grad():
        for parameter in (*cell.parameters(), *head.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return DeployedPolicy(
        Actor(ScaledCell(cell, scaling), head, normalizer), BOX, actions, torch.zeros(count), raw=True
    )


def saved(kind, folder, task="Pendulum-v1"):
    """Return the folder after saving a policy there, as one of a task that it fits."""
    fits = kind not in ("youla", "choices", "bits")
    save_policy(small_policy(kind), folder, task if fits else None)
    return folder


def youla(delay=2, size=5.0):
    """Return a Youla policy of a mass on a spring."""
    plant = load_plant("mass_spring_damper")
    limits = {"action_low": plant.action_low, "action_high": plant.action_high}
    given = {"W": plant.E @ plant.E.T, "V": plant.F @ plant.F.T, "Q": plant.Q, "R": 30 * plant.R}
    model = from_matrices(plant.A, plant.B, plant.C, **given, **limits)
    box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    acts = spaces.Box(plant.action_low.astype(np.float32), plant.action_high.astype(np.float32))
    options = YoulaOptions(reserve=0.1, delay=delay)
    cell = make_cell("r2dn", 1, 1, state_size=3, features=4, hidden_sizes=[4])
    inner = Actor(ScaledCell(cell, Scaling(1)), MeanHead(1, 1, False, size))
    design = lqg.design(model)
    base = BaseController(model, design, box, acts, options)
    youla = DeployedPolicy(inner, base.youla_observation_space, base.youla_action_space)
    return YoulaPolicy(design, model, youla, observation_space=box, action_space=acts, options=options)
