"""Environments and policies for the tests of the Youla wrapper."""

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from robust_policies.networks import make_cell
from robust_policies.policies import DeployedPolicy, YoulaVectorWrapper
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling

LINEAR = ("AircraftPitch", "DCMotor", "DoubleIntegrator", "DoyleLQG", "MassSpringDamper")


def task(name):
    """Return the id of a task."""
    return f"robust_policies/{name}-v0"


def batch(name, num_envs=3, *, dtype="float64", mode="SAME_STEP", inner=lambda env: env, steps=None, **options):
    """Return a wrapped vector environment; `inner` wraps it before."""
    given = {} if steps is None else {"max_episode_steps": steps}
    env = gymnasium.make_vec(task(name), num_envs=num_envs, dtype=dtype, autoreset_mode=mode, **given)
    return YoulaVectorWrapper(inner(env), **options)


def random_policy(wrapped, gain=20.0, cell="r2dn", seed=0, vector=False):
    """Return a deployed policy for a wrapped environment, its actions large enough to saturate now and then."""
    torch.manual_seed(seed)
    observations = wrapped.single_observation_space if vector else wrapped.observation_space
    actions = wrapped.single_action_space if vector else wrapped.action_space
    options = {"r2dn": {"state_size": 4, "features": 5, "hidden_sizes": (6,), "gamma": 1.0}, "lstm": {"state_size": 6}}
    net = make_cell(cell, observations.shape[0], actions.shape[0], **options[cell])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    scale = gain * np.ones(actions.shape[0])
    actor = Actor(ScaledCell(net, Scaling(observations.shape[0])), MeanHead(len(scale), len(scale), False, scale))
    box = spaces.Box(observations.low.astype(np.float32), observations.high.astype(np.float32))
    return DeployedPolicy(actor, box, actions, torch.full((len(scale),), -1.0))


def hand_written(A, B, C, K, L, M, y, u_from, state):
    """Return (estimate, innovation, input, next state) of one step of an observer written out, one environment."""
    innovation = y - C @ state
    estimate = state + M @ innovation
    u = u_from(-K @ estimate)
    return estimate, innovation, u, A @ state + B @ u + L @ innovation
