"""The differentiable step: gradients of every torch-native task against finite differences, and what it refuses."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from robust_policies.envs import TorchVectorEnv, gradient, load_plant
from robust_policies.envs.streams import normals, uniforms_for_normals
from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.files import assets

OTHERS = [
    "half_cheetah", "hopper", "hopper_no_velocity", "inverted_double_pendulum", "inverted_pendulum", "reacher",
    "walker2d",
]  # fmt: skip
TASKS = [name for name in assets.task_names() if name not in OTHERS]
ROWS = 2


def spread(*shape):
    """Return numbers in [-1, 1] that are no two alike and none special."""
    count = math.prod(shape)
    return torch.sin(1.0 + 1.7 * torch.arange(count, dtype=torch.float64)).reshape(shape)


def point(plant, params):
    """Return states near the start distribution and actions inside the limits, away from every kink."""
    uniform = 0.5 + 0.3 * spread(ROWS, plant.reset_size)
    state = plant.initial(uniform, params)
    sizes = state.abs().amax(0).clamp(0.01, 1.0)
    state = state + 0.1 * sizes * spread(ROWS, plant.state_size)
    low, high = torch.tensor(plant.action_low), torch.tensor(plant.action_high)
    action = 0.5 * (low + high) + 0.3 * (high - low) * spread(ROWS, plant.action_size)
    return state.detach(), action.detach()


def scaled(value):
    """Return the size of a physical parameter's entries, so that a small change of each is seen in float64."""
    return value.abs().amax() if value.abs().amax() > 0 else torch.ones((), dtype=value.dtype)


def checked(function, *inputs, step=1e-6):
    inputs = tuple(value.detach().clone().requires_grad_() for value in inputs)
    outputs = function(*inputs)
    assert any(output.requires_grad for output in outputs)
    assert gradcheck(function, inputs, eps=step, atol=1e-6, rtol=1e-5)


def smooth(transition):
    return transition.state, transition.observation, transition.reward


def weighed(transition):
    """Return one number for each output, in which every entry has a weight of its own: quicker, and as telling."""
    return [(spread(*value.shape) * value).sum() for value in smooth(transition)]


def test_all_kinds_of_tasks_are_here():
    kinds = {load_plant(name).kind for name in TASKS}
    assert {"pendulum", "linear", "held_disturbance", "cartpole", "qube", "maglev"} <= kinds
    assert {"quadrotor_planar", "quadrotor"} <= kinds
    assert {name for name in assets.task_names() if not load_plant(name).differentiable} == set(OTHERS)


@pytest.mark.parametrize("task", TASKS)
def test_gradients_for_state_and_action(task):
    plant = load_plant(task)
    params = plant.prepare(plant.nominal())
    checked(lambda x, u: smooth(gradient.step(plant, x, u, params)), *point(plant, params))


@pytest.mark.parametrize("each", [pytest.param(False, marks=pytest.mark.soak), True], ids=["one for all", "one each"])
@pytest.mark.parametrize("task", TASKS)
def test_gradients_for_physical_parameters(task, each):
    plant = load_plant(task)
    nominal = plant.nominal()
    state, action = point(plant, plant.prepare(nominal))
    disturbance = 0.1 * spread(ROWS, len(plant.disturbance_names))
    assert nominal
    for name, value in nominal.items():
        shape = (ROWS, *value.shape) if each else value.shape

        def of(change, name=name, value=value):
            params = plant.prepare({**nominal, name: value + scaled(value) * change})
            return weighed(gradient.step(plant, state, action, params, disturbance=disturbance))

        # Not smaller: the matrix exponential of the stiff motor rounds to 1e-12, its derivative is exact to 1e-11.
        checked(of, 0.01 * spread(*shape), step=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_gradients_for_noise_and_disturbance(task):
    plant = load_plant(task)
    params = plant.prepare(plant.nominal())
    state, action = point(plant, params)
    if plant.kind == "held_disturbance":
        # Its noise acts where the clock is about to reach a multiple of `hold`.
        state[:, -1] = plant.hold - 1
    sizes = (plant.process_noise_size, plant.measurement_noise_size, len(plant.disturbance_names))
    assert sizes[2] > 0

    def of(*given):
        values = iter(given)
        noise = [next(values) if size else None for size in sizes]
        return smooth(gradient.step(plant, state, action, params, *noise))

    checked(of, *(0.01 * spread(ROWS, size) for size in sizes if size))


@pytest.mark.parametrize("task", TASKS)
def test_every_state_and_action_matters_to_what_follows(task):
    plant = load_plant(task)
    params = plant.prepare(plant.nominal())
    state, action = (value.requires_grad_() for value in point(plant, params))
    result = gradient.step(plant, state, action, params)
    for_action = torch.autograd.grad(result.state.sum(), action, retain_graph=True)[0]
    assert (for_action.abs().amax(0) > 0).all()
    clock = [i for i, name in enumerate(plant.state_names) if "clock" in name]
    for_state = torch.autograd.grad(result.state.sum(), state)[0].abs().amax(0)
    assert (for_state > 0).all() and all(float(for_state[i]) == 1.0 for i in clock)


@pytest.mark.parametrize("task", TASKS)
def test_nothing_given_is_changed(task):
    plant = load_plant(task)
    physical = plant.nominal()
    params = plant.prepare(physical)
    state, action = point(plant, params)
    sizes = (plant.process_noise_size, plant.measurement_noise_size, len(plant.disturbance_names))
    given = [state, action, *(spread(ROWS, size) for size in sizes)]
    everything = [*given, *physical.values(), *params.values()]
    before = [value.clone() for value in everything]
    versions = [value._version for value in everything]
    first = gradient.step(plant, state, action, params, *given[2:])
    second = gradient.step(plant, state, action, params, *given[2:])
    assert all(torch.equal(value, then) for value, then in zip(everything, before, strict=True))
    assert [value._version for value in everything] == versions
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    owned = {value.data_ptr() for value in everything}
    assert first.state.data_ptr() not in owned


@pytest.mark.parametrize("task", TASKS)
def test_any_leading_dimensions_give_the_same(task):
    plant = load_plant(task)
    params = plant.prepare(plant.nominal())
    state, action = point(plant, params)
    rows = gradient.step(plant, state, action, params)
    one = gradient.step(plant, state[1], action[1], params)
    many = gradient.step(plant, state.expand(3, ROWS, -1), action.expand(3, ROWS, -1), params)
    for whole, single, repeated in zip(rows, one, many, strict=True):
        torch.testing.assert_close(single, whole[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(repeated, whole.expand(3, *whole.shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_the_vectorized_environment_takes_the_same_step(task):
    env = TorchVectorEnv(task, 4, dtype="float64", autoreset_mode="DISABLED")
    env.reset(seed=1)
    plant = env.plant
    if len(plant.disturbance_names):
        env.disturbance = 0.01 * spread(4, len(plant.disturbance_names))
    low, high = torch.tensor(plant.action_low), torch.tensor(plant.action_high)
    process, measurement = plant.process_noise_size, plant.measurement_noise_size
    for k in range(5):
        if plant.discrete_actions is None:
            given = action = 0.5 * (low + high) + 0.3 * (high - low) * spread(4, plant.action_size)
        else:
            given = torch.arange(k, k + 4) % len(plant.discrete_actions)
            action = torch.tensor(plant.discrete_actions)[given]
        noise = [None, None]
        if process + measurement:
            streams = copy.deepcopy(env._streams)
            drawn = normals(streams.uniform(uniforms_for_normals(process + measurement)), process + measurement)
            noise = [drawn[:, :process] if process else None, drawn[:, process:] if measurement else None]
        expected = gradient.step(plant, env.state, action, env.prepared, *noise, env.disturbance)
        observation, reward, terminated, truncated, _ = env.step(given)
        torch.testing.assert_close(env.state, expected.state, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(observation, expected.observation, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(reward, expected.reward, rtol=1e-13, atol=1e-13)
        assert torch.equal(terminated, expected.terminated) and not truncated.any()
        if terminated.any():
            break


def test_the_gradient_of_a_rollout_is_that_of_finite_differences():
    plant = load_plant("pendulum")
    params = plant.prepare(plant.nominal())

    def total(gains, start):
        _, actions, rewards = gradient.rollout(plant, start, lambda y, t: (y * gains).sum(-1, True), params, 30)
        assert actions.abs().max() < plant.action_high[0]
        return rewards.sum(0)

    start = torch.tensor([[3.0, 0.1], [2.8, -0.2]], dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([0.1, -0.3, 0.2], dtype=torch.float64, requires_grad=True)
    assert gradcheck(total, (gains, start), eps=1e-6, atol=1e-6, rtol=1e-6)


def test_a_rollout_is_its_steps_one_after_the_other():
    plant = load_plant("pendulum")
    params = plant.prepare(plant.nominal())
    state, _ = point(plant, params)
    calls = []

    def policy(observation, t):
        calls.append(t)
        return 0.3 * observation[..., 1:2]

    states, actions, rewards = gradient.rollout(plant, state, policy, params, 6)
    assert calls == list(range(6))
    assert states.shape == (7, ROWS, 2) and actions.shape == (6, ROWS, 1) and rewards.shape == (6, ROWS)
    assert torch.equal(states[0], state)
    for t in range(6):
        following = gradient.step(plant, states[t], actions[t], params)
        assert torch.equal(following.state, states[t + 1]) and torch.equal(following.reward, rewards[t])
        assert torch.equal(actions[t], 0.3 * plant.observe(states[t], params)[..., 1:2])


def test_actions_beyond_the_limits_have_no_gradient():
    plant = load_plant("pendulum")
    params = plant.prepare(plant.nominal())
    action = torch.tensor([[3.0], [-3.0], [1.0]], dtype=torch.float64, requires_grad=True)
    state = torch.zeros(3, 2, dtype=torch.float64)
    slopes = torch.autograd.grad(gradient.step(plant, state, action, params).state.sum(), action)[0]
    assert slopes[:2].tolist() == [[0.0], [0.0]] and float(slopes[2]) > 0


@pytest.mark.parametrize("randomize", [False, True])
@pytest.mark.parametrize("task", ["pendulum", "mass_spring_damper"])
def test_gradients_flow_through_an_environments_own_parameters(task, randomize):
    env = TorchVectorEnv(task, ROWS, randomize=randomize, max_episode_steps=3)
    with torch.inference_mode():
        env.reset(seed=0)
        env.step(torch.zeros(ROWS, 1))
    for _ in range(4):
        env.step(torch.zeros(ROWS, 1))
    state = env.state.requires_grad_()
    gradient.step(env.plant, state, torch.zeros(ROWS, 1), env.prepared).state.sum().backward()
    assert state.grad is not None and (state.grad.abs() > 0).all()


@pytest.mark.parametrize("task", OTHERS)
def test_a_plant_that_is_not_differentiable_is_refused(task):
    plant = load_plant(task)
    state, action = torch.zeros(ROWS, plant.state_size), torch.zeros(ROWS, plant.action_size)
    with pytest.raises(InvalidValueError, match="is not differentiable; expected a torch-native task"):
        gradient.step(plant, state, action, {})
    with pytest.raises(InvalidValueError, match="is not differentiable"):
        gradient.rollout(plant, state, lambda y, t: action, {}, 2)


@pytest.mark.parametrize("task", ["pendulum", "linear"])
def test_wrong_shapes_are_named(task):
    plant = load_plant(task)
    params = plant.prepare(plant.nominal())
    state, action = point(plant, params)
    for given, message in (
        ((torch.zeros(ROWS, 5), action), r"state has shape \(2, 5\); expected \(2, 2\)"),
        ((state, torch.zeros(ROWS, 3)), r"action has shape \(2, 3\); expected \(2, 1\)"),
        ((state, torch.zeros(3, 1)), r"action has shape \(3, 1\); expected \(2, 1\)"),
        ((state, torch.zeros(1)), r"action has shape \(1,\); expected \(2, 1\)"),
    ):
        with pytest.raises(ShapeError, match=message):
            gradient.step(plant, *given, params)
    for name in ("process", "measurement", "disturbance"):
        with pytest.raises(ShapeError, match=f"{name} has shape"):
            gradient.step(plant, state, action, params, **{name: torch.zeros(ROWS, 4)})
    with pytest.raises(ShapeError, match="state has shape"):
        gradient.rollout(plant, state[..., :1], lambda y, t: action, params, 2)
    with pytest.raises(ShapeError, match="action has shape"):
        gradient.rollout(plant, state, lambda y, t: torch.zeros(ROWS, 2), params, 2)
    with pytest.raises(InvalidValueError, match="steps is 0"):
        gradient.rollout(plant, state, lambda y, t: action, params, 0)


def test_gradient_ascent_finds_the_action_that_a_grid_finds():
    plant = load_plant("pendulum")
    params = plant.prepare(plant.nominal())
    start = torch.tensor([0.05, 0.0], dtype=torch.float64)

    def value(action):
        held = action.reshape(-1, 1)
        return gradient.rollout(plant, start.expand(len(held), 2), lambda y, t: held, params, 3)[2].sum(0)

    grid = torch.linspace(-2.0, 2.0, 4001, dtype=torch.float64)
    best = grid[value(grid).argmax()]
    action = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([action], max_iter=50, tolerance_grad=1e-12)

    def loss():
        optimizer.zero_grad()
        total = -value(action).sum()
        total.backward()
        return total

    optimizer.step(loss)
    assert abs(float(best)) < 1.9
    np.testing.assert_allclose(action.detach(), best, atol=1e-3)
