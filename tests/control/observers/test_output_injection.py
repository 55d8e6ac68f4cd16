"""Observers whose error is exactly linear on the nonlinear plant, and where there are none."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from robust_policies.control.observers import boundedness, error_bound, find_output_injection
from robust_policies.envs import load_plant
from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError
from robust_policies.policies import (
    ObserverVectorWrapper,
    ObserverWrapper,
    YoulaPolicy,
    YoulaVectorWrapper,
    YoulaWrapper,
)
from robust_policies.policies.youla.observed import ObserverController

PENDULUM = "robust_policies/PendulumNoVelocity-v0"
# The whole circle, and the speeds that a step does not bring to their limit of 8 rad/s.
REGION = (3.2, 6.9)


@pytest.fixture(scope="module")
def observer():
    """Return the observer of the pendulum whose angle is measured."""
    return find_output_injection(load_plant("pendulum_no_velocity"), REGION)


def test_the_form_of_the_pendulum_is_proven_and_others_are_refuted(observer):
    assert observer.defect < 1e-12 and observer.model.p == 1 and observer.design.rho_estimator < 1
    for name, region, words in (
        ("maglev", (0.02, 0.5, 1.0), "next current"),
        ("qube_servo", (0.5, 0.5, 1.0, 1.0), "not linear in what is not measured"),
        ("cartpole_continuous", (1.0,) * 4, "measures all"),
        ("pendulum_no_velocity", (3.2, 20.0), "clipped|not linear"),
    ):
        with pytest.raises(InvalidValueError, match=words):
            find_output_injection(load_plant(name), region)
    with pytest.raises(ShapeError, match="2 half widths"):
        find_output_injection(load_plant("pendulum_no_velocity"), (1.0,))


def test_a_linear_plant_has_the_form_everywhere():
    found = find_output_injection(load_plant("mass_spring_damper"), (1.0, 1.0))
    state, u = torch.randn(5, found.state_size).double(), torch.randn(5, found.input_size).double()
    y = found.plant.observe(state, found.plant.prepare(found.plant.nominal()))
    following = found.advance(state, y, u)
    assert torch.allclose(following, found.plant.advance(state, u, found.plant.prepare(found.plant.nominal())))


def played(observer, inputs, noise=0.0, seed=0, order=None):
    """Return states, estimates and innovations of the pendulum near the bottom, the first estimate off by 0.2 rad."""
    plant, params = observer.plant, observer.plant.prepare(observer.plant.nominal())
    rng = np.random.default_rng(seed)
    x = torch.tensor([[2.9, 0.0]], dtype=torch.float64)
    xh = torch.tensor([[2.7, 0.5]], dtype=torch.float64)
    states, estimates, innovations = [], [], []
    for u in inputs:
        angle = x[:, :1] + noise * float(rng.normal())
        y = torch.cat((angle.cos(), angle.sin()), 1)
        innovation = observer.innovation(xh, y)
        action = torch.tensor([[float(u)]], dtype=torch.float64)
        states.append(x[0]), estimates.append(xh[0]), innovations.append(innovation[0])
        if order is None:
            xh = observer.advance(xh, y, action)
        else:
            xh = order(xh, y, action, innovation)
        x = plant.advance(x, action, params)
    return torch.stack(states), torch.stack(estimates), torch.stack(innovations)


def test_the_error_is_linear_whatever_the_input(observer):
    inputs = 1.5 * np.sin(0.7 * np.arange(25)) + 2.0 * (np.arange(25) % 7 == 0)
    states, estimates, _ = played(observer, inputs)
    F = torch.as_tensor(observer.model.A - observer.design.L @ observer.model.C)
    error = states - estimates
    assert bool((states[:, 1].abs() < REGION[1]).all())
    for t in range(24):
        assert torch.allclose(error[t + 1], F @ error[t], rtol=0, atol=1e-13)
    assert float(error[-1].abs().max()) < 1e-2


def test_the_innovation_does_not_depend_on_the_input_and_a_copy_of_the_plant_does(observer):
    one, other = 0.5 * np.sin(np.arange(20)), -1.9 * np.cos(1.3 * np.arange(20))
    found = [played(observer, inputs)[2] for inputs in (one, other)]
    assert float((found[0] - found[1]).abs().max()) < 1e-12
    params = observer.plant.prepare(observer.plant.nominal())
    L = torch.as_tensor(observer.design.L)

    def copied(xh, y, action, innovation):
        return observer.plant.advance(xh, action, params) + innovation @ L.T

    wrong = [played(observer, inputs, order=copied)[2] for inputs in (one, other)]
    assert float((wrong[0] - wrong[1]).abs().max()) > 1e-6
    loud = [played(observer, inputs, noise=1e-2)[2] for inputs in (one, other)]
    assert 1e-9 < float((loud[0] - loud[1]).abs().max()) < 1e-2


def test_the_error_bound_holds_along_runs_and_ends_where_it_says(observer):
    A, L, C = observer.model.A, observer.design.L, observer.model.C
    bound = error_bound(A, L, C, np.array([0.2, 0.5]), disturbance=0.01)
    assert bound.rate < 1 and bound.largest == pytest.approx(max(bound.start, bound.steady))
    rng = np.random.default_rng(0)
    for _ in range(20):
        e = rng.uniform(-1, 1, 2) * [0.2, 0.5]
        for t in range(60):
            assert np.sqrt(e @ bound.P @ e) <= bound.at(t) and (np.abs(e) <= bound.each(t)).all()
            d = rng.normal(size=2)
            e = (A - L @ C) @ e + 0.01 * d / np.linalg.norm(d)
    assert bound.at(10**5) == pytest.approx(bound.steady)
    with pytest.raises(InvalidValueError, match="spectral radius"):
        error_bound(A, L, C, np.ones(2), rate=0.3)
    with pytest.raises(InvalidValueError, match="spectral radius"):
        error_bound(A, 0.0 * L, C, np.ones(2))


def test_boundedness_is_claimed_with_what_it_needs_or_not_at_all():
    held = boundedness(youla=1.0, gain=3.0, error=0.2, admissible=1.7, region="|x| <= 1")
    assert held.proven and "every Youla parameter" in held.claim and "It bounds no gain" in held.claim
    missed = boundedness(youla=1.0, gain=3.0, error=0.2, admissible=1.5, region="|x| <= 1")
    assert not missed.proven and missed.claim.startswith("Not proven")


def innovations(gain, noise=None, observer="injection", steps=30):
    env = YoulaWrapper(gymnasium.make(PENDULUM), observer=observer, region=REGION)
    env.reset(seed=0, options={"state": np.array([0.25, 0.1])})
    found, q = [], 0.0
    for _ in range(steps):
        found.append(env.step(np.array([np.clip(q, *(end[0] for end in (env.action_space.low, env.action_space.high)))],
                                       dtype=env.action_space.dtype))[4]["innovation"])  # fmt: skip
        q = gain * np.tanh(3.0 * found[-1][0]) + 0.3 * gain
    return np.array(found)


def test_in_the_youla_wrapper_the_innovation_is_free_of_the_policy():
    # Observations are float32; the innovations of both runs differ by their rounding alone.
    exact = np.abs(innovations(0.0) - innovations(6.0)).max()
    linear = np.abs(innovations(0.0, observer="linear") - innovations(6.0, observer="linear")).max()
    assert exact < 5e-6 and linear > 100 * exact


def test_in_float64_it_is_free_of_the_policy_to_rounding():
    def run(gain):
        env = YoulaVectorWrapper(
            gymnasium.make_vec(PENDULUM, num_envs=2, dtype="float64"), observer="injection", region=REGION
        )
        env.reset(seed=0, options={"state": np.array([[0.25, 0.1], [-0.2, 0.3]])})
        found, youla = [], torch.zeros(2, 1, dtype=torch.float64)
        for _ in range(30):
            info = env.step(youla)[4]
            found.append(info["innovation"])
            youla = gain * torch.tanh(3.0 * found[-1]) + 0.3 * gain
        return torch.stack(found), info["saturations"], env

    quiet, _, env = run(0.0)
    moved, saturations, _ = run(6.0)
    assert isinstance(env.controller, ObserverController)
    assert float((quiet - moved).abs().max()) < 1e-12
    # What the actuator clips is known to the observer.
    assert int(saturations.sum()) > 0


def test_an_observer_that_was_found_before_is_that_of_its_name(observer):
    rows = []
    for given in ({"observer": observer}, {"observer": "injection", "region": REGION}):
        env = YoulaWrapper(gymnasium.make(PENDULUM), **given)
        rows.append([env.reset(seed=0)[0], *(env.step(np.ones(1))[0] for _ in range(3))])
    assert np.array_equal(*rows)


def test_a_policy_with_this_observer_is_not_saved_as_another():
    env = YoulaWrapper(gymnasium.make(PENDULUM), observer="injection", region=REGION)
    with pytest.raises(InvalidValueError, match="inside the wrapper"):
        YoulaPolicy.of(env, None)
    with pytest.raises(UnknownNameError, match="Did you mean 'injection'"):
        YoulaWrapper(gymnasium.make(PENDULUM), observer="injektion")
    with pytest.raises(ShapeError, match="region"):
        YoulaWrapper(gymnasium.make(PENDULUM), observer="injection")


def test_the_estimate_is_a_feature_of_one_environment_and_of_many(observer):
    bound = error_bound(observer.model.A, observer.design.L, observer.model.C, np.array([3.2, 1.1]))
    options = {"include": ("observation", "estimate", "bound"), "bound": bound}
    one = ObserverWrapper(gymnasium.make(PENDULUM), observer, **options)
    many = ObserverVectorWrapper(gymnasium.make_vec(PENDULUM, num_envs=2), observer, **options)
    assert one.observation_space.shape == (6,) and many.single_observation_space.shape == (6,)
    start = np.array([[0.25, 0.1], [-0.2, 0.3]])
    first, _ = one.reset(seed=3, options={"state": start[1]})
    several, _ = many.reset(seed=3, options={"state": start})
    assert first in one.observation_space and np.allclose(first, several[1].numpy(), atol=1e-6)
    for t in range(12):
        action = np.array([np.sin(t)], dtype=np.float32)
        seen, _, _, _, info = one.step(action)
        several, *_ = many.step(torch.as_tensor(np.stack((action, action))))
        assert np.allclose(seen, several[1].numpy(), atol=1e-5)
        error = one.unwrapped.state - info["estimate"]
        assert np.allclose(seen[2:4], info["estimate"], atol=1e-5) and seen.dtype == np.float32
    # It begins at the equilibrium, and goes by the linear error from there.
    A, L, M, C = observer.model.A, observer.design.L, observer.design.M, observer.model.C
    expected = (np.eye(2) - M @ C) @ np.linalg.matrix_power(A - L @ C, 12) @ start[1]
    assert np.allclose(error, expected, atol=1e-5)
    assert np.allclose(seen[4:], bound.each(12), rtol=1e-5)


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_an_estimate_begins_with_its_episode(observer, mode):
    envs = gymnasium.make_vec(PENDULUM, num_envs=2, max_episode_steps=3, autoreset_mode=mode)
    env = ObserverVectorWrapper(envs, observer)
    env.reset(seed=0)
    begun = observer.corrected(observer.start(2, torch.zeros(1, dtype=torch.float64)), torch.zeros(2, 2).double())
    assert begun.shape == (2, 2)
    for _ in range(3 if mode == "SAME_STEP" else 4):
        seen, _, _, truncated, info = env.step(torch.zeros(2, 1))
    fresh = observer.corrected(observer.start(2, begun), seen[:, :2].double())
    assert torch.allclose(info["estimate"], fresh, atol=1e-6)
    if mode == "SAME_STEP":
        assert bool(truncated.all()) and info["final_obs"].shape == (2, 4)
        assert not torch.allclose(info["final_obs"][:, 2:].double(), fresh, atol=1e-3)


def test_features_that_do_not_fit_are_refused(observer):
    env = gymnasium.make(PENDULUM)
    with pytest.raises(UnknownNameError, match="Did you mean 'estimate'"):
        ObserverWrapper(env, observer, include=("estimates",))
    with pytest.raises(InvalidValueError, match="bound"):
        ObserverWrapper(env, observer, include=("bound",))
    with pytest.raises(ShapeError, match="input"):
        ObserverWrapper(gymnasium.make("robust_policies/Quadrotor-v0"), observer)
    # The levitation has as many observations and inputs as the pendulum.
    other = gymnasium.make("robust_policies/MagLev-v0")
    for wrap in (ObserverWrapper, lambda env, one: YoulaWrapper(env, observer=one)):
        with pytest.raises(InvalidValueError, match="a pendulum plant and the environment's is a maglev plant"):
            wrap(other, observer)
        with pytest.raises(ShapeError, match="the observer reads 2"):
            wrap(gymnasium.wrappers.TransformObservation(env, lambda seen: seen[:1], Box(-1, 1, (1,))), observer)
    with pytest.raises(InvalidValueError, match="before reset"):
        ObserverWrapper(env, observer).step(np.zeros(1))
