"""A tiny policy and a tiny suite that measures one of everything, for tests."""

import numpy as np
import torch
from gymnasium import spaces

from robust_policies.evaluation.suite import parse_suite
from robust_policies.networks import R2DN, Lipschitz
from robust_policies.policies import save_policy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.deployed import DeployedPolicy

OURS, THEIRS = "robust_policies/Pendulum-v0", "Pendulum-v1"
SUITE = {
    "schema": 1,
    "episodes": 3,
    "seeds": [0, 1],
    "tuning": {"episodes": 2, "seeds": [1000]},
    "sizes": [0, 0.1, 0.4],
    "noise": ["l2"],
    "attacks": [{"name": "mad_pgd", "steps": 1}, {"name": "random", "label": "ball", "tune": [{}, {"where": "ball"}]}],
    "faults": [{"perturbation": "ObservationDelay", "parameter": "steps", "values": [0, 2]}],
    "parameters": [{"factors": [0.8, 1.0]}],
    "disturbances": [{"perturbation": "ForceDisturbance", "parameter": "size", "values": [0, 1], "start": 0.5}],
    "record": 2,
}


def tiny_suite(**changed):
    return parse_suite({**SUITE, **changed}, "tiny")


def tiny_folder(folder, steps=40):
    """Return a run folder with the tiny policy, whose task ends after `steps` steps."""
    save_policy(tiny_policy(), folder)
    recipe = f"schema: 1\nseed: 7\ntask:\n  id: {OURS}\n  kwargs: {{max_episode_steps: {steps}}}\n"
    (folder / "recipe.yaml").write_text(recipe + "algorithm: {total_steps: 1000}\n")
    return folder


def tiny_policy():
    torch.manual_seed(0)
    actor = Actor(ScaledCell(R2DN(3, 4, 1, 6, (8,), guarantee=Lipschitz(4.0)), Scaling(3)), MeanHead(1, 1, False, 2.0))
    limit = np.array([1.0, 1.0, 8.0], np.float32)
    return DeployedPolicy(actor, spaces.Box(-limit, limit), spaces.Box(-2.0, 2.0, (1,)))
