"""Every environment takes its actions as any array, and gives its numbers in the dtype asked for."""

import numpy as np
import pytest
import torch
from env_cases import close, every_kind, ours, wild_actions


@every_kind
def test_any_array_of_the_same_actions_gives_the_same_step(env_id):
    actions = wild_actions(ours(env_id).single_action_space, (4, 3))
    discrete = np.issubdtype(actions.dtype, np.integer)
    kinds = [np.asarray, torch.as_tensor, lambda array: np.asfortranarray(np.repeat(array, 2, 0))[::2]]
    kinds += [lambda array: array.astype(np.int32), lambda array: torch.as_tensor(array.astype(np.uint8))] * discrete
    kinds += [lambda array: array.astype(np.float64), lambda array: torch.as_tensor(array).double()] * (not discrete)
    paths = []
    for kind in kinds:
        env = ours(env_id)
        env.reset(seed=0)
        paths.append(torch.cat([env.step(kind(array))[0] for array in actions]))
    for path in paths[1:]:
        close(path, paths[0])


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_come_in_the_dtype_asked_for(env_id, dtype):
    env = ours(env_id, dtype=dtype, max_episode_steps=2)
    observation, _ = env.reset(seed=0)
    assert observation.dtype == dtype and observation.numpy() in env.observation_space
    for actions in wild_actions(env.single_action_space, (2, 3)):
        observation, reward, _, _, info = env.step(actions)
    assert observation.dtype == reward.dtype == info["final_obs"].dtype == dtype
    assert env.single_observation_space.dtype == observation.numpy().dtype and env.state.dtype == torch.float64
