"""Many environments in a YoulaVectorWrapper: autoreset, independence of the innovation, cost of the base loop."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from youla_cases import LINEAR, batch, task

from robust_policies.control.lqg import stationary_cost
from robust_policies.envs.perturb import perturb
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError
from robust_policies.policies import YoulaVectorWrapper, YoulaWrapper

MODES = list(AutoresetMode)


def inputs(env, steps, seed, size=None):
    """Return Youla inputs (steps, num_envs, m), as large as allowed, or normal of a given size."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(steps, env.num_envs, env.controller.model.m, generator=generator, dtype=torch.float64)
    high = torch.as_tensor(env.single_action_space.high, dtype=torch.float64)
    return drawn.sign() * high if size is None else size * drawn


def play(env, actions, seed=0):
    """Return innovations (steps + 1, ...), applied inputs and states."""
    _, info = env.reset(seed=seed)
    innovations, applied, states = [info["innovation"]], [], [env.unwrapped.state]
    for action in actions:
        *_, info = env.step(action)
        innovations.append(info["innovation"])
        applied.append(info["applied_input"])
        states.append(env.unwrapped.state)
    return torch.stack(innovations), torch.stack(applied), torch.stack(states)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("estimator", ["current", "predictor"])
@pytest.mark.parametrize("saturated", [pytest.param(False, marks=pytest.mark.soak), True])
def test_the_innovation_does_not_depend_on_the_youla_input(name, estimator, saturated):
    env = batch(name, 4, mode="DISABLED", estimator=estimator)
    steps = 100
    zero = torch.zeros(steps, 4, env.controller.model.m)
    loud = inputs(env, steps, 1, size=None if saturated else 0.1)
    quiet = play(env, zero)
    moved = play(env, loud)
    if saturated:
        high = torch.as_tensor(env.unwrapped.single_action_space.high)
        assert bool((moved[1].abs() == high).any())
    assert bool((moved[2] - quiet[2]).abs().max() > 0)
    size = max(float(moved[2].abs().max()), float(quiet[2].abs().max()), 1.0)
    assert float((moved[0] - quiet[0]).abs().max()) <= 1e-12 * size


@pytest.mark.parametrize("quantum", [0.0, 0.1])
def test_a_delayed_and_rounded_input_reaches_the_observer_as_the_plant_receives_it(quantum):
    def delayed(env):
        return perturb(env, "[{ActionDelay: 2}]")

    given = {"mode": "DISABLED", "inner": delayed, "quantum": quantum}
    known, ignored = (batch("MassSpringDamper", 4, delay=delay, **given) for delay in (2, 0))
    loud = inputs(known, 100, 1)
    for env, right in ((known, True), (ignored, False)):
        quiet, moved = play(env, 0.0 * loud)[0], play(env, loud)[0]
        assert (float((moved - quiet).abs().max()) <= 1e-12) == right
    _, applied, _ = play(known, loud)
    sent = play(ignored, loud)[1]
    assert bool((applied[:2] == 0.0).all())
    if quantum:
        multiples = applied / quantum
        torch.testing.assert_close(multiples, multiples.round(), rtol=0.0, atol=1e-9)
        assert bool((sent != 0.0).any())


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize(
    ("name", "delay"),
    [
        ("QubeServo", 2),
        pytest.param("QubeServo", 0, marks=pytest.mark.soak),
        ("DoubleIntegrator", 0),
        pytest.param("DoubleIntegrator", 2, marks=pytest.mark.soak),
    ],
)
def test_every_autoreset_mode_is_that_of_gymnasiums_vector_of_single_wrappers(name, mode, delay):
    env = gymnasium.make_vec(task(name), num_envs=3, autoreset_mode=mode, max_episode_steps=7)
    mine = YoulaVectorWrapper(env, delay=delay)
    theirs = SyncVectorEnv(
        [lambda: YoulaWrapper(gymnasium.make(task(name), max_episode_steps=7), delay=delay) for _ in range(3)],
        autoreset_mode=mode,
    )
    left, left_info = mine.reset(seed=5)
    right, right_info = theirs.reset(seed=5)
    mine.unwrapped.elapsed = np.array([0, 2, 4])
    for row, elapsed in enumerate([0, 2, 4]):
        theirs.envs[row].set_wrapper_attr("_elapsed_steps", elapsed)
    ended = 0
    generator = np.random.default_rng(0)
    for _ in range(25):
        actions = generator.normal(size=(3, 1)).astype(np.float32)
        left, reward, terminated, truncated, left_info = mine.step(torch.as_tensor(actions))
        right, oracle_reward, oracle_terminated, oracle_truncated, right_info = theirs.step(actions)
        np.testing.assert_allclose(left.numpy(), right, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(reward.numpy(), oracle_reward, rtol=1e-5, atol=1e-6)
        assert np.array_equal(truncated.numpy(), oracle_truncated)
        assert np.array_equal(terminated.numpy(), oracle_terminated)
        done = (terminated | truncated).numpy()
        if mode is AutoresetMode.SAME_STEP and done.any():
            for row in np.flatnonzero(done):
                np.testing.assert_allclose(
                    left_info["final_obs"][row], right_info["final_obs"][row], rtol=1e-5, atol=1e-5
                )
                for key in ("innovation", "estimate", "applied_input"):
                    np.testing.assert_allclose(
                        left_info["final_info"][key][row], right_info["final_info"][key][row], rtol=1e-6, atol=1e-7
                    )
        for key in ("innovation", "estimate"):
            np.testing.assert_allclose(left_info[key].numpy(), right_info[key], rtol=1e-6, atol=1e-6)
        if mode is AutoresetMode.DISABLED and done.any():
            left, left_info = mine.reset(options={"reset_mask": done.copy()})
            right, _ = theirs.reset(options={"reset_mask": done.copy()})
            np.testing.assert_allclose(left.numpy(), right, rtol=1e-5, atol=1e-5)
        ended += int(done.sum())
    assert ended >= 8


def test_a_mask_resets_only_what_it_marks():
    env = batch("DoubleIntegrator", 3, mode="DISABLED")
    env.reset(seed=0)
    for _ in range(4):
        seen, *_, before = env.step(torch.ones(3, 1))
    mask = np.array([False, True, False])
    after_seen, after = env.reset(options={"reset_mask": mask})
    assert torch.equal(after_seen[[0, 2]], seen[[0, 2]])
    assert bool((after["estimate"][1] != before["estimate"][1]).all())
    for key, value in before.items():
        assert torch.equal(after[key][[0, 2]], value[[0, 2]]), key
    assert torch.equal(after["applied_input"][1], torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ["current", "predictor"])
def test_without_a_youla_input_the_cost_is_the_base_controllers(estimator):
    env = batch("MassSpringDamper", 3000, mode="DISABLED", steps=400, estimator=estimator)
    model, design = env.controller.model, env.controller.design
    gain = design.M if estimator == "current" else design.L
    expected = stationary_cost(
        model.A, model.B, model.C, design.Q, design.R, design.W, design.V, design.K, gain, estimator
    )
    env.reset(seed=0)
    total = torch.zeros(3000, dtype=torch.float64)
    for step in range(300):
        _, reward, *_ = env.step(torch.zeros(3000, 1))
        total += -reward if step >= 150 else 0.0
    costs = total / 150
    error = float(costs.std()) / len(costs) ** 0.5
    assert abs(float(costs.mean()) - expected) < 4.0 * error and error < 0.01 * expected


@pytest.mark.parametrize("name", ["DoyleLQG", "DCMotor", "AircraftPitch"])
def test_a_static_youla_gain_turns_the_predictor_into_the_current_estimator(name):
    current, predictor = batch(name, 4, mode="DISABLED"), batch(name, 4, mode="DISABLED", estimator="predictor")
    controller = predictor.controller
    direct = torch.as_tensor(controller.design.K @ controller.design.M)
    static = -torch.linalg.inv(controller.input_scale) @ direct @ torch.linalg.inv(controller.innovation_scale)
    current.reset(seed=0)
    seen, _ = predictor.reset(seed=0)
    for _ in range(30):
        youla = seen @ static.T
        assert bool((youla.abs() < controller.youla_high).all())
        *_, one = current.step(torch.zeros(4, 1))
        seen, *_, other = predictor.step(youla)
        torch.testing.assert_close(one["applied_input"], other["applied_input"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one["innovation"], other["innovation"], rtol=1e-9, atol=1e-9)


def test_what_is_returned_is_the_callers():
    env = batch("QubeServo", 2)
    seen, info = env.reset(seed=0)
    kept = {key: value.clone() for key, value in info.items()}
    seen.fill_(7.0)
    for value in info.values():
        value.fill_(7.0)
    _, again = env.reset(options={"reset_mask": np.array([True, False])})
    for key, value in kept.items():
        assert torch.equal(again[key][1], value[1])


def test_wrong_actions_change_nothing():
    env, twin = batch("QubeServo", 2), batch("QubeServo", 2)
    with pytest.raises(InvalidValueError, match="before reset"):
        env.step(torch.zeros(2, 1))
    env.reset(seed=0), twin.reset(seed=0)
    wrong = [
        (torch.full((2, 1), torch.nan), NonFiniteError),
        (torch.zeros(3, 1), ShapeError),
        (torch.zeros(2, 1, dtype=torch.int64), ShapeError),
        ("a", ShapeError),
    ]
    for actions, error in wrong:
        with pytest.raises(error):
            env.step(actions)
    actions = np.full((2, 1), 0.3)
    assert torch.equal(env.step(actions)[0], twin.step(torch.as_tensor(actions))[0])


def test_it_works_in_inference_mode_and_with_trusted_actions():
    env, twin = batch("QubeServo", 2), batch("QubeServo", 2)
    twin.unwrapped.trusts_actions = True
    with torch.inference_mode():
        env.reset(seed=0)
        first = env.step(torch.ones(2, 1))[0]
    twin.reset(seed=0)
    assert torch.equal(first, twin.step(torch.ones(2, 1))[0])
    env.reset(seed=1)


def test_numpy_vectors_are_refused():
    with pytest.raises(InvalidValueError, match="TorchVectorEnv"):
        YoulaVectorWrapper(SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")]))
