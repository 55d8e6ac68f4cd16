"""Attacks and smoothing on a CUDA device where there is none."""

import numpy as np
import pytest
import torch
from card_cases import actor_of
from cuda_without_one import cuda_without_one
from gymnasium import spaces

from robust_policies.envs.task import load_plant
from robust_policies.evaluation.attacks import ATTACKS, prepare_attack
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.policies import DeployedPolicy, smoothed_return


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def policy_of(seed=0):
    torch.manual_seed(seed)
    limit = np.array([1.0, 1.0, 8.0], np.float32)
    actor = actor_of(load_plant("pendulum"), 1.0)
    return DeployedPolicy(actor, spaces.Box(-limit, limit), spaces.Box(-2.0, 2.0, (1,)))


OPTIONS = {
    "random": {},
    "mad_pgd": {"steps": 2},
    "critic_pgd": {"steps": 2, "updates": 3, "width": 4},
    "sequence_pgd": {"steps": 2, "window": 6, "replan": 3},
    "closed_loop_pgd": {"steps": 2, "window": 6, "replan": 3},
    "learned": {"train_steps": 64, "num_envs": 4, "rollout": 8, "state_size": 4},
    "transfer": {"attack": "mad_pgd", "options": {"steps": 2}},
}


def attacked(name, device):
    """Return two episodes of eight steps under an attack, prepared on another seed where it has to be."""
    torch.manual_seed(0)
    policy, task, norm = policy_of().to(device), "robust_policies/Pendulum-v0", "per_step_l2"
    options = OPTIONS[name] | ({"policy": policy_of(1).to(device)} if name == "transfer" else {})
    prepared = prepare_attack(name, policy, task, norm, options, [9], sizes=[0.3], episodes=2, max_steps=8)
    return run_episodes(
        policy, task, name, [0.3], 2, 3, norm=norm, options=options, prepared=prepared, max_steps=8, record=2
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_finds_on_the_card_what_it_finds_on_the_cpu_within_its_budget(name):
    expected = attacked(name, "cpu")
    with cuda_without_one():
        found = attacked(name, "cuda")
    shift = found.recorded["perturbed"].astype(np.float64) - found.recorded["observations"].astype(np.float64)
    assert 0 < np.linalg.norm(shift, axis=-1).max() <= 0.3 * (1 + 1e-6) and not found.failed.any()
    np.testing.assert_allclose(found.recorded["perturbed"], expected.recorded["perturbed"], atol=1e-5)
    np.testing.assert_allclose(found.returns, expected.returns, rtol=1e-5)


def test_smoothing_gives_the_cpus_returns():
    options = {"sigma": 0.1, "sizes": [0.05], "episodes": 100, "confidence": 0.9, "max_steps": 6}
    here = smoothed_return(policy_of(), "robust_policies/Pendulum-v0", **options)
    with cuda_without_one():
        card = smoothed_return(policy_of().to("cuda"), "robust_policies/Pendulum-v0", **options)
    assert card.smoothed == pytest.approx(here.smoothed, abs=1e-4)
    assert card.nominal == pytest.approx(here.nominal, abs=1e-4)
