import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from policy_models import SMALL, ShortEpisodes, randomize, short_model
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.env_util import make_vec_env

from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError, UserError
from robust_policies.policies import RecurrentCellPolicy

CRITICS = ("own", "shared", "mlp")


def rollout(model):
    """Fill the model's rollout buffer with its present policy; return the buffer."""
    _, callback = model._setup_learn(10**6)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model.rollout_buffer


@pytest.mark.parametrize("cell", sorted(SMALL))
@pytest.mark.parametrize("critic", CRITICS)
def test_sequences_that_cross_resets_equal_steps_one_by_one(cell, critic):
    policy = randomize(short_model(cell, critic=critic).policy.double())
    torch.manual_seed(1)
    n, time, width = 3, 17, policy.lstm_hidden_state_shape[2]
    observations = torch.randn(n, time, 3, dtype=torch.float64).float()
    actions = torch.randn(n, time, 2, dtype=torch.float64)
    starts = (torch.rand(n, time) < 0.25).float()
    first = torch.randn(1, n, width, dtype=torch.float64)
    states = RNNStates((first, first), (first, first))
    values, log_prob, _ = policy.evaluate_actions(
        observations.flatten(0, 1), actions.flatten(0, 1), states, starts.flatten()
    )
    assert starts[:, 1:].any()
    for t in range(time):
        value, step_log_prob, _ = policy.evaluate_actions(observations[:, t], actions[:, t], states, starts[:, t])
        torch.testing.assert_close(value.flatten(), values.reshape(n, time)[:, t], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(step_log_prob, log_prob.reshape(n, time)[:, t], rtol=1e-10, atol=1e-10)
        with torch.no_grad():
            _, _, _, states = policy(observations[:, t], states, starts[:, t])


@pytest.mark.parametrize("cell", sorted(SMALL))
@pytest.mark.parametrize("critic", CRITICS)
def test_the_ratio_of_the_first_epoch_is_one(cell, critic):
    model = short_model(cell, critic=critic)
    randomize(model.policy, 0.3)
    buffer = rollout(model)
    assert buffer.episode_starts[1:].any()
    model.policy.set_training_mode(True)
    seen = 0
    for batch in buffer.get(20):
        values, log_prob, _ = model.policy.evaluate_actions(
            batch.observations, batch.actions, batch.lstm_states, batch.episode_starts
        )
        mask = batch.mask > 1e-8
        ratio = torch.exp(log_prob - batch.old_log_prob)[mask]
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values.flatten()[mask], batch.old_values[mask], rtol=1e-4, atol=1e-4)
        seen += int(mask.sum())
    assert seen == model.n_steps * model.n_envs


@pytest.mark.parametrize("cell", sorted(SMALL))
def test_predict_over_episodes_gives_the_actions_of_the_sequence(cell):
    policy = randomize(short_model(cell).policy)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(12, 3, 3)).astype(np.float32)
    starts = rng.random((12, 3)) < 0.3
    state, actions = None, []
    for t in range(12):
        action, state = policy.predict(observations[t], state, starts[t], deterministic=True)
        actions.append(action)
    with torch.no_grad():
        means, _ = policy.actor(torch.as_tensor(observations), None, torch.as_tensor(starts))
    np.testing.assert_allclose(np.stack(actions), means.clamp(-1, 1).numpy(), rtol=1e-5, atol=1e-5)


def test_the_explicit_arrays_follow_optimizer_steps_loads_and_moves():
    model = short_model("r2dn")
    policy = model.policy
    randomize(policy)
    observation = torch.randn(3, 3)
    states = model._last_lstm_states.pi

    def mean():
        with torch.no_grad():
            return policy.get_distribution(observation, states, torch.zeros(3))[0].distribution.mean.clone()

    def fresh():
        clone = copy.deepcopy(policy)
        assert clone.lstm_actor._cached is None
        with torch.no_grad():
            return clone.get_distribution(observation, states, torch.zeros(3))[0].distribution.mean

    before, stored = mean(), copy.deepcopy(policy.state_dict())
    with torch.no_grad():
        assert policy.lstm_actor.explicit() is policy.lstm_actor.explicit()
    assert torch.equal(before, fresh())
    loss = policy.evaluate_actions(observation, torch.ones(3, 2), model._last_lstm_states, torch.zeros(3))[1].sum()
    loss.backward()
    policy.optimizer.step()
    after = mean()
    assert torch.equal(after, fresh()) and not torch.equal(after, before)
    policy.load_state_dict(stored)
    assert torch.equal(mean(), before)
    torch.nn.Module.load_state_dict(policy, {k: v.clone() + 0.1 for k, v in stored.items()}, assign=True)
    assert torch.equal(mean(), fresh()) and not torch.equal(mean(), before)
    policy.load_state_dict(stored)
    assert torch.equal(mean(), before)
    for parameter in policy.lstm_actor.cell.parameters():
        parameter.data += 0.1
    policy.set_training_mode(True)
    policy.set_training_mode(False)
    assert torch.equal(mean(), fresh()) and not torch.equal(mean(), before)


def test_the_first_mean_action_is_zero_and_the_gradient_is_not():
    policy = short_model("r2dn", env=make_vec_env(ShortEpisodes, 2)).policy
    states = tuple(torch.zeros(1, 4, 4) for _ in range(2))
    distribution, _ = policy.get_distribution(torch.randn(4, 3), states, torch.zeros(4))
    assert float(distribution.distribution.mean.detach().abs().max()) == 0.0
    distribution.distribution.mean.sum().backward()
    assert max(float(p.grad.abs().max()) for p in policy.lstm_actor.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("cell", sorted(SMALL))
def test_what_sb3_initialises_orthogonally_holds_no_module_of_a_cell(cell):
    policy = short_model(cell, ortho_init=True).policy
    reached = []
    for module in (policy.features_extractor, policy.mlp_extractor, policy.action_net, policy.value_net):
        module.apply(reached.append)
    cells = {*policy.lstm_actor.cell.modules(), *policy.lstm_critic.cell.modules()}
    assert reached and not cells & set(reached)


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.Box(-1.0, 1.0, (2, 2))],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("critic", CRITICS)
def test_every_action_space_trains(space, critic):
    model = short_model(env=make_vec_env(lambda: ShortEpisodes(space), 2), critic=critic).learn(100)
    for deterministic in (True, False):
        action, _ = model.predict(np.zeros(3, np.float32), deterministic=deterministic)
        assert space.contains(np.asarray(action, dtype=space.dtype).reshape(space.shape))


def test_observation_scale_offset_and_action_scale_act_as_documented():
    plain = short_model("r2dn", zero_init=False).policy
    scaled = short_model(
        "r2dn",
        zero_init=False,
        observation_scale=[2.0, 4.0, 8.0],
        observation_offset=[1.0, 0.0, -1.0],
        action_scale=3.0,
    ).policy
    scaled.lstm_actor.cell.load_state_dict(plain.lstm_actor.cell.state_dict())
    inputs = torch.randn(5, 2, 3)
    raw = inputs * torch.tensor([2.0, 4.0, 8.0]) + torch.tensor([1.0, 0.0, -1.0])
    torch.testing.assert_close(scaled.actor(raw)[0], 3.0 * plain.actor(inputs)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"critic": "owm"}, UnknownNameError, "own"),
        ({"lstm_hidden_size": 3}, InvalidValueError, "cell_kwargs"),
        ({"observation_scalr": 3}, UnknownNameError, "observation_scale"),
        ({"observation_scale": [1.0, 2.0]}, ShapeError, r"\(3\)"),
        ({"observation_scale": [1.0, 0.0, 1.0]}, InvalidValueError, "positive"),
        ({"action_scale": "wide"}, UserError, "action_scale"),
        ({"cell_output_size": 0}, InvalidValueError, "cell_output_size"),
        ({"net_arch": {"pi": [3], "vf": []}}, InvalidValueError, "pi"),
        ({"net_arch": {"q": [3]}}, UnknownNameError, "vf"),
        ({"critic": "mlp", "critic_kwargs": {"state_size": 3}}, InvalidValueError, "net_arch"),
        ({"critic": "shared", "share_features_extractor": False}, InvalidValueError, "share_features_extractor"),
        ({"cell_kwargs": {"state_sise": 3}}, UserError, "state_size"),
        ({"critic_kwargs": {"output_size": -1}}, InvalidValueError, "output_size"),
    ],
)
def test_wrong_options_say_what_would_be_right(options, error, words):
    with pytest.raises(error, match=words):
        short_model(**options)
    with pytest.raises(UnknownNameError, match="r2dn"):
        RecurrentPPO(RecurrentCellPolicy, "Pendulum-v1", policy_kwargs={"cell": "r2dm"})


def test_the_critic_may_be_another_cell_of_another_size():
    model = short_model("r2dn", critic_kwargs={"cell": "gru", "state_size": 11, "output_size": 7}).learn(72)
    assert model.policy.lstm_critic.cell.name == "gru"
    assert model.policy.lstm_hidden_state_shape == (1, 1, 11)
    assert model.predict(np.zeros(3))[1][0].shape == (1, 1, 11)
