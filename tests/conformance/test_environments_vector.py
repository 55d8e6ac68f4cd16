"""Every environment in every autoreset mode against Gymnasium's contract for vectorized ones.

The oracle is Gymnasium's own SyncVectorEnv of our single environment: both are run side by side.
"""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from robust_policies.envs import ENV_IDS

MODES = list(AutoresetMode)
STEPS = 12


def ours(env_id, mode, count=3, **kwargs):
    return gymnasium.make_vec(env_id, num_envs=count, autoreset_mode=mode, max_episode_steps=STEPS, **kwargs)


def theirs(env_id, mode, count=3):
    return gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.make(env_id, max_episode_steps=STEPS) for _ in range(count)], autoreset_mode=mode
    )


def close(tensor, array):
    np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("mode", MODES)
def test_attributes(env_id, mode):
    env = ours(env_id, mode)
    assert isinstance(env, gymnasium.vector.VectorEnv)
    assert env.metadata["autoreset_mode"] is mode
    assert env.spec.id == env_id and env.num_envs == 3 and not env.closed
    assert env.observation_space == batch_space(env.single_observation_space, 3)
    assert env.action_space == batch_space(env.single_action_space, 3)
    single = gymnasium.make(env_id)
    assert env.single_observation_space == single.observation_space
    assert env.single_action_space == single.action_space
    assert repr(env) == f"TorchVectorEnv({env_id}, num_envs=3)"
    env.close()
    assert env.closed


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("mode", MODES)
def test_same_as_gymnasiums_vector_of_the_single_environment(env_id, mode):
    mine, oracle = ours(env_id, mode), theirs(env_id, mode)
    oracle.action_space.seed(0)
    observation, info = mine.reset(seed=123)
    expected, _ = oracle.reset(seed=123)
    close(observation, expected)
    assert info == {} and mine.np_random_seed == oracle.np_random_seed
    for step in range(3 * STEPS):
        # The first environment is reset early, so that the episodes do not all end together.
        if step == 5:
            mask = np.array([True, False, False])
            close(mine.reset(options={"reset_mask": mask})[0], oracle.reset(options={"reset_mask": mask})[0])
        actions = oracle.action_space.sample()
        observation, reward, terminated, truncated, info = mine.step(torch.as_tensor(actions))
        expected = oracle.step(actions)
        close(observation, expected[0])
        close(reward, expected[1])
        assert terminated.tolist() == expected[2].tolist() and truncated.tolist() == expected[3].tolist()
        assert set(info) == set(expected[4])
        if "final_obs" in info:
            ended = expected[4]["_final_obs"]
            assert info["_final_obs"].tolist() == ended.tolist() == info["_final_info"].tolist()
            close(info["final_obs"][torch.as_tensor(ended)], np.stack(expected[4]["final_obs"][ended]))
            assert info["final_info"] == {}
        if mode is AutoresetMode.DISABLED and truncated.any():
            options = {"reset_mask": truncated}
            expected_options = {"reset_mask": truncated.numpy().copy()}
            close(mine.reset(options=options)[0], oracle.reset(options=expected_options)[0])


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("mode", MODES)
def test_same_seed_same_rollout(env_id, mode):
    first, second = ours(env_id, mode), ours(env_id, mode)
    assert torch.equal(first.reset(seed=9)[0], second.reset(seed=9)[0])
    for _ in range(STEPS):
        actions = torch.as_tensor(first.action_space.sample())
        for mine, other in zip(first.step(actions)[:4], second.step(actions)[:4], strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_observations_lie_in_the_space_and_numpy_actions_are_taken(env_id):
    env = ours(env_id, AutoresetMode.SAME_STEP)
    observation, _ = env.reset(seed=0)
    for _ in range(2 * STEPS):
        assert observation.numpy() in env.observation_space
        observation, reward, *_ = env.step(env.action_space.sample())
        assert torch.is_tensor(observation) and reward.shape == (3,) and reward.dtype == torch.float32


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_one_environment_in_a_batch_works(env_id):
    env = ours(env_id, AutoresetMode.SAME_STEP, count=1)
    env.reset(seed=0)
    for _ in range(STEPS):
        observation, _, _, truncated, _ = env.step(torch.zeros(1, 1))
    assert observation.shape[0] == 1 and truncated.tolist() == [True]


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
def test_make_vec_takes_both_ways(env_id, vectorization):
    env = gymnasium.make_vec(env_id, num_envs=2, vectorization_mode=vectorization)
    observation, _ = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape
    assert env.spec.kwargs["vectorization_mode"] == vectorization
    again = gymnasium.make_vec(env.spec)
    assert again.num_envs == 2 and np.allclose(again.reset(seed=0)[0], observation)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_hundred_thousand_random_steps_stay_finite_and_in_bounds(env_id):
    env = gymnasium.make_vec(env_id, num_envs=500)
    observation, _ = env.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    high = torch.as_tensor(env.single_observation_space.high)
    limit = torch.as_tensor(env.single_action_space.high)
    for _ in range(250):
        actions = (2.0 * torch.rand(500, 1, generator=generator) - 1.0) * limit * 1.5
        observation, reward, *_ = env.step(actions)
        assert torch.isfinite(observation).all() and torch.isfinite(reward).all()
        assert (observation.abs() <= high).all()
