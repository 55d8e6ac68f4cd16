"""Trainings on a CUDA device where there is none: the CPU's weights, and a fixed few waits an update."""

import numpy as np
import pytest
import torch
from card_cases import actor_of, build_cell, name_of, ppo, there
from cuda_without_one import cuda_without_one, moved

from robust_policies.envs.task import load_plant
from robust_policies.networks import compiled, perceptron
from robust_policies.train.apg.algorithm import AnalyticPolicyGradient
from robust_policies.train.imitation.rollout import Stage
from robust_policies.train.ppo import fused, losses
from robust_policies.train.ppo.policy import RolloutPolicy
from robust_policies.train.recipe.apg import ApgSection
from robust_policies.train.recipe.sections import TaskSection

# An update asks once, for all minibatches, where episodes begin.
CUT_WAITS = {"train/ppo/buffer.py:find_begins nonzero": 1, "train/ppo/buffer.py:find_begins tolist": 1}
# Of PPO, once an update each: the rollout looked at, its last episodes, the losses looked at, the log.
UPDATE_WAITS = {
    "train/ppo/update.py:summary tolist": 1,
    "train/ppo/episodes.py:ended nonzero": 1,
    "train/ppo/episodes.py:ended tolist": 2,
    "train/run/guard.py:in_rollout _local_scalar_dense": 1,
    "train/run/guard.py:in_update _local_scalar_dense": 1,
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("cell", "critic", "options"),
    [
        ("r2dn", "mlp", {}),
        ("ren", "own", {"normalize_reward": True, "n_epochs": 1}),
        ("lstm", "shared", {"normalize_observation": True, "n_epochs": 3}),
        ("l2ru", "mlp", {"clip_range_vf": 0.2}),
    ],
)
def test_ppo_learns_the_cpus_weights_and_waits_a_fixed_few_times_an_update(cell, critic, options):
    expected = ppo("cpu", cell=cell, critic=critic, **options).learn(240).policy.state_dict()
    with cuda_without_one() as waits:
        model = ppo("cuda", cell=cell, critic=critic, **options)
        assert model.why_numpy is None
        model.learn(120)
        waits.taken()
        model.learn(120, reset_num_timesteps=False)
        assert waits.taken() == UPDATE_WAITS | (CUT_WAITS if cell == "lstm" else {})
        for name, value in model.policy.state_dict().items():
            assert torch.allclose(there(value), expected[name], atol=2e-6)


def test_choices_are_drawn_and_judged_without_a_wait():
    with cuda_without_one() as waits:
        model = ppo("cuda", "cartpole", "r2dn", "mlp", n_epochs=1)
        model.learn(120)
        waits.taken()
        model.learn(120, reset_num_timesteps=False)
        assert waits.taken() == UPDATE_WAITS
        batch = next(iter(next(model.rollout_buffer.minibatches(1))))[0]
        terms = losses.Terms(0.2, None, 0.5, 0.01)
        found = model._tensors.loss(batch, model._tensors.arrays(), terms)
        weights = {name: there(value) for name, value in model.policy.state_dict().items()}
        batch = type(batch)(*(there(one) for one in batch))
    here = ppo("cpu", "cartpole", "r2dn", "mlp")
    here.policy.load_state_dict(weights)
    expected = here._tensors.loss(batch, here._tensors.arrays(), terms)
    for one, other in zip((found[0], *found[1], found[2]), (expected[0], *expected[1], expected[2]), strict=True):
        assert torch.allclose(there(one), other, atol=1e-5)


def test_choices_have_their_probabilities(monkeypatch):
    with cuda_without_one(), torch.no_grad():
        model = ppo("cuda", "cartpole", "r2dn", "mlp")
        acting = model._tensors
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            logits = torch.tensor([[0.0, 1.0]]).expand(20_000, 2)
            rollout = RolloutPolicy(acting, acting.initial_states(20_000), 1)
            monkeypatch.setattr(type(acting.policy.action_net), "forward", lambda self, outputs: moved(logits))
            drawn = there(rollout.act(torch.zeros(20_000, 4, device="cuda"), 0)).float().mean()
    chance = float(torch.sigmoid(torch.tensor(1.0)))
    # Five deviations of a share of 20,000.
    assert abs(float(drawn) - chance) < 5 * (chance * (1 - chance) / 20_000) ** 0.5


def test_kernels_of_the_cpu_are_left_alone(monkeypatch):
    def never(*_, **__):
        raise AssertionError("a kernel of the CPU was asked for")

    for module, name in ((compiled, "_works"), (perceptron, "_kernels"), (losses, "_kernels"), (fused, "_kernels")):
        monkeypatch.setattr(module, name, never)
    with cuda_without_one():
        model = ppo("cuda", n_steps=60, batch_size=None, n_epochs=1)
        model.learn(360)
        assert fused.fused(model._tensors, model.rollout_buffer, 6) is None
        # More steps and rows than the kernels ask for.
        cell = build_cell("r2dn").to("cuda")
        cell(torch.zeros(2, 2000, 3, device="cuda"))[0].sum().backward()


@pytest.mark.parametrize("task", ["pendulum", "quadrotor_planar", "linear"])
def test_analytic_policy_gradients_wait_outside_their_steps(task):
    plant = load_plant(task)

    def counts(horizon):
        settings = ApgSection(total_steps=10**6, value_tail=True, horizon=horizon)
        algorithm = AnalyticPolicyGradient(plant, actor_of(plant).to("cuda"), settings, 6, max_episode_steps=600)
        algorithm.update(1.0)  # constants are carried once
        waits.taken()
        scalars = algorithm.update(1.0)
        assert all(np.isfinite(value) for value in scalars.values())
        assert any(p.grad is not None for p in algorithm.actor.parameters())
        return waits.taken()

    with cuda_without_one() as waits:
        few, many = counts(4), counts(8)
    if plant.terminates:
        # Whether an episode ended is asked in every step.
        place = "train/apg/algorithm.py:rollout _local_scalar_dense"
        assert (few.pop(place), many.pop(place)) == (5, 9)
    assert few == many and max(few.values()) <= 4


def test_imitation_carries_its_choices_at_once():
    stage = dict(id="robust_policies/DoubleIntegrator-v0", num_envs=4, kwargs={"max_episode_steps": 20})

    class Teacher:
        def act(self, observation, taught, starts):
            return torch.zeros(len(observation), 1, device=observation.device), lambda action: action

    with cuda_without_one() as waits:
        here = Stage(TaskSection(**stage), 4, "cuda")
        plant = load_plant(name_of("DoubleIntegrator"))
        waits.taken()
        found = here.play(0, 12, Teacher(), actor_of(plant).to("cuda"), 0.5)
        counted = waits.taken()
        here.close()
        assert there(found.actions).shape == (12, 4, 1)
    assert counted.pop("envs/arguments.py:_continuous _local_scalar_dense") == 12
    assert not any(place.startswith("train/imitation/rollout.py") and count > 1 for place, count in counted.items())
