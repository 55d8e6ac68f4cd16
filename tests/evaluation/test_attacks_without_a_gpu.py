"""Attacks and smoothing on a CUDA device where there is none."""

import numpy as np
import pytest
import torch
from card_cases import actor_of
from cuda_without_one import cuda_without_one
from gymnasium import spaces

from robust_policies.envs.task import load_plant
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
    "mad_pgd": {"steps": 2},
    "sequence_pgd": {"steps": 2, "window": 6, "replan": 3},
    "closed_loop_pgd": {"steps": 2, "window": 6, "replan": 3},
}


@pytest.mark.parametrize("attack", OPTIONS)
def test_attacks_search_on_the_card_within_their_budget(attack):
    with cuda_without_one():
        found = run_episodes(
            policy_of().to("cuda"), "robust_policies/Pendulum-v0", attack, [0.3], 2, 3,
            norm="per_step_l2", options=OPTIONS[attack], max_steps=8, record=2,
        )  # fmt: skip
    shift = found.recorded["perturbed"].astype(np.float64) - found.recorded["observations"].astype(np.float64)
    assert 0 < np.linalg.norm(shift, axis=-1).max() <= 0.3 * (1 + 1e-6) and not found.failed.any()


def test_smoothing_gives_the_cpus_returns():
    options = {"sigma": 0.1, "sizes": [0.05], "episodes": 100, "confidence": 0.9, "max_steps": 6}
    here = smoothed_return(policy_of(), "robust_policies/Pendulum-v0", **options)
    with cuda_without_one():
        card = smoothed_return(policy_of().to("cuda"), "robust_policies/Pendulum-v0", **options)
    assert card.smoothed == pytest.approx(here.smoothed, abs=1e-4)
    assert card.nominal == pytest.approx(here.nominal, abs=1e-4)
