"""Every environment against Gymnasium's contract for single ones, and both environment checkers."""

import copy
import inspect
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from env_cases import (
    KIND_IDS,
    MUJOCO_IDS,
    every_id,
    every_kind,
    still_action,
    unexpected,
    why_no_pictures,
    wild_actions,
)
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from robust_policies.envs import ENV_IDS, TaskEnv
from robust_policies.errors import InvalidValueError, UnknownNameError, UserError


@pytest.fixture(autouse=True)
def no_screen(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def test_the_ids_of_every_kind_are_of_every_kind():
    def kind(env_id):
        env = gymnasium.make(env_id).unwrapped
        return env.plant.kind, type(env.action_space)

    assert {kind(env_id) for env_id in KIND_IDS} == {kind(env_id) for env_id in ENV_IDS}


@every_kind
def test_passes_gymnasiums_checker(env_id):
    # Rendering MuJoCo needs OpenGL, which is not this checker's subject.
    blind = env_id in MUJOCO_IDS and why_no_pictures() is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gymnasium.make(env_id, disable_env_checker=True).unwrapped, skip_render_check=blind)
    assert not unexpected(caught)


@every_kind
def test_passes_sb3s_checker(env_id):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sb3_check_env(gymnasium.make(env_id, disable_env_checker=True).unwrapped)
    assert not unexpected(caught)


@every_id
def test_passive_checker_has_nothing_to_say(env_id):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = gymnasium.make(env_id)
        env.reset(seed=0)
        for _ in range(3):
            env.step(env.action_space.sample())
        for _ in range(2):
            env.close()
    assert not unexpected(caught)


@every_id
def test_spec_rebuilds_the_environment(env_id):
    spec = gymnasium.spec(env_id)
    assert spec.namespace == "robust_policies" and spec.version == 0 and not spec.nondeterministic
    env = gymnasium.make(EnvSpec.from_json(spec.to_json()), max_episode_steps=9)
    assert env.spec.id == env_id
    assert pickle.loads(pickle.dumps(spec)) == spec
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.spec == env.spec and again.spec.max_episode_steps == 9
    assert data_equivalence(env.reset(seed=1), again.reset(seed=1), exact=True)


@every_id
def test_spaces_are_sound(env_id):
    env = gymnasium.make(env_id).unwrapped
    observations, actions = env.observation_space, env.action_space
    assert observations.shape == (env.plant.observation_size,) == (len(env.plant.output_names),)
    assert observations.dtype == np.float32 and (observations.low < observations.high).all()
    assert env.state.shape == (env.plant.state_size,) == (len(env.plant.state_names),)
    if isinstance(actions, gymnasium.spaces.Discrete):
        assert actions.n == len(env.plant.discrete_actions) and actions.start == 0
    else:
        assert actions.shape == (env.plant.action_size,) == (len(env.plant.action_names),)
        assert actions.dtype == np.float32 and (actions.low < actions.high).all() and actions.is_bounded()
    assert env.max_episode_steps == env.plant.max_episode_steps > 1
    assert env.metadata["render_fps"] == max(10, round(1.0 / env.plant.time_step))


@every_id
def test_reset_and_step_return_gymnasiums_types(env_id):
    env = gymnasium.make(env_id).unwrapped
    parameters = inspect.signature(env.reset).parameters
    assert set(parameters) == {"seed", "options"}
    assert all(
        parameter.kind is parameter.KEYWORD_ONLY and parameter.default is None for parameter in parameters.values()
    )
    returned = env.reset(seed=3)
    assert isinstance(returned, tuple) and returned[1] == {}
    assert type(returned[0]) is np.ndarray and returned[0].dtype == np.float32 and returned[0] in env.observation_space
    returned = env.step(env.action_space.sample())
    assert isinstance(returned, tuple) and len(returned) == 5
    observation, reward, terminated, truncated, info = returned
    assert type(observation) is np.ndarray and observation in env.observation_space
    assert type(reward) is float and type(terminated) is bool and type(truncated) is bool and info == {}


@every_kind
def test_reset_options_are_used_and_left_alone(env_id):
    env = gymnasium.make(env_id).unwrapped
    env.reset(seed=0, options={})
    for _ in range(3):
        env.step(still_action(env.action_space))
    wanted = env.state
    name = next(iter(env.params))
    value = env.params[name].numpy() * 1.01
    options = {"state": wanted, "parameters": {name: value}}
    before = copy.deepcopy(options)
    env.reset(seed=1, options=options)
    assert data_equivalence(options, before, exact=True)
    # MuJoCo's readings in the state are computed anew from positions and velocities; then all of it stays.
    given = env.plant.layout.physics if env_id in MUJOCO_IDS else len(wanted)
    np.testing.assert_allclose(env.state[:given], wanted[:given], rtol=1e-12, atol=1e-12)
    settled = env.state
    env.reset(options={"state": settled})
    np.testing.assert_allclose(env.state, settled, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(env.params[name].numpy(), value, rtol=0, atol=0)
    held = env.state
    with pytest.raises(UnknownNameError, match="state"):
        env.reset(options={"no_such_option": 1.0})
    assert np.array_equal(env.state, held)


@every_kind
def test_same_seed_same_rollout(env_id):
    first, second = gymnasium.make(env_id), gymnasium.make(env_id)
    assert data_equivalence(first.reset(seed=3), second.reset(seed=3), exact=True)
    for step, action in enumerate(wild_actions(first.action_space, (40,))):
        seen = [first.step(action), second.step(action)]
        assert data_equivalence(*seen, exact=True), step
        assert seen[0][0] in first.observation_space
        if seen[0][2] or seen[0][3]:
            assert data_equivalence(first.reset(), second.reset(), exact=True)


@every_kind
def test_seeds_matter_and_a_reset_without_one_continues_the_generator(env_id):
    env = gymnasium.make(env_id).unwrapped

    def path(seed):
        env.reset(seed=seed)
        return np.concatenate([env.state, *(env.step(still_action(env.action_space))[0] for _ in range(3))])

    first, continued, other = path(5), path(None), path(6)
    assert not np.array_equal(first, other) and not np.array_equal(first, continued)
    assert np.array_equal(first, path(5)) and np.array_equal(continued, path(None))
    assert env.np_random_seed == 5


@every_kind
def test_using_it_before_reset_is_refused(env_id):
    env = gymnasium.make(env_id, render_mode="rgb_array")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(still_action(env.action_space))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.render()
    with pytest.raises(InvalidValueError, match="before reset"):
        env.unwrapped.step(still_action(env.action_space))


@every_kind
def test_bad_actions_are_refused_and_nothing_changes(env_id):
    env = gymnasium.make(env_id).unwrapped
    env.reset(seed=0)
    state, generator = env.state, env.np_random.bit_generator.state
    if isinstance(env.action_space, gymnasium.spaces.Discrete):
        bad = [env.action_space.n, -1, 0.5, [0, 1], None, "left"]
    else:
        size = env.action_space.shape[0]
        bad = [np.full(size, np.nan), np.full(size, np.inf), np.zeros(size + 1), 0.0, np.zeros(size, int), None, "left"]
    for action in bad:
        with pytest.raises(UserError, match=r"action.*expected"):
            env.step(action)
        assert np.array_equal(env.state, state) and env.np_random.bit_generator.state == generator


@every_kind
def test_actions_beyond_the_limits_act_as_the_limits(env_id):
    env, clipped = gymnasium.make(env_id).unwrapped, gymnasium.make(env_id).unwrapped
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        assert wild_actions(space, (9,)).max() < space.n
        return
    env.reset(seed=2)
    clipped.reset(seed=2)
    for action in wild_actions(space, (4,), seed=1) * 2.0:
        expected = clipped.step(np.clip(action, space.low, space.high))
        assert data_equivalence(env.step(action), expected, exact=True)


@every_kind
def test_time_limit_comes_exactly_when_it_is_due(env_id):
    task = gymnasium.spec(env_id).kwargs["task"]
    inside, outside = TaskEnv(task, max_episode_steps=4), gymnasium.make(env_id, max_episode_steps=4)
    for _ in range(2):
        inside.reset(seed=0)
        outside.reset(seed=0)
        for step in range(1, 5):
            action = still_action(inside.action_space)
            flags = inside.step(action)[2:4]
            assert flags == outside.step(action)[2:4] == (False, step == 4)


@every_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["deep", "pickle"])
def test_copies_in_mid_episode_continue_alike(env_id, copied):
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    actions = wild_actions(env.action_space, (5,))
    env.step(still_action(env.action_space))
    other = copied(env)
    for action in actions:
        assert data_equivalence(env.step(action), other.step(action), exact=True)
    assert data_equivalence(env.reset(), other.reset(), exact=True)
    # The copy shares nothing: stepping it leaves the first alone.
    state = env.unwrapped.state
    other.step(actions[0])
    assert np.array_equal(env.unwrapped.state, state)
