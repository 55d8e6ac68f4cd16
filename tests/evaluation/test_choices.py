"""Evaluating policies of choices, and of observations in several entries: noise, every attack, what is left out."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from robust_policies.errors import ShapeError
from robust_policies.evaluation import evaluate_run, run_episodes
from robust_policies.evaluation.attacks import prepare_attack
from robust_policies.networks import make_cell
from robust_policies.policies import save_policy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.observations import flat_size
from robust_policies.policies.spaces import parameter_count

CARTPOLE = "robust_policies/CartPole-v0"
OBSERVED = spaces.Dict(level=spaces.Box(-3.0, 3.0, (2,)), mode=spaces.Discrete(3, start=1))
ACTED = spaces.MultiDiscrete([2, 3], start=[4, 7])


class Modes(gymnasium.Env):
    """Twenty steps; the reward is the sum of the choices, which must be the space's own numbers."""

    observation_space, action_space = OBSERVED, ACTED

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._seen(), {}

    def _seen(self):
        level = self.np_random.normal(size=2).clip(-3, 3).astype(np.float32)
        return {"level": level, "mode": 1 + int(self.np_random.integers(3))}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        return self._seen(), float(action.sum()), False, self.steps == 20, {}


def policy_of(observations, actions):
    torch.manual_seed(3)
    sizes = flat_size(observations), parameter_count(actions)
    cell = make_cell("r2dn", *sizes, state_size=4, features=4, hidden_sizes=(4,), gamma=3.0)
    actor = Actor(ScaledCell(cell, Scaling(sizes[0])), MeanHead(sizes[1], sizes[1], False))
    return DeployedPolicy(actor, observations, actions)


@pytest.mark.parametrize(
    "kind", ["l2", "random", "mad_pgd", "sequence_pgd", "closed_loop_pgd", "critic_pgd", "transfer"]
)
def test_a_policy_of_choices_is_attacked_through_its_logits(kind):
    env = gymnasium.make(CARTPOLE)
    policy = policy_of(env.observation_space, env.action_space)
    options = {"transfer": {"policy": policy, "attack": "mad_pgd"}, "critic_pgd": {"updates": 5}}.get(kind, {})
    prepared = None
    if kind == "critic_pgd":
        prepared = prepare_attack(kind, policy, CARTPOLE, "per_step_l2", options, [9], episodes=2, max_steps=20)
    found = run_episodes(
        policy, CARTPOLE, kind, [0.0, 0.5], 2, 0, options=options, prepared=prepared, max_steps=20, record=1
    )
    assert not found.failed.any() and (found.lengths > 5).all()
    # What is proven of the logits bounds what was found of them.
    assert (found.gains[1] <= policy.certificate().gamma_raw * (1 + 1e-6)).all() and (found.gains[1] > 0).all()
    assert set(np.unique(found.recorded["actions"])) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", ["uniform", "mad_pgd", "sequence_pgd"])
def test_only_what_is_measured_is_perturbed_in_another_packages_environment(kind):
    policy = policy_of(OBSERVED, ACTED)
    found = run_episodes(policy, Modes, kind, [0.0, 0.3], 2, 0, record=2)
    moved = found.recorded["perturbed"] - found.recorded["observations"]
    assert np.abs(moved[:, 1, :, :2]).max() > 0.1 and not moved[..., 2:].any()
    assert (found.returns >= 20 * 11).all() and (found.returns <= 20 * 14).all()
    assert found.recorded["actions"].shape[-1] == 2


def test_a_policy_of_other_choices_does_not_fit():
    policy = policy_of(OBSERVED, spaces.MultiDiscrete([2, 3]))
    with pytest.raises(ShapeError, match=r"MultiDiscrete\(\[2 3\], start=\[4 7\]\).*trained for a MultiDiscrete"):
        run_episodes(policy, Modes, "uniform", [0.0], 1, 0)


def test_where_all_observations_are_choices_noise_and_attacks_are_left_out(tmp_path):
    policy = policy_of(spaces.Discrete(16), spaces.Discrete(4))
    save_policy(policy, tmp_path)
    content = evaluate_run(tmp_path, tasks=["FrozenLake-v1"], sizes=[0, 0.1], episodes=1, seeds=[0])
    assert not content["failures"] and content["rows"][0]["perturbation"] == "none"
    reasons = {one["perturbation"]: one["reason"] for one in content["skipped"]}
    assert "not off by a little" in reasons["uniform"] and "not off by a little" in reasons["mad_pgd (per_step_l2)"]
    assert "needs observations in one Box" in reasons["fault ObservationDelay"]
