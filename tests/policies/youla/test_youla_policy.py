"""A YoulaPolicy does in the unwrapped environment what its parameter does in the wrapper, and survives a file."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from youla_cases import batch, random_policy, task

from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    ShapeError,
    UnknownNameError,
)
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.policies import YoulaPolicy, YoulaWrapper, load_policy, save_policy
from robust_policies.policies.youla.wrapper import youla_base


def wrapped_episode(env, policy, steps, seed, state=None):
    """Return observations, inputs and rewards of `policy` inside the wrapper `env`."""
    rows = []
    seen, _ = env.reset(seed=seed)
    for t in range(steps):
        youla, state = policy.predict(seen, state, episode_start=[t == 0])
        seen, reward, *_, info = env.step(youla)
        rows.append((env.unwrapped.state, info["applied_input"], reward))
    return rows


def unwrapped_episode(env, policy, steps, seed, state=None):
    """Return the same of a Youla policy in the environment without the wrapper."""
    rows = []
    observation, _ = env.reset(seed=seed)
    for t in range(steps):
        action, state = policy.predict(observation, state, episode_start=[t == 0])
        observation, reward, *_ = env.step(action)
        rows.append((env.unwrapped.state, action, reward))
    return rows


@pytest.mark.parametrize(
    ("name", "options", "cell"),
    [
        *((name, {}, "r2dn") for name in ("DoyleLQG", "DoubleIntegrator", "QubeServo", "CartPoleContinuous")),
        ("QubeServo", {"estimator": "predictor", "reserve": 0.3}, "r2dn"),
        ("DoubleIntegrator", {"quantum": 0.05, "delay": 2}, "r2dn"),
        ("DoyleLQG", {}, "lstm"),
    ],
)
def test_wrapped_and_loaded_unwrapped_trajectories_are_identical(name, options, cell, tmp_path):
    env = YoulaWrapper(gymnasium.make(task(name)).unwrapped, **options)
    inner = random_policy(env, gain=1e6, cell=cell)
    save_policy(YoulaPolicy.of(env, inner), tmp_path)
    policy = load_policy(tmp_path)
    assert isinstance(policy, YoulaPolicy)
    plain = gymnasium.make(task(name)).unwrapped
    inside, outside = wrapped_episode(env, inner, 60, 4), unwrapped_episode(plain, policy, 60, 4)
    delay = options.get("delay", 0)
    for t, ((state, applied, reward), (other, sent, other_reward)) in enumerate(zip(inside, outside, strict=True)):
        assert np.array_equal(state, other) and reward == other_reward
        if t >= delay:
            assert np.array_equal(applied.astype(np.float32), outside[t - delay][1])
        assert sent.dtype == np.float32 and plain.action_space.contains(sent)
    limit = np.abs(plain.action_space.high)
    assert options or cell == "lstm" or any((np.abs(sent) == limit).any() for _, sent, _ in outside)


def test_batches_in_float64_are_identical_too():
    env, plain = (
        batch("QubeServo", 5, mode="DISABLED"),
        gymnasium.make_vec(task("QubeServo"), num_envs=5, dtype="float64", autoreset_mode="DISABLED"),
    )
    inner = random_policy(env, vector=True)
    policy = YoulaPolicy.of(env, inner)
    seen, _ = env.reset(seed=1)
    observation, _ = plain.reset(seed=1)
    hidden = state = None
    for _ in range(60):
        youla, hidden = inner.predict(seen.numpy(), hidden)
        action, state = policy.predict(observation.numpy(), state)
        seen, reward, *_, info = env.step(torch.as_tensor(youla))
        observation, plain_reward, *_ = plain.step(action)
        assert action.dtype == np.float64
        assert np.array_equal(info["applied_input"].numpy(), action)
        assert torch.equal(reward, plain_reward) and torch.equal(env.unwrapped.state, plain.unwrapped.state)


def test_exploration_is_that_of_the_wrapped_policy():
    env, plain = YoulaWrapper(gymnasium.make(task("QubeServo")).unwrapped), gymnasium.make(task("QubeServo")).unwrapped
    inner = random_policy(env)
    policy = YoulaPolicy.of(env, inner)
    seen, _ = env.reset(seed=1)
    observation, _ = plain.reset(seed=1)
    torch.manual_seed(0)
    youla, _ = inner.predict(seen, deterministic=False)
    torch.manual_seed(0)
    action, _ = policy.predict(observation, deterministic=False)
    *_, info = env.step(youla)
    assert np.array_equal(info["applied_input"].astype(np.float32), action)


def test_an_episode_start_resets_its_row_alone():
    env = YoulaWrapper(gymnasium.make(task("QubeServo")).unwrapped, delay=1)
    policy = YoulaPolicy.of(env, random_policy(env))
    observations = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    _, state = policy.predict(observations)
    assert state.dtype == np.float64 and state.shape == (3, env.controller.state_size + 4)
    action, again = policy.predict(observations, state, episode_start=[False, True, False])
    fresh, first = policy.predict(observations[1:2])
    np.testing.assert_allclose(action[1], fresh[0], rtol=1e-6)
    np.testing.assert_allclose(again[1], first[0], rtol=1e-6, atol=1e-9)
    moved, _ = policy.predict(observations, state)
    assert np.array_equal(moved[[0, 2]], action[[0, 2]]) and not np.array_equal(moved[1], action[1])


def test_the_files_hold_all_and_load_to_the_same_objects(tmp_path):
    env = YoulaWrapper(gymnasium.make(task("AircraftPitch")).unwrapped, reserve=0.2, estimator="predictor")
    policy = YoulaPolicy.of(env, random_policy(env))
    path = save_policy(policy, tmp_path)
    content = json.loads(path.read_text())
    assert content["type"] == "youla_policy" and sorted(file.suffix for file in tmp_path.iterdir()) == [
        ".json", ".safetensors",
    ]  # fmt: skip
    loaded = load_policy(tmp_path)
    for record, other in ((policy.model, loaded.model), (policy.design, loaded.design)):
        for name, value in vars(record).items():
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, getattr(other, name)), name
            elif isinstance(value, (str, float, tuple)):
                assert value == getattr(other, name), name
    assert loaded.controller.options == policy.controller.options
    assert loaded.policy.certificate().gamma_raw == policy.policy.certificate().gamma_raw
    assert save_policy(loaded, tmp_path / "again").read_text() == path.read_text()


def test_the_evaluation_and_its_attacks_run_it():
    env = YoulaWrapper(gymnasium.make(task("QubeServo")).unwrapped)
    policy = YoulaPolicy.of(env, random_policy(env, gain=0.0))
    played = run_episodes(policy, task("QubeServo"), "mad_pgd", [0.0, 0.1], 2, 0, max_steps=20)
    assert np.isfinite(played.returns).all() and (played.returns[0] > played.returns[1]).any()
    assert (played.deviations[1] > 0).all()


def test_the_closed_loop_is_certified_and_not_the_gain_from_observation_to_action():
    env = YoulaWrapper(gymnasium.make(task("QubeServo")).unwrapped)
    policy = YoulaPolicy.of(env, random_policy(env))
    loop = policy.certificate().closed_loop
    assert loop is not None and loop["parameter_gain"] == policy.policy.certificate().gamma_raw
    assert policy.policy.certificate().status == "PASS"


def test_a_policy_that_reads_more_than_the_innovation_is_refused():
    env, other = (YoulaWrapper(gymnasium.make(task(name)).unwrapped) for name in ("QubeServo", "DoubleIntegrator"))
    with pytest.raises(ShapeError, match="closes a loop"):
        YoulaPolicy.of(other, random_policy(env))
    narrow = YoulaWrapper(gymnasium.make(task("QubeServo")).unwrapped, reserve=0.5)
    with pytest.raises(InvalidValueError, match="options of its wrapper"):
        YoulaPolicy.of(narrow, random_policy(env))
    with pytest.raises(InvalidValueError, match="wears no Youla wrapper"):
        youla_base(gymnasium.make("Pendulum-v1"))
    with pytest.raises(InvalidValueError, match="cannot be deployed"):
        YoulaPolicy.of(env, object())


def test_broken_files_are_named(tmp_path):
    env = YoulaWrapper(gymnasium.make(task("DoubleIntegrator")).unwrapped)
    path = save_policy(YoulaPolicy.of(env, random_policy(env)), tmp_path)
    content = json.loads(path.read_text())
    for change, error, message in (
        ({"type": "youla"}, UnknownNameError, "youla_policy"),
        ({"design": {}}, CorruptFileError, "again"),
        ({"policy": {}}, CorruptFileError, "again"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(error, match=message):
            load_policy(tmp_path)


@pytest.mark.parametrize("name", ["MassSpringDamper", "Linear"])
def test_the_policy_of_a_plant_whose_modes_all_decay_is_saved_and_says_so(name, tmp_path):
    env = YoulaWrapper(gymnasium.make(f"robust_policies/{name}-v0"))
    policy = YoulaPolicy.of(env, random_policy(env))
    save_policy(policy, tmp_path)
    design = load_policy(tmp_path).design
    assert design.pbh_control is None and design.pbh_estimator is None
    assert "every mode decays" in str(design) and "inf" not in str(design)


def test_actuators_without_limits_are_called_that_and_not_a_gain_of_zero():
    env = YoulaWrapper(gymnasium.make("robust_policies/MassSpringDamper-v0"))
    controller = env.controller
    controller.low.fill_(-np.inf)
    controller.high.fill_(np.inf)
    with pytest.raises(InvalidValueError, match="no limits"):
        controller.saturation()
