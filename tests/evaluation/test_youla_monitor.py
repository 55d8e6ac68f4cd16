"""Region exits and saturated inputs: wrapper, policy and evaluation count the same."""

import gymnasium
import numpy as np
import pytest
import torch

from robust_policies.envs.perturb import perturb
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.networks import make_cell
from robust_policies.policies import DeployedPolicy, YoulaPolicy, YoulaVectorWrapper
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling

TASK = "robust_policies/QubeServo-v0"
STEPS = 30
REGION = (0.4, 0.1, 2.0, 2.0)


@pytest.fixture(scope="module")
def wrapped():
    env = gymnasium.make_vec(TASK, num_envs=4, max_episode_steps=STEPS, autoreset_mode="DISABLED", dtype="float32")
    return YoulaVectorWrapper(perturb(env, []), region=REGION)


@pytest.fixture(scope="module")
def policy(wrapped):
    torch.manual_seed(0)
    net = make_cell("r2dn", 2, 1, state_size=4, features=5, hidden_sizes=(6,), gamma=1.0)
    actor = Actor(ScaledCell(net, Scaling(2)), MeanHead(1, 1, False, [3.0]))
    inner = DeployedPolicy(actor, wrapped.single_observation_space, wrapped.single_action_space)
    return YoulaPolicy.of(wrapped, inner)


def test_all_three_count_the_same(wrapped, policy):
    seeds = [3, 1, 4, 8]
    found = run_episodes(policy, TASK, "uniform", [0.0], 4, 0, episode_seeds=seeds, env_kwargs={
        "max_episode_steps": STEPS})  # fmt: skip
    seen, info = wrapped.reset(seed=seeds)
    assert not info["region_exits"].any() and not info["saturations"].any()
    exits, hidden = wrapped.controller.outside(info["estimate"]).long(), None
    for _ in range(STEPS):
        youla, hidden = policy.policy.predict(seen.numpy(), hidden)
        before = info
        seen, _, _, _, info = wrapped.step(torch.as_tensor(youla))
    # The wrapper counts the estimate after each step, the policy the one it acts on.
    wrapper_exits = (exits + before["region_exits"]).numpy()
    assert 0 < wrapper_exits.sum() < 4 * STEPS
    assert np.array_equal(found.monitored["region_exits"][0], wrapper_exits)
    assert np.array_equal(found.monitored["saturations"][0], info["saturations"].numpy())

    plain = gymnasium.make_vec(TASK, num_envs=4, max_episode_steps=STEPS, autoreset_mode="DISABLED", dtype="float32")
    observation, state = plain.reset(seed=seeds)[0], None
    policy.monitor.reset()
    for _ in range(STEPS):
        action, state = policy.predict(observation.numpy(), state)
        observation = plain.step(torch.as_tensor(action))[0]
    assert policy.monitor.steps == 4 * STEPS
    assert policy.monitor.region_exits == wrapper_exits.sum()
    assert policy.monitor.saturations == info["saturations"].sum()
    assert f"in {policy.monitor.region_exits}, and an input" in policy.monitor.report()


def test_a_policy_without_observer_is_not_monitored(policy):
    net = make_cell("lstm", 2, 1, state_size=4)
    box, inputs = policy.observation_space, policy.action_space
    other = DeployedPolicy(Actor(ScaledCell(net, Scaling(2)), MeanHead(1, 1, False)), box, inputs)
    found = run_episodes(other, TASK, "uniform", [0.0], 2, 0, env_kwargs={"max_episode_steps": 5})
    assert found.monitored == {}


def test_a_region_of_another_size_is_refused():
    env = gymnasium.make_vec(TASK, num_envs=1)
    with pytest.raises(
        ValueError, match=r"region has 2 number\(s\); expected 4, one for each of the model's states arm"
    ):
        YoulaVectorWrapper(env, region=(0.1, 0.1))
