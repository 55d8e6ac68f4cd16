"""Every environment with physics of its own in each row: assigned, drawn at random, disturbed; the single one alike."""

import gymnasium
import numpy as np
import pytest
import torch
from env_cases import close, every_id, every_kind, ours, theirs, wild_actions

from robust_policies.errors import InvalidValueError


@every_kind
def test_parameters_of_each_environment_change_only_that_environment(env_id):
    env, nominal = ours(env_id), ours(env_id)
    actions = wild_actions(env.single_action_space, (4, 3))
    # Each by another factor: scaled alike, masses, inertias, frictions and forces would cancel.
    names = list(env.params)
    for number, name in enumerate(names, 1):
        value = env.params[name]
        env.params[name] = torch.stack((value, (1.0 + 0.01 * number) * value, value))
    assert torch.equal(env.reset(seed=3)[0][::2], nominal.reset(seed=3)[0][::2])
    for action in actions:
        close(env.step(action)[0][::2], nominal.step(action)[0][::2])
    assert not torch.equal(env.state[1], nominal.state[1]), names


@every_id
def test_randomized_physics_are_those_of_the_single_environment(env_id):
    mine, oracle = (make(env_id, max_episode_steps=3, randomize=True) for make in (ours, theirs))
    ranges = mine.plant.task.randomize
    assert ranges
    close(mine.reset(seed=6)[0], oracle.reset(seed=6)[0])
    first = {name: mine.params[name].clone() for name in ranges}
    for actions in wild_actions(mine.single_action_space, (5, 3)):
        step, expected = mine.step(actions), oracle.step(actions)
        for tensor, array in zip(step[:4], expected[:4], strict=True):
            close(tensor, array)
    for name, (low, high) in ranges.items():
        nominal = mine.plant.nominal()[name]
        drawn = mine.params[name]
        assert drawn.shape == (3, *nominal.shape) and not torch.equal(drawn, first[name])
        span = torch.stack((low * nominal, high * nominal)).sort(dim=0).values
        assert ((span[0] - 1e-12 <= drawn) & (drawn <= span[1] + 1e-12)).all()
        for row, env in enumerate(oracle.envs):
            close(drawn[row], np.asarray(env.unwrapped.params[name]).reshape(nominal.shape), rtol=1e-12, atol=0)


@every_kind
def test_disturbances_act_on_their_own_row_as_on_the_single_environment(env_id):
    env, calm = ours(env_id), ours(env_id)
    single = gymnasium.make(env_id).unwrapped
    channels = len(env.plant.disturbance_names)
    if not channels:
        with pytest.raises(InvalidValueError, match="no disturbance input"):
            env.disturbance = torch.zeros(3, 0)
        return
    push = torch.zeros(3, channels, dtype=torch.float64)
    push[1] = 0.01
    env.reset(seed=4)
    calm.reset(seed=4)
    single.reset(seed=5)
    env.disturbance, single.disturbance = push, push[1].numpy()
    for actions in wild_actions(env.single_action_space, (3, 3)):
        pushed, free, alone = env.step(actions)[0], calm.step(actions)[0], single.step(actions[1])[0]
        close(pushed[::2], free[::2])
        close(pushed[1], alone)
    assert not torch.equal(env.state[1], calm.state[1])
    env.disturbance = None
    assert env.disturbance is None


@every_kind
def test_states_in_single_precision_stay_near_those_in_double(env_id):
    double, single = ours(env_id), ours(env_id, state_dtype="float32")
    close(single.reset(seed=1)[0], double.reset(seed=1)[0], rtol=1e-4, atol=1e-5)
    for actions in wild_actions(double.single_action_space, (3, 3)):
        for mine, other in zip(single.step(actions)[:4], double.step(actions)[:4], strict=True):
            close(mine, other, rtol=1e-2, atol=1e-3)
    assert single.state.dtype == torch.float32 and torch.isfinite(single.state).all()
