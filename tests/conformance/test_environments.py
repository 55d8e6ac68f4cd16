"""Every environment against Gymnasium's contract for single ones, and both environment checkers."""

import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from robust_policies.envs import ENV_IDS

# What both checkers say of Pendulum-v1 too: an action space that is not [-1, 1], an unbounded observation.
EXPECTED = ("symmetric and normalized", "minimum value is -infinity", "maximum value is infinity", "symmetric")


@pytest.fixture(autouse=True)
def no_screen(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("checker", [check_env, sb3_check_env], ids=["gymnasium", "sb3"])
def test_passes_the_checker(env_id, checker):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checker(gymnasium.make(env_id, disable_env_checker=True).unwrapped)
    said = [str(warning.message) for warning in caught if "pkg_resources" not in str(warning.message)]
    assert not [text for text in said if not any(part in text for part in EXPECTED)]


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_spec_rebuilds_the_environment(env_id):
    spec = gymnasium.spec(env_id)
    assert spec.namespace == "robust_policies" and spec.version == 0
    rebuilt = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert rebuilt.spec.id == env_id
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_same_seed_same_rollout(env_id):
    first, second = gymnasium.make(env_id), gymnasium.make(env_id)
    seen = [first.reset(seed=3), second.reset(seed=3)]
    assert data_equivalence(*seen, exact=True)
    first.action_space.seed(0)
    for step in range(250):
        action = first.action_space.sample()
        seen = [first.step(action), second.step(action)]
        assert data_equivalence(*seen, exact=True), step
        observation, reward, terminated, truncated, _ = seen[0]
        assert observation in first.observation_space
        assert isinstance(reward, float) and isinstance(terminated, bool) and isinstance(truncated, bool)
        if terminated or truncated:
            assert data_equivalence(first.reset(), second.reset(), exact=True)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_stepping_before_reset_is_refused(env_id):
    with pytest.raises(gymnasium.error.ResetNeeded):
        gymnasium.make(env_id).step(np.zeros(1, np.float32))


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("mode", ["rgb_array", "human"])
def test_renders_in_every_mode(env_id, mode):
    env = gymnasium.make(env_id, render_mode=mode)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    picture = env.render()
    assert (picture is None) if mode == "human" else (picture.dtype == np.uint8 and picture.ndim == 3)
    env.close()
    env.close()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_gymnasiums_wrappers_work(env_id):
    env = gymnasium.make(env_id, max_episode_steps=7)
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.wrappers.RescaleAction(env, -1.0, 1.0))
    env = gymnasium.wrappers.FrameStackObservation(gymnasium.wrappers.TimeAwareObservation(env), 3)
    env.reset(seed=0)
    for _ in range(7):
        *_, truncated, info = env.step(env.action_space.sample())
    assert truncated and info["episode"]["l"] == 7
