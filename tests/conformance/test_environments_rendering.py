"""Every environment draws itself, alone and in a batch, without a screen."""

import gymnasium
import numpy as np
import pytest
from env_cases import MUJOCO_IDS, every_kind, ours, why_no_pictures, wild_actions


@pytest.fixture(autouse=True)
def no_screen(monkeypatch, request):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    if request.node.callspec.params["env_id"] in MUJOCO_IDS and why_no_pictures():
        pytest.skip(why_no_pictures())


@every_kind
def test_pictures_are_pixels_that_change_with_the_state(env_id):
    env = gymnasium.make(env_id, render_mode="rgb_array")
    assert env.render_mode == "rgb_array"
    env.reset(seed=0)
    first = env.render()
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3 and first.flags.c_contiguous
    assert first.std() > 0 and np.array_equal(first, env.render())
    kept = first.copy()
    for action in wild_actions(env.action_space, (3,)):
        env.step(action)
    second = env.render()
    assert second.shape == first.shape and not np.array_equal(first, second)
    assert np.array_equal(first, kept)
    env.close()
    env.close()


@every_kind
def test_human_mode_shows_a_window_and_returns_nothing(env_id):
    env = gymnasium.make(env_id, render_mode="human")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert env.render() is None
    env.close()
    env.close()


@every_kind
def test_no_mode_no_picture(env_id):
    env = gymnasium.make(env_id)
    assert env.render_mode is None
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="without"):
        assert env.unwrapped.render() is None


@every_kind
def test_a_batch_draws_each_environment_as_it_is_alone(env_id):
    batch = ours(env_id, count=2, render_mode="rgb_array")
    single = gymnasium.make(env_id, render_mode="rgb_array")
    batch.reset(seed=4)
    single.reset(seed=5)
    action = wild_actions(single.action_space, (2,))
    batch.step(action)
    single.step(action[1])
    pictures = batch.render()
    assert isinstance(pictures, tuple) and len(pictures) == 2
    assert np.array_equal(pictures[1], batch.render_one(1)) and not np.array_equal(*pictures)
    difference = np.abs(pictures[1].astype(int) - single.render())
    # The traces of a plot begin where drawing began, and rounding may move an edge by a pixel.
    assert (difference > 0).mean() < 0.02
    batch.close()
    batch.close()
    assert batch.closed
