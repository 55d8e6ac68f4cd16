"""Recurrent SAC: sequences with stored states, the density of its actions, and the policy that is kept."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from robust_policies import runtime
from robust_policies.envs import make_sb3_vec_env
from robust_policies.errors import UserError
from robust_policies.policies import load_policy
from robust_policies.train import RunFolder, parse_recipe, train
from robust_policies.train.recurrent_sac.networks import Twins
from robust_policies.train.recurrent_sac.replay import SequenceReplay
from robust_policies.train.recurrent_sac.run import RecurrentSacRun
from robust_policies.train.run.checkpoints import Progress
from robust_policies.train.run.job import Job
from robust_policies.train.run.progress import Silent
from robust_policies.train.run.stop import StopRequest

TASK = {"id": "robust_policies/PendulumNoVelocity-v0", "num_envs": 3, "kwargs": {"max_episode_steps": 11}}
POLICY = {
    **{"cell": "r2dn", "state_size": 4, "features": 4, "hidden_sizes": [4], "gamma": 3.0},
    "critic_kwargs": {"state_size": 5, "net_arch": [8]},
}
ALGORITHM = {
    **{"name": "recurrent_sac", "total_steps": 240, "learning_starts": 60, "batch_size": 4, "train_freq": 10},
    **{"sequence_length": 8, "burn_in": 5, "gradient_steps": 2, "buffer_size": 150},
}
SHORT = {"every": 1000, "evaluate_every": 120, "evaluate_episodes": 2, "certify_every": 0}


def recipe_of(task=None, policy=None, algorithm=None):
    data = {"task": {**TASK, **(task or {})}, "policy": {**POLICY, **(policy or {})}, "checkpoints": SHORT}
    return parse_recipe({**data, "algorithm": {**ALGORITHM, **(algorithm or {})}}, "test")


@pytest.fixture
def learner():
    with ExitStack() as stack:
        job = Job(recipe_of(), RunFolder("unused"), "cpu", False, Silent(), StopRequest(), 7)
        yield RecurrentSacRun(job, stack)


def test_sequences_are_consecutive_steps_of_one_environment():
    replay = SequenceReplay(10, {"at": (2,)}, set(), 3, torch.device("cpu"))
    for step in range(23):
        replay.add(at=torch.tensor([[step, env] for env in range(3)], dtype=torch.float32))
    found = replay.sample(500, 4, torch.Generator().manual_seed(0))["at"]
    assert found.shape == (4, 500, 2)
    assert bool((found[1:, :, 0] - found[:-1, :, 0] == 1).all())
    assert bool((found[:, :, 1] == found[0, :, 1]).all())
    # The last ten, and every place a sequence can begin.
    assert set(found[0, :, 0].tolist()) == set(range(13, 20))


def test_the_density_is_that_of_the_squashed_action(learner):
    actor = learner.networks.actor
    outputs, noise = torch.randn(7, 2, 1), torch.randn(7, 2, 1)
    action, density = actor.sample(outputs, noise)
    normal = torch.distributions.Normal(outputs, actor.log_std.exp())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    torch.testing.assert_close(density, squashed.log_prob(action).sum(-1), rtol=1e-4, atol=1e-4)


def test_with_the_weights_of_then_the_burn_in_leads_to_the_stored_states(learner):
    algorithm = learner.algorithm
    for _ in range(30):
        algorithm._step()
    burnt = algorithm.settings.burn_in
    seen = algorithm.replay.sample(32, algorithm.settings.rows, torch.Generator().manual_seed(0))
    # Episodes of 11 steps: some end within the burn-in.
    assert bool(seen["start"][1:burnt].any())
    found = algorithm._burnt_in(seen, seen["start"])
    for name in ("actor", "critic"):
        begun = seen["start"][burnt].unsqueeze(-1)
        torch.testing.assert_close(found[name].masked_fill(begun, 0.0), seen[name][burnt], rtol=1e-5, atol=1e-6)


def test_two_critics_in_one_product_are_two_perceptrons():
    twins, inputs = Twins(3, [5, 4]), torch.randn(7, 2, 3)
    for i in range(2):
        values = inputs
        for weight, bias in zip(twins.weights, twins.biases, strict=True):
            values = torch.nn.functional.linear(
                values.relu() if weight is not twins.weights[0] else values, weight[i].T, bias[i, 0]
            )
        torch.testing.assert_close(twins(inputs)[i], values.squeeze(-1))
    assert not torch.equal(twins(inputs)[0], twins(inputs)[1])


def test_an_update_changes_what_it_should(learner):
    progress = Progress()
    before = {name: value.clone() for name, value in learner.networks.state_dict().items()}
    assert "train/critic_loss" not in learner.update(progress)
    assert all(torch.equal(before[name], value) for name, value in learner.networks.state_dict().items())
    learner.update(progress)
    found = learner.update(progress)
    assert {"train/critic_loss", "train/actor_loss", "train/ent_coef", "train/ent_coef_loss"} <= set(found)
    after = learner.networks.state_dict()
    moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(before[name], value)}
    assert moved == {"actor", "critic", "target", "log_weight"}
    tau = learner.recipe.algorithm.tau
    name = "twins.weights.0"
    first = (after[f"target.{name}"] - before[f"target.{name}"]).abs().max()
    assert 0 < first <= 2 * tau * (after[f"critic.{name}"] - before[f"critic.{name}"]).abs().max() + 1e-6


@pytest.mark.parametrize("outputs", [None, 4])
def test_the_policy_that_is_kept_keeps_its_state_and_its_gain(outputs, tmp_path):
    train(recipe_of(policy={"cell_output_size": outputs, "observation_scale": [1.0, 0.5]}), tmp_path)
    kept, light = load_policy(tmp_path), runtime.load(tmp_path)
    certificate = kept.certificate()
    assert certificate.status == "PASS"
    if outputs is None:
        # The cell's gain, times the torque limit, over the smaller scale.
        assert certificate.gamma_raw <= 3.0 * 2.0 / 0.5 * (1 + 1e-6)
    env, state, other = make_sb3_vec_env(TASK["id"], 2, 0), None, None
    observation = env.reset()
    for _ in range(6):
        action, state = kept.predict(observation, state)
        same, other = light.predict(observation, other)
        np.testing.assert_allclose(action, same, atol=2e-6)
        observation = env.step(action)[0]
    assert state.shape == (2, 4)
    assert np.abs(state).max() > 0


def test_other_packages_environments_are_stepped_in_numpy(tmp_path):
    task = {"id": "Pendulum-v1", "kwargs": {"max_episode_steps": 11}, "num_envs": 2}
    recipe = recipe_of(task, {"cell": "gru", "features": None, "hidden_sizes": None, "gamma": None})
    assert train(recipe, tmp_path / "run").num_timesteps == 240


@pytest.mark.parametrize(
    ("task", "policy", "algorithm", "words"),
    [
        ({}, {"critic": "mlp"}, {}, "expected own"),
        ({}, {"window": 4}, {}, "keep a state"),
        ({}, {}, {"buffer_size": 40}, "at least 42"),
        ({}, {}, {"burnin": 3}, r"Did you mean 'algorithm\.burn_in'"),
        ({}, {"critic_kwargs": {"net_arch": [0]}}, {}, "widths"),
        ({"id": "robust_policies/CartPole-v0"}, {}, {}, "expected a Box"),
        ({}, {"critic_kwargs": {"cell": "gro"}}, {}, "Did you mean 'gru'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(task, policy, algorithm, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train(recipe_of(task, policy, algorithm), tmp_path / "run")
    assert not (tmp_path / "run").exists()
