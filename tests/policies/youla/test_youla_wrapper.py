"""One environment in a YoulaWrapper: the observer, what is sent, and what is refused."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from youla_cases import LINEAR, hand_written, task

from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError, UnknownNameError
from robust_policies.policies import YoulaOptions, YoulaWrapper
from robust_policies.policies.youla import wrapper

NONLINEAR = ("QubeServo", "CartPoleContinuous", "MagLev", "Pendulum", "InvertedPendulum")


def made(name, **options):
    return YoulaWrapper(gymnasium.make(task(name)).unwrapped, **options)


@pytest.mark.filterwarnings("ignore:.*(symmetric and normalized|different from the unwrapped)")
@pytest.mark.parametrize("name", LINEAR + NONLINEAR)
def test_both_checkers_pass(name):
    check_env(made(name), skip_render_check=True)
    check_env_sb3(made(name))


@pytest.mark.parametrize("estimator", ["current", "predictor"])
@pytest.mark.parametrize("quantum", [0.0, 0.25])
def test_a_loop_written_out_by_hand_does_the_same(estimator, quantum):
    env, twin = made("DoyleLQG", estimator=estimator, quantum=quantum), gymnasium.make(task("DoyleLQG")).unwrapped
    controller = env.controller
    model, design = controller.model, controller.design
    M = design.M if estimator == "current" else 0.0 * design.M
    seen, info = env.reset(seed=3)
    y, _ = twin.reset(seed=3)
    state = np.zeros(2)
    generator = np.random.default_rng(0)
    root = np.linalg.cholesky(model.C @ design.S @ model.C.T + design.V)
    factor = np.linalg.inv(np.linalg.cholesky(design.R + model.B.T @ design.P @ model.B)).T
    for _ in range(100):
        youla = generator.normal(size=1) * 500.0
        clipped = np.clip(youla, env.action_space.low, env.action_space.high)

        def send(base, clipped=clipped):
            u = np.clip(base + factor @ clipped, -300.0, 300.0)
            u = quantum * np.round(u / quantum) if quantum else u
            return u.astype(np.float32).astype(np.float64)

        estimate, innovation, u, state = hand_written(
            model.A, model.B, model.C, design.K, design.L, M, y.astype(np.float64), send, state
        )
        np.testing.assert_allclose(info["innovation"], innovation, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(info["estimate"], estimate, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(seen, np.linalg.solve(root, innovation), rtol=1e-5, atol=1e-6)
        seen, reward, *_, info = env.step(youla)
        y, twin_reward, *_ = twin.step(u)
        np.testing.assert_allclose(info["applied_input"], u, rtol=1e-12)
        assert reward == pytest.approx(twin_reward, rel=1e-12)
    assert np.array_equal(env.unwrapped.state, twin.state)


def test_angles_are_wrapped():
    env = made("QubeServo")
    for turns in (-3, 2):
        start = np.array([2.0 * np.pi * turns + 0.3, 0.1, 0.0, 0.0])
        _, info = env.reset(seed=0, options={"state": start})
        # The encoders' noise is 0.01 rad.
        np.testing.assert_allclose(info["innovation"], [0.3, 0.1], atol=0.06)


def test_the_reserve_bounds_what_the_youla_input_takes():
    half = made("DoubleIntegrator", reserve=0.5)
    full = made("DoubleIntegrator")
    assert half.action_space.high == pytest.approx(0.5 * full.action_space.high, rel=1e-6)
    scale = half.controller.input_scale.numpy()
    assert np.abs(scale @ half.action_space.high) == pytest.approx(0.5, rel=1e-6)
    limited = made("DoubleIntegrator", limit=0.25)
    assert limited.action_space.high == pytest.approx(0.25)
    one, other = made("DoubleIntegrator", limit=0.25), made("DoubleIntegrator", limit=0.25)
    one.reset(seed=0), other.reset(seed=0)
    taken = one.step(np.array([0.25], dtype=np.float32))[4]["applied_input"]
    assert np.array_equal(taken, other.step(np.array([7.0], dtype=np.float32))[4]["applied_input"])


def test_within_its_saturation_budget_no_input_is_clipped():
    env = made("DoubleIntegrator", limit=0.05)
    controller = env.controller
    budget = controller.saturation()
    assert budget.reserve == pytest.approx(np.abs(controller.input_scale.numpy()) @ [0.05], rel=1e-6)
    assert budget.innovation > 0
    env.reset(seed=0, options={"state": np.zeros(2)})
    generator = np.random.default_rng(0)
    largest = 0.0
    for _ in range(300):
        *_, info = env.step(generator.choice([-0.05, 0.05], size=1).astype(np.float32))
        largest = max(largest, float(np.abs(info["innovation"]).max()))
        assert largest > budget.innovation or np.abs(info["applied_input"]) < 1.0
    assert made("DoubleIntegrator").controller.saturation().exhausted


def test_at_the_start_nothing_was_applied_and_the_estimate_is_the_equilibrium():
    env = made("MagLev", estimator="predictor")
    _, info = env.reset(seed=0)
    model = env.controller.model
    assert np.array_equal(info["applied_input"], model.u0) and np.array_equal(info["estimate"], model.x0)
    for _ in range(5):
        env.step(env.action_space.sample())
    assert np.array_equal(env.reset(seed=0)[1]["innovation"], info["innovation"])


@pytest.mark.parametrize("name", ["output", "estimate", "state", "action"])
def test_signals_that_close_a_loop_are_refused_with_the_reason(name):
    with pytest.raises(InvalidValueError, match=f"{name}.*second feedback loop"):
        made("DoubleIntegrator", observe=("innovation", name))


def test_a_reference_that_actions_change_is_refused_and_a_true_one_is_read():
    env = gymnasium.make(task("CartPoleContinuous")).unwrapped
    with pytest.raises(InvalidValueError, match="depends on the actions"):
        YoulaWrapper(env, reference=(3,))
    plant = gymnasium.make(task("QuadrotorPlanar")).unwrapped.plant
    # The velocities that the planar quadrotor is to have follow from the clock.
    assert wrapper.uninfluenced(plant) == (7, 8)


class WithClock(gymnasium.ObservationWrapper):
    """Adds sin(t / 10) to the observation: a reference."""

    def __init__(self, env):
        super().__init__(env)
        low, high = (
            np.append(side, limit) for side, limit in ((env.observation_space.low, -1), (env.observation_space.high, 1))
        )
        self.observation_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))

    def reset(self, **kwargs):
        self.clock = 0
        return super().reset(**kwargs)

    def observation(self, observation):
        self.clock += 1
        return np.append(observation, np.float32(np.sin((self.clock - 1) / 10)))


def test_the_policy_reads_a_reference_and_the_observer_does_not():
    plain = made("DoubleIntegrator")
    controller = plain.controller
    env = YoulaWrapper(WithClock(plain.env), controller.model, controller.design, reference=(1,))
    assert env.observation_space.shape == (2,) and env.observation_space.high.tolist() == [np.inf, 1.0]
    twin = made("DoubleIntegrator")
    seen, _ = env.reset(seed=0)
    alone, _ = twin.reset(seed=0)
    for t in range(20):
        assert seen[0] == alone[0] and seen[1] == np.float32(np.sin(t / 10))
        seen, *_ = env.step(np.array([0.1], dtype=np.float32))
        alone, *_ = twin.step(np.array([0.1], dtype=np.float32))


def test_an_innovation_that_is_observed_already_needs_no_wrapper():
    with pytest.raises(InvalidValueError, match="innovation already"):
        made("YoulaExample")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reserve": 1.0}, InvalidValueError, "reserve is 1.0"),
        ({"reserve": -0.1}, InvalidValueError, "reserve"),
        ({"limit": 1e6}, InvalidValueError, "allow at most"),
        ({"quantum": -1.0}, InvalidValueError, "quantum"),
        ({"delay": -1}, InvalidValueError, "delay"),
        ({"reference": (7,)}, InvalidValueError, "reference"),
        ({"estimator": "best"}, InvalidValueError, "estimator"),
        ({"observe": ("innovations",)}, UnknownNameError, "Did you mean 'innovation'"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        made("DoubleIntegrator", **options)


def test_a_model_of_another_plant_is_refused():
    one, other = made("DoubleIntegrator").controller, made("AircraftPitch").controller
    env = gymnasium.make(task("QubeServo")).unwrapped
    with pytest.raises(ShapeError, match="measures 2 output"):
        YoulaWrapper(env, one.model, one.design)
    with pytest.raises(ShapeError, match="design"):
        YoulaWrapper(gymnasium.make(task("AircraftPitch")).unwrapped, other.model, one.design)
    with pytest.raises(InvalidValueError, match="without its model"):
        YoulaWrapper(env, design=one.design)
    with pytest.raises(InvalidValueError, match="spectral radius"):
        made("DoyleLQG", model=made("DoyleLQG").controller.model, design=one.design)


def test_other_environments_need_a_model_and_vectors():
    with pytest.raises(InvalidValueError, match="no plant of this package"):
        YoulaWrapper(gymnasium.make("Pendulum-v1"))
    with pytest.raises(InvalidValueError, match="expected a Box"):
        YoulaWrapper(gymnasium.make(task("CartPole")))


def test_wrong_actions_change_nothing():
    env, twin = made("QubeServo"), made("QubeServo")
    with pytest.raises(InvalidValueError, match="before reset"):
        env.step(np.zeros(1))
    env.reset(seed=0), twin.reset(seed=0)
    for action, error in ((np.array([np.nan]), NonFiniteError), (np.zeros(2), ShapeError), ("a", ShapeError)):
        with pytest.raises(error):
            env.step(action)
    action = np.array([0.3], dtype=np.float32)
    assert np.array_equal(env.step(action)[0], twin.step(action)[0])


def test_options_are_given_together_or_by_their_names_and_a_wrong_name_is_answered_with_the_right_one():
    together = YoulaOptions(reserve=0.2, quantum=0.25, region=(1.0,) * 4)
    options = [
        made("QubeServo", options=together).controller.options,
        made("QubeServo", reserve=0.2, quantum=0.25, region=[1.0] * 4).controller.options,
        made(
            "QubeServo", options=YoulaOptions(reserve=0.5, quantum=0.25), reserve=0.2, region=[1.0] * 4
        ).controller.options,
    ]
    assert options[0] == options[1] == options[2]
    with pytest.raises(UnknownNameError, match=r"resreve.*reserve"):
        made("QubeServo", resreve=0.2)
    with pytest.raises(InvalidValueError, match=r"reserve is 1\.5"):
        made("QubeServo", reserve=1.5)


def test_a_specification_holds_each_option_by_its_name_and_makes_the_environment_again():
    env = YoulaWrapper(gymnasium.make(task("QubeServo")), options=YoulaOptions(reserve=0.2, delay=1))
    (given,) = [one.kwargs for one in env.spec.additional_wrappers if "Youla" in one.name]
    assert given["reserve"] == 0.2 and given["delay"] == 1 and given["reference"] is None and "options" not in given
    again = gymnasium.make(type(env.spec).from_json(env.spec.to_json()))
    assert again.controller.options == env.controller.options
