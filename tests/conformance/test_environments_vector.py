"""Every environment in every autoreset mode against Gymnasium's contract for vectorized ones.

The oracle is Gymnasium's own SyncVectorEnv of our single environment: both are run side by side, and episodes end at
different times, by terminations, time limits and partial resets.
"""

import copy
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from env_cases import (
    MODES,
    begin,
    close,
    every_id,
    every_kind,
    every_mode,
    ours,
    planned_actions,
    still_action,
    theirs,
    way_into_termination,
    wild_actions,
)
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from robust_policies.errors import InvalidValueError, UserError

LIMIT = 7


@every_id
def test_attributes_and_metadata(env_id):
    for mode in MODES:
        check_attributes_and_metadata(env_id, mode)


def check_attributes_and_metadata(env_id, mode):
    env = ours(env_id, mode)
    assert isinstance(env, gymnasium.vector.VectorEnv) and env.unwrapped is env
    assert env.metadata["autoreset_mode"] is mode and ours(env_id, mode.value).metadata["autoreset_mode"] is mode
    assert env.spec.id == env_id and env.num_envs == 3 and not env.closed and env.render_mode is None
    assert env.observation_space == batch_space(env.single_observation_space, 3)
    assert env.action_space == batch_space(env.single_action_space, 3)
    single = gymnasium.make(env_id)
    assert env.single_observation_space == single.observation_space
    assert env.single_action_space == single.action_space
    assert set(single.metadata["render_modes"]) == set(env.metadata["render_modes"]) == {"human", "rgb_array"}
    assert env.metadata["render_fps"] == single.metadata["render_fps"] and "autoreset_mode" not in single.metadata
    assert repr(env) == f"TorchVectorEnv({env_id}, num_envs=3)"
    env.close()
    env.close()
    assert env.closed


@every_kind
@every_mode
def test_same_as_gymnasiums_vector_of_the_single_environment(env_id, mode):
    mine = ours(env_id, mode, max_episode_steps=LIMIT)
    oracle = theirs(env_id, mode, max_episode_steps=LIMIT)
    assert mine.action_space == oracle.action_space and mine.observation_space == oracle.observation_space
    begin(env_id, mine, oracle)
    assert mine.np_random_seed == oracle.np_random_seed == (123, 124, 125)
    kinds, times = set(), set()
    for step, actions in enumerate(planned_actions(env_id, mine.single_action_space, 2 * LIMIT + 6)):
        # The first environment is reset early, so that the episodes do not all end together.
        if step == 5:
            mask = np.array([True, False, False])
            given = torch.as_tensor(mask) if mode is AutoresetMode.NEXT_STEP else mask
            close(mine.reset(options={"reset_mask": given})[0], oracle.reset(options={"reset_mask": mask.copy()})[0])
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
        for row in (terminated | truncated).nonzero().flatten().tolist():
            kinds.add("terminated" if terminated[row] else "truncated")
            times.add((row, step))
        if mode is AutoresetMode.DISABLED and (terminated | truncated).any():
            mask = terminated | truncated
            expected_options = {"reset_mask": mask.numpy().copy()}
            close(mine.reset(options={"reset_mask": mask})[0], oracle.reset(options=expected_options)[0])
    assert "truncated" in kinds and len({step for _, step in times}) >= 2
    assert ("terminated" in kinds) == (way_into_termination(env_id) is not None)


@every_kind
@every_mode
def test_a_termination_at_the_time_limit_is_both(env_id, mode):
    if way_into_termination(env_id) is None:
        env = ours(env_id, mode, max_episode_steps=2)
        env.reset(seed=0)
        flags = [env.step(action)[2:4] for action in wild_actions(env.single_action_space, (2, 3))]
        assert not flags[1][0].any() and flags[1][1].all()
        return
    free = ours(env_id, mode)
    begin(env_id, free)
    actions = planned_actions(env_id, free.single_action_space, 8)
    due = next(step for step, action in enumerate(actions, 1) if free.step(action)[2][1])
    env, oracle = (make(env_id, mode, max_episode_steps=due) for make in (ours, theirs))
    begin(env_id, env, oracle)
    for step, action in enumerate(actions[:due], 1):
        _, _, terminated, truncated, info = env.step(action)
        expected = oracle.step(action)
        assert truncated.tolist() == expected[3].tolist() == [step == due] * 3
        assert terminated.tolist() == expected[2].tolist()
    assert terminated[1] and truncated[1]
    if mode is AutoresetMode.SAME_STEP:
        assert info["_final_obs"].all() and (env.elapsed == 0).all()


@every_kind
@every_mode
def test_time_limits_count_each_episode_from_its_own_start(env_id, mode):
    env = ours(env_id, mode, count=2, max_episode_steps=4)
    still = np.stack([still_action(env.single_action_space)] * 2)
    env.reset(seed=0)
    env.step(still)
    env.step(still)
    env.reset(options={"reset_mask": np.array([False, True])})
    flags = [env.step(still)[3].tolist() for _ in range(2)]
    assert flags == [[False, False], [True, False]]
    if mode is AutoresetMode.DISABLED:
        with pytest.raises(InvalidValueError, match="1 episode"):
            env.step(still)
        env.reset(options={"reset_mask": np.array([True, False])})
    assert env.step(still)[3].tolist() == [False, False]
    # NEXT_STEP spent one step on the first environment's reset.
    assert env.elapsed.tolist() == ([0, 3] if mode is AutoresetMode.NEXT_STEP else [1, 3])
    assert env.step(still)[3].tolist() == [False, True]


@every_kind
def test_next_step_ignores_the_action_after_an_end(env_id):
    def run(change):
        env = ours(env_id, AutoresetMode.NEXT_STEP, count=2, max_episode_steps=2)
        actions = wild_actions(env.single_action_space, (6, 2))
        actions[2] = actions[change]
        env.reset(seed=1)
        return [env.step(action)[:4] for action in actions]

    first, second = run(2), run(3)
    for step, (mine, other) in enumerate(zip(first, second, strict=True)):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True)), step
    assert (first[2][1] == 0).all() and not (first[2][2] | first[2][3]).any()


@every_kind
@every_mode
def test_observations_rewards_and_flags_are_tensors_in_their_spaces(env_id, mode):
    env = ours(env_id, mode, max_episode_steps=6)
    observation, info = env.reset(seed=0)
    assert info == {}
    for actions in wild_actions(env.single_action_space, (8, 3)):
        assert observation.dtype == torch.float32 and observation.numpy() in env.observation_space
        observation, reward, terminated, truncated, info = env.step(actions)
        assert reward.shape == (3,) and reward.dtype == torch.float32
        assert terminated.shape == truncated.shape == (3,) and terminated.dtype == truncated.dtype == torch.bool
        if "final_obs" in info:
            assert info["final_obs"].shape == observation.shape
            assert info["final_obs"].numpy() in env.observation_space
        if mode is AutoresetMode.DISABLED and (terminated | truncated).any():
            observation, _ = env.reset(options={"reset_mask": terminated | truncated})


@every_kind
@every_mode
def test_same_seed_same_rollout(env_id, mode):
    first, second = ours(env_id, mode, max_episode_steps=5), ours(env_id, mode, max_episode_steps=5)
    assert torch.equal(first.reset(seed=9)[0], second.reset(seed=9)[0])
    for actions in wild_actions(first.single_action_space, (12, 3)):
        mine, other = first.step(actions), second.step(actions)
        assert all(torch.equal(a, b) for a, b in zip(mine[:4], other[:4], strict=True))
        assert set(mine[4]) == set(other[4])
        if mode is AutoresetMode.DISABLED and (mine[2] | mine[3]).any():
            assert torch.equal(first.reset()[0], second.reset()[0])


@every_kind
@every_mode
def test_copies_continue_alike(env_id, mode):
    env = ours(env_id, mode, max_episode_steps=3)
    actions = wild_actions(env.single_action_space, (5, 3))
    env.reset(seed=0)
    # To the end of an episode, whose reset is still due in NEXT_STEP; DISABLED goes no further than that.
    for action in actions[:3] if mode is not AutoresetMode.DISABLED else actions[:2]:
        env.step(action)
    copies = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    for action in actions[3:] if mode is not AutoresetMode.DISABLED else actions[:1]:
        expected = env.step(action)
        for other in copies:
            assert all(torch.equal(a, b) for a, b in zip(other.step(action)[:4], expected[:4], strict=True))
    expected, _ = env.reset()
    for other in copies:
        assert torch.equal(other.reset()[0], expected)
        assert other.np_random_seed == env.np_random_seed and other.metadata == env.metadata


@every_kind
@every_mode
def test_one_environment_in_a_batch_works(env_id, mode):
    env = ours(env_id, mode, count=1, max_episode_steps=3)
    env.reset(seed=0)
    for _ in range(3):
        observation, reward, terminated, truncated, _ = env.step(still_action(env.single_action_space)[None])
    assert observation.shape == (1, *env.single_observation_space.shape) and reward.shape == (1,)
    assert truncated.tolist() == [True] and terminated.shape == (1,)


@every_kind
def test_bad_actions_are_refused_and_nothing_changes(env_id):
    env = ours(env_id)
    env.reset(seed=0)
    good = wild_actions(env.single_action_space, (3,))
    env.step(good)
    held = [env.state, env.elapsed, env._streams.state.clone()]
    bad = [good[:2], np.concatenate((good, good[:1])), good[..., None], good.tolist(), None, 0, good.astype(bool)]
    if isinstance(env.single_action_space, gymnasium.spaces.Discrete):
        bad += [good.astype(float), np.full(3, env.single_action_space.n), np.full(3, -1)]
    else:
        bad += [good.astype(int), np.full_like(good, np.nan), np.full_like(good, np.inf), torch.as_tensor(good).long()]
    bad += [good.astype(object), torch.as_tensor(good, device="meta")]
    for actions in bad:
        with pytest.raises(UserError, match=r"actions.*expected"):
            env.step(actions)
        now = [env.state, env.elapsed, env._streams.state]
        assert all(torch.equal(a, b) for a, b in zip(held, now, strict=True))
