"""Every environment through Gymnasium's own conversions between NumPy and torch, around ours and around its own."""

import numpy as np
import pytest
import torch
from env_cases import close, every_kind, every_mode, ours, theirs, wild_actions
from gymnasium.vector import AutoresetMode

pytest.importorskip("array_api_compat", reason="Gymnasium's conversions need array-api-compat")
from gymnasium.wrappers.vector import ArrayConversion, NumpyToTorch


@every_kind
@every_mode
def test_gymnasiums_conversion_to_numpy_leaves_the_numbers_alone(env_id, mode):
    plain = ours(env_id, mode, max_episode_steps=3)
    env = ArrayConversion(ours(env_id, mode, max_episode_steps=3), env_xp=torch, target_xp=np)
    first = env.reset(seed=8)[0]
    assert isinstance(first, np.ndarray) and first in env.observation_space
    close(plain.reset(seed=8)[0], first, rtol=0, atol=0)
    for actions in wild_actions(env.single_action_space, (3, 3)):
        step, expected = env.step(actions), plain.step(actions)
        for array, tensor in zip(step[:4], expected[:4], strict=True):
            assert isinstance(array, np.ndarray)
            close(tensor, array, rtol=0, atol=0)
    assert step[3].all() and set(step[4]) == set(expected[4])
    if mode is AutoresetMode.SAME_STEP:
        assert isinstance(step[4]["final_obs"], np.ndarray) and step[4]["_final_obs"].all()
        close(expected[4]["final_obs"], step[4]["final_obs"], rtol=0, atol=0)
    else:
        mask = torch.tensor([True, False, True])
        close(plain.reset(options={"reset_mask": mask})[0], env.reset(options={"reset_mask": mask.numpy()})[0])


@every_kind
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED], ids=lambda mode: mode.name)
def test_same_as_gymnasiums_conversion_to_torch(env_id, mode):
    """SAME_STEP is left out: Gymnasium's NumpyToTorch cannot convert its own vector's info["final_obs"]."""
    mine = ours(env_id, mode, max_episode_steps=3)
    oracle = NumpyToTorch(theirs(env_id, mode, max_episode_steps=3), device="cpu")
    observation, expected = mine.reset(seed=8)[0], oracle.reset(seed=8)[0]
    assert observation.dtype == expected.dtype
    torch.testing.assert_close(observation, expected, rtol=1e-5, atol=1e-6)
    for actions in wild_actions(mine.single_action_space, (3, 3)):
        actions = torch.as_tensor(actions)
        for tensor, other in zip(mine.step(actions)[:4], oracle.step(actions)[:4], strict=True):
            assert tensor.device == other.device
            torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-6, check_dtype=False)
