"""Recurrent SAC: sequences with stored states, the density of its actions, and the policy that is kept."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from lbdn_chain import chain

from robust_policies import runtime
from robust_policies.certificates import verify, verify_layers
from robust_policies.envs import make_sb3_vec_env
from robust_policies.errors import UserError
from robust_policies.networks import LBDN
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


def learner_of(recipe, stack):
    return RecurrentSacRun(Job(recipe, RunFolder("unused"), "cpu", False, Silent(), StopRequest(), 7), stack)


@pytest.fixture
def learner():
    with ExitStack() as stack:
        yield learner_of(recipe_of(), stack)


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


def test_where_new_episodes_begin_after_an_interruption_the_last_step_has_no_successor(learner):
    algorithm = learner.algorithm
    for _ in range(7):
        algorithm._step()
    tensors = algorithm.tensors()
    assert not bool(tensors["replay.ended"].any())
    algorithm.load_tensors(tensors, begun=False)
    assert algorithm.replay.arrays["ended"].any(1).nonzero().flatten().tolist() == [6]
    assert not bool(algorithm.replay.arrays["terminated"].any())
    algorithm.load_tensors({**tensors, "replay.ended": torch.zeros(7, 3, dtype=torch.bool)}, begun=True)
    assert not bool(algorithm.replay.arrays["ended"].any())


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


CELL = {"cell": "r2dn", "state_size": 4, "features": 4, "hidden_sizes": [4], "gamma": 1.5, "output_size": 3}
HEADS = {"cell": "lbdn", "gamma": 2.0, "hidden_sizes": [8, 6]}


def q_of(critic, observed, actions):
    """Return both Qs (2, time, batch) of observations (time, batch, 2) and actions (time + 1, batch, 1)."""
    state = critic.body.cell.initial_state(observed.shape[1])
    return critic.value(critic.features(observed, actions[:-1], state, None)[0], actions[1:])


def distance(before, after):
    """Return how far sequences (..., time, batch, n) lie apart, (..., batch)."""
    return (before - after).square().sum((-3, -1)).sqrt()


def sequence_gain(critic, *, seed=0):
    """Return the largest gain from sequences of scaled observations and actions to those of a Q that ascent finds."""
    generator = torch.Generator().manual_seed(seed)
    observed, actions = (2 * torch.randn(30 + i, 16, 2 - i, generator=generator) for i in (0, 1))
    others = [(one + 0.5 * torch.randn(one.shape, generator=generator)).requires_grad_() for one in (observed, actions)]
    optimizer = torch.optim.Adam(others, 3e-2)
    best = 0.0
    for _ in range(60):
        apart = (distance(observed, others[0]).square() + distance(actions, others[1]).square()).sqrt()
        gains = distance(*(q_of(critic, *pair).unsqueeze(-1) for pair in ((observed, actions), others))) / apart
        best = max(best, float(gains.detach().max()))
        optimizer.zero_grad()
        (-gains.sum()).backward()
        optimizer.step()
    return best


def after_updates(critic, cell):
    """Return the networks of a training whose steps are long."""
    settings = {"learning_rate": 3e-2, "max_grad_norm": 1e6, "tau": 0.5, "discount": 0.9, "gradient_steps": 4}
    with ExitStack() as stack:
        learner = learner_of(recipe_of(policy={"critic": critic, "critic_kwargs": cell}, algorithm=settings), stack)
        for _ in range(9):
            learner.update(Progress())
        return learner.networks


def test_critics_of_bounded_gain_keep_it_at_a_step_and_over_time():
    networks = after_updates(HEADS, CELL)
    bound = HEADS["gamma"] * (1.0 + CELL["gamma"] ** 2) ** 0.5
    for critic in (networks.critic, networks.target):
        assert verify(critic.body.cell.double_copy()).gamma <= CELL["gamma"] * (1 + 1e-6)
        assert sequence_gain(critic) <= bound
        read = 3 * torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            values = critic.value(read[:, :5], read[:, 5:]).unsqueeze(-1)
        assert (torch.cdist(values, values) <= HEADS["gamma"] * torch.cdist(read, read) + 1e-5).all()
        assert values.std() > 0.1
        for one in critic.twins.both:
            assert isinstance(one, LBDN) and one.hidden_sizes == (8, 6)
            assert verify_layers(chain(one), "relu").gamma <= HEADS["gamma"] * (1 + 1e-6)
    first, second = networks.critic.twins.both
    assert not torch.equal(first.layers[0].XY, second.layers[0].XY)


def test_the_search_finds_more_than_that_bound_of_a_free_critic():
    critic = after_updates("own", {**CELL, "net_arch": [8, 6]}).critic
    assert sequence_gain(critic) > HEADS["gamma"] * (1.0 + CELL["gamma"] ** 2) ** 0.5


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
        ({}, {"critic": "mlp"}, {}, "expected own, or {cell: lbdn"),
        ({}, {"critic": {"cell": "lbdn", "gamma": 2.0}}, {}, "hidden_sizes of its own; expected none"),
        ({}, {"critic": {"cell": "lbdn", "gamma": 0.0}}, {}, "greater than 0"),
        ({}, {"critic": {"cell": "lbdn", "gamma": 2.0, "activation": "rleu"}, "critic_kwargs": {}}, {}, "softsign"),
        ({}, {"window": 4}, {}, "keep a state"),
        ({}, {}, {"buffer_size": 40}, "at least 42"),
        ({}, {}, {"burnin": 3}, r"Did you mean 'algorithm\.burn_in'"),
        ({}, {"critic_kwargs": {"net_arch": [0]}}, {}, "widths"),
        ({}, {"critic_kwargs": {"net_arch": None}}, {}, "widths"),
        ({}, {"critic_kwargs": {"cell": ["gru"]}}, {}, "expected a name such as gru"),
        ({}, {"critic_kwargs": {"input_size": 3}}, {}, r"expected no policy\.critic_kwargs\.input_size"),
        ({}, {"cell_options": {"output_size": 3}}, {}, r"expected no policy\.cell_options\.output_size"),
        ({}, {}, {"target_entropy": "autoo"}, "'autoo'; expected a finite number or auto"),
        ({"id": "robust_policies/CartPole-v0"}, {}, {}, "expected a Box"),
        ({}, {"critic_kwargs": {"cell": "gro"}}, {}, "Did you mean 'gru'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(task, policy, algorithm, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train(recipe_of(task, policy, algorithm), tmp_path / "run")
    assert not (tmp_path / "run").exists()
