"""The single environment: bad input, copies, and its random numbers."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest

from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError

PENDULUM = "robust_policies/Pendulum-v0"
# One with noise in every step, one without. What holds for every id is in tests/conformance.
IDS = (PENDULUM, "robust_policies/Linear-v0")


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_continue_alike(env_id, copied):
    env = gymnasium.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.ones(1, np.float32))
    env.render()
    other = copied(env)
    for _ in range(5):
        first, second = env.step(np.ones(1, np.float32)), other.step(np.ones(1, np.float32))
        assert np.array_equal(first[0], second[0]) and first[1:] == second[1:]
    assert np.array_equal(env.reset()[0], other.reset()[0])
    assert other.render().shape == (480, 480, 3)


@pytest.mark.parametrize("env_id", IDS)
def test_a_generator_put_in_by_hand_is_used(env_id):
    env = gymnasium.make(env_id).unwrapped
    env.np_random = np.random.default_rng(77)
    first = env.reset()[0]
    second = env.reset(seed=77)[0]
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (np.zeros(2), ShapeError, r"action has shape \(2,\); expected \(1\)"),
        (np.float32(0.0), ShapeError, r"shape \(\)"),
        (np.array([1]), ShapeError, "dtype int64"),
        (np.array([np.nan]), NonFiniteError, "NaN"),
    ],
)
@pytest.mark.parametrize("env_id", IDS)
def test_bad_actions_are_refused_and_nothing_changes(env_id, action, error, message):
    env = gymnasium.make(env_id).unwrapped
    env.reset(seed=0)
    state, generator = env.state, env.np_random.bit_generator.state
    with pytest.raises(error, match=message):
        env.step(action)
    assert np.array_equal(env.state, state) and env.np_random.bit_generator.state == generator


def test_bad_resets_are_refused_and_nothing_changes():
    env = gymnasium.make(PENDULUM).unwrapped
    env.reset(seed=0)
    state, generator = env.state, env.np_random.bit_generator.state
    for arguments in (
        {"seed": -1},
        {"seed": 1, "options": {"x_init": np.nan}},
        {"seed": 1, "options": {"state": [0.0]}},
        {"options": {"reset_mask": np.ones(1, bool)}},
        {"options": {"y": 1}},
    ):
        with pytest.raises(ValueError, match=r"expected|Known|leave"):
            env.reset(**arguments)
        assert np.array_equal(env.state, state) and env.np_random.bit_generator.state == generator
    with pytest.raises(InvalidValueError, match="finite"):
        env.state = [np.inf, 0.0]


def test_the_state_can_be_read_and_set():
    env = gymnasium.make(PENDULUM).unwrapped
    observation, _ = env.reset(seed=0, options={"state": [0.5, -1.0]})
    np.testing.assert_allclose(observation, [np.cos(0.5), np.sin(0.5), -1.0], atol=1e-7)
    env.state = [0.0, 0.0]
    assert np.array_equal(env.state, [0.0, 0.0])
    _, reward, *_ = env.step(np.zeros(1, np.float32))
    assert reward == 0.0
