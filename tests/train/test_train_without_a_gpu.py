"""Trainings on a CUDA device where there is none: the CPU's weights, and a fixed few waits an update."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from card_cases import actor_of, build_cell, name_of, ppo, there
from cuda_without_one import WAITS, cuda_without_one, moved

from robust_policies.envs.task import load_plant
from robust_policies.files.tensors import read_tensors
from robust_policies.networks import compiled, perceptron
from robust_policies.train import RunFolder, parse_recipe, train
from robust_policies.train.apg.algorithm import AnalyticPolicyGradient
from robust_policies.train.imitation.rollout import Stage
from robust_policies.train.ppo import fused, losses
from robust_policies.train.ppo.policy import RolloutPolicy
from robust_policies.train.recipe.apg import ApgSection
from robust_policies.train.recipe.sections import TaskSection
from robust_policies.train.recurrent_sac.run import RecurrentSacRun
from robust_policies.train.run.job import Job
from robust_policies.train.run.progress import Silent
from robust_policies.train.run.stop import StopRequest

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

# Every step of environments and every gradient step goes on without an answer.
SAC_WAITS = {
    "train/recurrent_sac/algorithm.py:_look nonzero": 1,
    "train/recurrent_sac/algorithm.py:_look tolist": 2,
    "train/recurrent_sac/algorithm.py:update _local_scalar_dense": 1,
    "train/recurrent_sac/algorithm.py:update tolist": 1,
    "train/run/guard.py:in_rollout _local_scalar_dense": 1,
    "train/run/guard.py:in_update _local_scalar_dense": 1,
    "train/run/guard.py:in_weights _local_scalar_dense": 1,
}
SAC_TASK = {"id": "robust_policies/PendulumNoVelocity-v0", "num_envs": 3, "kwargs": {"max_episode_steps": 11}}
SAC_POLICY = {
    **{"cell": "r2dn", "state_size": 4, "features": 4, "hidden_sizes": [4], "gamma": 3.0},
    "critic_kwargs": {"cell": "r2dn", "state_size": 5, "features": 4, "hidden_sizes": [4], "net_arch": [8]},
}
SAC = {
    **{"name": "recurrent_sac", "total_steps": 240, "learning_starts": 30, "batch_size": 4, "train_freq": 10},
    **{"sequence_length": 8, "burn_in": 5, "buffer_size": 150},
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


def test_recurrent_sac_has_the_cpus_gradients_and_waits_a_fixed_few_times_an_update():
    def learnt(device, updates, gradient_steps=1):
        algorithm = {**SAC, "gradient_steps": gradient_steps}
        with ExitStack() as stack:
            recipe = parse_recipe({"task": SAC_TASK, "policy": SAC_POLICY, "algorithm": algorithm}, "test")
            job = Job(recipe, RunFolder("unused"), device, False, Silent(), StopRequest(), 7)
            found = RecurrentSacRun(job, stack).algorithm
            for _ in range(updates):
                WAITS.taken()
                scalars = found.update(0.5)
            assert scalars and all(np.isfinite(value) for value in scalars.values())
            return found

    # The first gradients: Adam makes steps of those that are zero but for rounding.
    expected = learnt("cpu", 2)
    with cuda_without_one() as waits:
        found = learnt("cuda", 2)
        for one, other in zip(found.networks.parameters(), expected.networks.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            assert other.grad is None or torch.allclose(there(one.grad), other.grad, atol=1e-6)
        np.testing.assert_allclose(found.episodes, expected.episodes, rtol=1e-5)
        for gradient_steps in (1, 3):
            found = learnt("cuda", 4, gradient_steps)
            assert waits.taken() == SAC_WAITS
        found.load_tensors({name: value.cpu() for name, value in found.tensors().items()}, begun=True)
        assert all(np.isfinite(value) for value in found.update(0.5).values())


IMITATIONS = {
    "imitation": {"rounds": 2, "updates": 3, "batch_size": 4, "segment": 8, "horizon": 16},
    "gail": {"demonstrations": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1, "total_steps": 64, "graphs": "never"},
}


@pytest.mark.parametrize("name", IMITATIONS)
def test_imitation_ends_with_the_cpus_policy(name, tmp_path):
    recipe = {
        "task": {"id": "robust_policies/DoubleIntegrator-v0", "num_envs": 4, "kwargs": {"max_episode_steps": 16}},
        "policy": {"cell": "r2dn", "state_size": 4, "features": 4, "hidden_sizes": [4], "gamma": 3.0},
        "algorithm": {"name": name, "teacher": "lqg", **IMITATIONS[name]},
        "checkpoints": {"every": 64, "evaluate_every": 64, "evaluate_episodes": 2, "certify_every": 0},
    }
    train(parse_recipe(recipe, "test"), tmp_path / "cpu")
    with cuda_without_one():
        train(parse_recipe(recipe, "test"), tmp_path / "cuda", device="cuda")
    expected, found = (read_tensors(tmp_path / one / "policy.safetensors") for one in ("cpu", "cuda"))
    for part, value in expected.items():
        # A gradient of zero but for rounding makes a step of Adam, of the rate.
        torch.testing.assert_close(found[part], value, rtol=1e-3, atol=1e-2)


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
