"""Every environment inside Gymnasium's wrappers, and our tensor wrappers against Gymnasium's.

The oracle of a tensor wrapper is Gymnasium's wrapper of the same purpose: its single one inside Gymnasium's own vector
of our single environment where each environment stands alone, else its vector one around that vector.
"""

import gymnasium
import numpy as np
import pytest
import torch
from env_cases import begin, close, every_kind, every_mode, ours, planned_actions, theirs, wild_actions
from gymnasium import wrappers as single
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as batched

from robust_policies.envs.wrappers import (
    ClipAction,
    EpisodeStatistics,
    NormalizeObservation,
    NormalizeReward,
    RescaleAction,
)
from robust_policies.errors import InvalidValueError

LIMIT = 7
STEPS = 15


def is_discrete(env):
    return isinstance(env.action_space, (gymnasium.spaces.Discrete, gymnasium.spaces.MultiDiscrete))


def wrapped_oracle(env_id, mode, wrap):
    return SyncVectorEnv(
        [lambda: wrap(gymnasium.make(env_id, max_episode_steps=LIMIT)) for _ in range(3)], autoreset_mode=mode
    )


def reset_ended(mine, oracle, done):
    """Reset what ended, as DISABLED asks for; every one gets its own mask, which Gymnasium takes out of the options."""
    mask = done.numpy()
    return [env.reset(options={"reset_mask": mask.copy()})[0] for env in (mine, oracle)]


@every_kind
def test_gymnasiums_wrappers_work_and_agree_with_each_other(env_id):
    env = gymnasium.make(env_id, max_episode_steps=LIMIT)
    taken = env.action_space
    if not is_discrete(env):
        env = single.RescaleAction(env, np.float32(-1.0), np.float32(1.0))
        taken = env.action_space
        env = single.ClipAction(env)
    env = single.RecordEpisodeStatistics(single.NormalizeObservation(env))
    env = single.FrameStackObservation(single.TimeAwareObservation(env), 3)
    env = single.TransformReward(single.Autoreset(env), lambda reward: 2.0 * reward)
    size = env.unwrapped.plant.observation_size + 1
    observation, _ = env.reset(seed=0)
    assert observation.shape == (3, size) and np.array_equal(observation[0], observation[1])
    total, steps = 0.0, 0
    for action in wild_actions(taken, (LIMIT,), seed=4):
        observation, reward, terminated, truncated, info = env.step(action)
        total, steps = total + reward, steps + 1
        assert observation.shape == (3, size) and np.isfinite(observation).all()
        if terminated or truncated:
            break
    assert info["episode"]["l"] == steps <= LIMIT and truncated == (steps == LIMIT)
    assert info["episode"]["r"] == pytest.approx(total / 2.0, rel=1e-5, abs=1e-5)
    # Gymnasium's Autoreset begins the next episode in the next step, whatever the action.
    _, reward, terminated, truncated, _ = env.step(action)
    assert reward == 0.0 and not terminated and not truncated


@every_kind
@pytest.mark.parametrize("name", ["ClipAction", "RescaleAction"])
def test_action_wrappers_do_what_gymnasiums_do(env_id, name):
    inner = ours(env_id, max_episode_steps=LIMIT)
    mine_class, wrap = (
        (ClipAction, single.ClipAction)
        if name == "ClipAction"
        else (RescaleAction, lambda env: single.RescaleAction(env, np.float32(-1.0), np.float32(1.0)))
    )
    if is_discrete(inner):
        with pytest.raises(InvalidValueError, match="expected a Box"):
            mine_class(inner)
        return
    mine, oracle = mine_class(inner), wrapped_oracle(env_id, AutoresetMode.SAME_STEP, wrap)
    if name == "RescaleAction":
        assert mine.action_space == oracle.action_space and mine.single_action_space == oracle.single_action_space
        actions = np.random.default_rng(0).uniform(-1.0, 1.0, (LIMIT + 1, *mine.action_space.shape)).astype(np.float32)
    else:
        actions = wild_actions(inner.single_action_space, (LIMIT + 1, 3))
    close(mine.reset(seed=1)[0], oracle.reset(seed=1)[0])
    for action in actions:
        step, expected = mine.step(torch.as_tensor(action)), oracle.step(action)
        for tensor, array in zip(step[:4], expected[:4], strict=True):
            close(tensor, array, rtol=1e-4, atol=1e-5)


@every_kind
@every_mode
def test_episode_statistics_are_gymnasiums(env_id, mode):
    mine = EpisodeStatistics(ours(env_id, mode, max_episode_steps=LIMIT))
    if mode is AutoresetMode.DISABLED:
        # Gymnasium's vector wrapper forgets the running episodes at a partial reset: its SyncVectorEnv takes the mask
        # out of the options before the wrapper looks for it.
        oracle = wrapped_oracle(env_id, mode, single.RecordEpisodeStatistics)
    else:
        oracle = batched.RecordEpisodeStatistics(theirs(env_id, mode, max_episode_steps=LIMIT))
    begin(env_id, mine.unwrapped, oracle.unwrapped)
    lengths = []
    for step, action in enumerate(planned_actions(env_id, mine.single_action_space, STEPS)):
        _, _, terminated, truncated, info = mine.step(action)
        _, _, _, _, expected = oracle.step(action)
        done = terminated | truncated
        assert ("episode" in info) == bool(done.any()) == ("episode" in expected), step
        if "episode" in info:
            assert info["_episode"].tolist() == expected["_episode"].tolist() == done.tolist()
            assert info["episode"]["l"].tolist() == expected["episode"]["l"].tolist()
            close(info["episode"]["r"], expected["episode"]["r"])
            lengths += info["episode"]["l"][done].tolist()
        if mode is AutoresetMode.DISABLED and done.any():
            reset_ended(mine, oracle, done)
    assert max(lengths) == LIMIT and mine.episode_count == len(lengths)
    assert mine.length_queue.tolist() == lengths
    if mode is not AutoresetMode.DISABLED:
        assert oracle.episode_count == len(lengths) and list(oracle.length_queue) == lengths
        close(mine.return_queue, list(oracle.return_queue))


@every_kind
@every_mode
def test_normalised_observations_are_those_of_all_seen_so_far(env_id, mode):
    """Gymnasium's vector one takes only NEXT_STEP, so the oracle is NumPy's mean and variance of the same numbers."""
    mine, plain = (
        NormalizeObservation(ours(env_id, mode, max_episode_steps=LIMIT)),
        ours(env_id, mode, max_episode_steps=LIMIT),
    )
    seen = [plain.reset(seed=2)[0]]
    mine.reset(seed=2)
    for action in wild_actions(plain.single_action_space, (STEPS, 3)):
        observation, _, terminated, truncated, info = mine.step(action)
        raw, *_, raw_info = plain.step(action)
        seen.append(raw)
        if "final_obs" in raw_info:
            seen.append(raw_info["final_obs"][raw_info["_final_obs"]])
        # Gymnasium's prior: 0.0001 rows of mean 0 and variance 1.
        rows = torch.cat(seen).double().numpy()
        count = len(rows) + 1e-4
        mean = rows.sum(0) / count
        second = ((rows - mean) ** 2).sum(0) + 1e-4 * (1.0 + mean**2)
        scale = np.sqrt(second / count + 1e-8)
        close(observation, (raw.double().numpy() - mean) / scale, rtol=1e-3, atol=1e-3)
        if "final_obs" in info:
            ended = info["_final_obs"]
            expected = (raw_info["final_obs"].double().numpy() - mean) / scale
            close(info["final_obs"][ended], expected[ended.numpy()], rtol=1e-3, atol=1e-3)
        done = terminated | truncated
        if mode is AutoresetMode.DISABLED and done.any():
            seen.append(plain.reset(options={"reset_mask": done})[0][done])
            mine.reset(options={"reset_mask": done})


@every_kind
@pytest.mark.parametrize("kind", ["observation", "reward"])
def test_normalisation_in_next_step_is_gymnasiums(env_id, kind):
    mode = AutoresetMode.NEXT_STEP
    own, others = {
        "observation": (NormalizeObservation, batched.NormalizeObservation),
        "reward": (NormalizeReward, batched.NormalizeReward),
    }[kind]
    mine = own(ours(env_id, mode, max_episode_steps=50))
    oracle = others(theirs(env_id, mode, max_episode_steps=50))
    close(mine.reset(seed=1)[0], oracle.reset(seed=1)[0], rtol=1e-3, atol=1e-3)
    for action in wild_actions(mine.single_action_space, (LIMIT, 3)):
        step, expected = mine.step(action), oracle.step(action)
        if (step[2] | step[3]).any():
            break
        close(step[0], expected[0], rtol=1e-3, atol=1e-3)
        close(step[1], expected[1], rtol=1e-3, atol=1e-3)
    freeze = mine.moments.mean.clone()
    mine.freeze()
    mine.step(wild_actions(mine.single_action_space, (3,)))
    assert torch.equal(mine.moments.mean, freeze) and mine.update_running_mean is False
