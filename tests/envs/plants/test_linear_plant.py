"""The linear plant does what its matrices and expressions say, also for a task outside the repository."""

import copy
import math
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete

import robust_policies.envs  # noqa: F401
from robust_policies.envs import TorchVectorEnv, load_plant
from robust_policies.envs.plants.expressions import Expression, ExpressionMatrix
from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError

ID = "robust_policies/Linear-v0"


def three_states(content):
    content["parameters"] = {
        "A": [[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.1, 0.0, 0.7]],
        "B": [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]],
        "C": [[1.0, 0.0, 1.0]],
    }
    content["limits"] = {"action": [1.0, 2.0]}
    content["cost"] = {"Q": np.eye(3).tolist(), "R": [[0.1, 0.0], [0.0, 0.2]]}
    content["noise"] = {}
    content["reset"] = {"distribution": "normal", "mean": [1.0, 0.0, -1.0], "spread": [0.1, 0.2, 0.0]}
    content["max_episode_steps"] = 30
    del content["names"]


def test_a_users_own_task_runs_single_and_vectorized_by_its_folder(own_task):
    folder = own_task("linear", three_states)
    single = gymnasium.make(ID, task=str(folder))
    many = gymnasium.make_vec(ID, num_envs=4, task=str(folder))
    assert single.action_space.shape == (2,) and single.observation_space.shape == (1,)
    single.reset(seed=0)
    many.reset(seed=0)
    for step in range(30):
        single_end = single.step(single.action_space.sample())[3]
        many_end = many.step(torch.zeros(4, 2))[3]
        assert single_end == (step == 29) and bool(many_end.all()) == (step == 29)


def test_the_trajectory_is_that_of_the_matrices(own_task):
    env = TorchVectorEnv(own_task("linear", three_states), 2, dtype="float64")
    plant = env.plant
    observation, _ = env.reset(seed=0)
    x = env.state.numpy()
    np.testing.assert_allclose(observation.numpy(), x @ plant.C.T, atol=1e-12)
    for k in range(20):
        u = np.array([[3.0, -3.0], [0.1 * k, -0.5]])
        clipped = np.clip(u, [-1, -2], [1, 2])
        cost = np.einsum("bi,ij,bj->b", x, plant.Q, x) + np.einsum("bi,ij,bj->b", clipped, plant.R, clipped)
        x = x @ plant.A.T + clipped @ plant.B.T
        observation, reward, *_ = env.step(torch.as_tensor(u))
        np.testing.assert_allclose(env.state.numpy(), x, atol=1e-12)
        np.testing.assert_allclose(observation.numpy(), x @ plant.C.T, atol=1e-12)
        np.testing.assert_allclose(reward.numpy(), -cost, atol=1e-12)


def test_the_start_distribution_and_the_noise_have_the_stated_size(own_task):
    def change(content):
        content["noise"] = {"process": [[0.3, 0.0], [0.3, 0.1]], "measurement": [0.5]}
        content["reset"] = {"distribution": "normal", "mean": [2.0, 0.0], "spread": [0.2, 0.0]}

    env = TorchVectorEnv(own_task("linear", change), 20000, dtype="float64")
    observation, _ = env.reset(seed=0)
    start = env.state
    assert abs(start[:, 0].mean() - 2.0) < 0.01 and abs(start[:, 0].std() - 0.2) < 0.01
    assert (start[:, 1] == 0.0).all()
    assert abs((observation - start[:, :1]).std() - 0.5) < 0.02
    observation, *_ = env.step(torch.zeros(20000, 1))
    pushed = env.state - start @ torch.as_tensor(env.plant.A).T
    expected = torch.tensor([[0.09, 0.09], [0.09, 0.10]], dtype=torch.float64)
    assert (pushed.T.cov() - expected).abs().max() < 0.005
    assert abs((observation - env.state[:, :1]).std() - 0.5) < 0.02


def test_leaving_the_state_limits_terminates_and_the_time_limit_truncates(own_task):
    def change(content):
        content["limits"]["state"] = [1.5, 10.0]
        content["max_episode_steps"] = 5
        content["noise"] = {}

    env = TorchVectorEnv(own_task("linear", change), 2, autoreset_mode="SAME_STEP")
    env.reset(seed=0, options={"state": [[1.45, 3.0], [0.0, 0.0]]})
    _, _, terminated, truncated, info = env.step(torch.zeros(2, 1))
    assert terminated.tolist() == [True, False] and truncated.tolist() == [False, False]
    assert info["_final_obs"].tolist() == [True, False]
    assert info["final_obs"][0, 0] > 1.5
    for _ in range(4):
        _, _, terminated, truncated, info = env.step(torch.zeros(2, 1))
    assert not terminated.any() and truncated.tolist() == [False, True]


def test_gradients_flow_through_the_plant():
    plant = load_plant("linear")
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    action = torch.rand(5, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(5, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    matrices = plant.nominal()
    names = sorted(matrices)

    def run(state, action, noise, *values):
        params = dict(zip(names, values, strict=True))
        following = plant.advance(state, action, params, noise)
        prepared = plant.prepare(params)
        following = plant.advance(state, action, prepared, noise, 0.1 * action)
        return following, plant.observe(following, prepared, noise), plant.reward(state, action, following, prepared)

    shared = [matrices[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, (state, action, noise, *shared))
    own = [matrices[name].detach().expand(5, -1, -1).clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, (state, action, noise, *own))


def test_gradients_flow_after_a_run_in_inference_mode():
    env = TorchVectorEnv("linear", 2)
    with torch.inference_mode():
        env.reset(seed=0)
        env.step(torch.zeros(2, 1))
    action = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    params = env.plant.prepare(env.params)
    following = env.plant.advance(env.state, action, params)
    env.plant.reward(following, action, following, params).sum().backward()
    assert action.grad is not None and action.grad.abs().sum() > 0
    env.step(torch.zeros(2, 1))


def test_a_picture_has_three_panels():
    env = gymnasium.make(ID, render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(10):
        env.step(env.action_space.sample())
        picture = env.render()
    assert picture.shape == (480, 480, 3) and picture.dtype == np.uint8
    for top in (0, 160, 320):
        assert picture[top : top + 160].reshape(-1, 3).std(0).min() > 1.0


VALUES = {"m": torch.tensor(2.0, dtype=torch.float64), "k": torch.tensor([3.0, 4.0], dtype=torch.float64)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m", [2.0]),
        ("-k/m", [-1.5, -2.0]),
        ("-(k + 1) * m ** 2 - 0.5e1", [-21.0, -25.0]),
        ("2 ** -m", [0.25]),
        ("+m - -1", [3.0]),
        (" sqrt(k) * sin(m) + cos(0) ", [math.sqrt(3) * math.sin(2) + 1, 2 * math.sin(2) + 1]),
        ("1/4", [0.25]),
        ("1e3", [1000.0]),
    ],
)
def test_an_expression_has_the_value_of_its_arithmetic(text, expected):
    value = Expression("here", text, VALUES)(VALUES)
    np.testing.assert_allclose(np.atleast_1d(value), expected, rtol=1e-14)


def test_an_expression_of_numbers_is_a_number():
    assert Expression("here", "3 * (1 - 0.5) ** 2", ()).number == 0.75
    assert Expression("here", "2 * m", VALUES).number is None
    matrix = ExpressionMatrix("M", [["1/2", 1], [0.0, "-2"]])
    assert matrix.numbers is not None and matrix.numbers.tolist() == [[0.5, 1.0], [0.0, -2.0]]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "__import__('os').system('true')",
        "m.__class__",
        "(lambda: 1)()",
        "[m][0]",
        "m if m else k",
        "m or k",
        "m < k",
        "m // 2",
        "m % 2",
        "m ^ 2",
        "~m",
        "'m'",
        "f'{m}'",
        "1j",
        "True",
        "None",
        "(m := 3)",
        "m; k",
        "import os",
        "exp(m)",
        "sqrt(m, k)",
        "sqrt(x=m)",
        "sqrt",
        "",
        "m +",
        "1/0",
        "sqrt(-1)",
        "(-8) ** (1/3)",
        "9**9**9**9",
        "1e999",
        "(" * 150,
        "-" * 199,
        "m" * 201,
        "m\x00",
    ],
)
def test_anything_but_arithmetic_is_refused_in_one_line_that_says_what_is_allowed(text):
    with pytest.raises((InvalidValueError, UnknownNameError), match=r"parameters\.A\.0\.1") as caught:
        Expression("parameters.A.0.1", text, VALUES)
    assert "\n" not in str(caught.value).replace(text, "")
    if len(text) <= 200:
        assert "allowed are numbers, parentheses, + - * / **, sqrt" in str(caught.value).replace("Allowed", "allowed")


def test_an_unknown_name_in_an_expression_is_named_with_the_known_ones():
    with pytest.raises(
        UnknownNameError, match=r"Unknown parameter 'mas'\. Did you mean 'mass'.*Known: mass, stiffness"
    ):
        Expression("parameters.B.1.0", "1/mas", ("mass", "stiffness"))


def expressions(content):
    content["continuous"] = True
    content["randomize"] = {"gain": [0.5, 2.0]}
    content["physical"] = {"rate": {"value": 2.0, "unit": "1/s"}, "gain": {"value": 0.5}}
    content["parameters"] = {
        "A": [[0.0, "rate"], ["-rate", "0.1 * -rate"]],
        "B": [[0.0], ["gain"]],
        "C": [[1.0, 0.0]],
        "G": [[1.0, 0.0], [0.0, "gain / rate"]],
    }


def test_physics_as_data_gives_the_matrices_of_one_step(own_task):
    plant = load_plant(own_task("linear", expressions))
    assert {name: tuple(value.shape) for name, value in plant.nominal().items()} == {
        "rate": (),
        "gain": (),
        "C": (1, 2),
    }
    assert plant.parameter_units == {"rate": "1/s", "gain": "", "C": "output by state"}
    assert plant.disturbance_names == ("d1", "d2")
    A, B = np.array([[0.0, 2.0], [-2.0, -0.2]]), np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.25]])
    Ad, Bd, *_ = cont2discrete((A, B, np.eye(2), np.zeros((2, 3))), plant.time_step, "zoh")
    prepared = plant.prepare(plant.nominal())
    for name, expected in (("A", Ad), ("B", Bd[:, :1]), ("G", Bd[:, 1:]), ("C", np.array([[1.0, 0.0]]))):
        np.testing.assert_allclose(prepared[name], expected, rtol=1e-13, atol=1e-13)
        np.testing.assert_array_equal(getattr(plant, name), prepared[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_physical_parameters_of_each_copy_equal_a_loop_over_copies(own_task, dtype):
    plant = load_plant(own_task("linear", expressions))
    generator = torch.Generator().manual_seed(0)
    nominal = plant.nominal(dtype=dtype)
    for batched in (["rate"], ["gain"], ["C"], ["rate", "gain", "C"]):
        many = dict(nominal)
        for name in batched:
            factor = 0.5 + torch.rand(6, *([1] * nominal[name].ndim), generator=generator, dtype=dtype)
            many[name] = nominal[name] * factor
        state, action, disturbance = (torch.randn(6, n, generator=generator, dtype=dtype) for n in (2, 1, 2))
        prepared = plant.prepare(many)
        following = plant.advance(state, action, prepared, None, disturbance)
        output = plant.observe(following, prepared)
        assert following.dtype == output.dtype == dtype
        for i in range(6):
            own = plant.prepare({name: value[i] if name in batched else value for name, value in many.items()})
            alone = plant.advance(state[i], action[i], own, None, disturbance[i])
            torch.testing.assert_close(following[i], alone, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(output[i], plant.observe(alone, own), rtol=1e-5, atol=1e-6)


def test_gradients_flow_to_physical_parameters(own_task):
    plant = load_plant(own_task("linear", expressions))
    nominal = plant.nominal()
    state, action = torch.ones(3, 2, dtype=torch.float64), torch.full((3, 1), 0.5, dtype=torch.float64)
    push = torch.full((3, 2), 0.3, dtype=torch.float64)

    def run(*values):
        params = plant.prepare(dict(zip(nominal, values, strict=True)))
        return plant.observe(plant.advance(state, action, params, None, push), params)

    assert torch.autograd.gradcheck(run, [value.requires_grad_() for value in nominal.values()])
    factors = torch.tensor([0.8, 1.0, 1.2], dtype=torch.float64)
    own = [(value.detach() * factors.reshape(-1, *([1] * value.ndim))).requires_grad_() for value in nominal.values()]
    assert torch.autograd.gradcheck(run, own)


def test_a_disturbance_enters_as_the_action_does_unless_g_says_how(own_task):
    plant = load_plant("linear")
    params = plant.prepare(plant.nominal())
    assert plant.disturbance_names == ("at u1",)
    state = torch.zeros(1, 2, dtype=torch.float64)
    five, none = torch.full((1, 1), 5.0, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    pushed = plant.advance(state, none, params, None, five)
    np.testing.assert_allclose(pushed, 5.0 * plant.B.T, rtol=1e-14)
    torch.testing.assert_close(plant.advance(state, five, params, None, five), pushed * 1.4)
    plant = load_plant(own_task("linear", expressions))
    push = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    following = plant.advance(state, none, plant.prepare(plant.nominal()), None, push)
    np.testing.assert_allclose(following, push.numpy() @ plant.G.T, rtol=1e-14)


def test_a_plant_with_expressions_is_copied_and_pickled(own_task):
    plant = load_plant(own_task("linear", expressions))
    for other in (copy.deepcopy(plant), pickle.loads(pickle.dumps(plant))):
        for name, value in plant.prepare(plant.nominal()).items():
            torch.testing.assert_close(other.prepare(other.nominal())[name], value, rtol=0, atol=0)


def with_physics(*keys, value):
    def change(content):
        expressions(content)
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (with_physics("parameters", "A", 0, 1, value="rat"), UnknownNameError, r"A\.0\.1.*Did you mean 'rate'"),
        (with_physics("parameters", "A", 0, 1, value="rate^2"), InvalidValueError, r"A\.0\.1.*a power is written \*\*"),
        (
            with_physics("parameters", "B", value=[["1/(gain - 0.5)"], [0.0]]),
            InvalidValueError,
            r"parameters.B.0.0 is '1/\(gain - 0.5\)', which is inf",
        ),
        (with_physics("parameters", "G", value=[["gain"]]), ShapeError, "parameters.G is 1 by 1; expected 2 by any"),
        (with_physics("parameters", "C", value=[[True, 0.0]]), InvalidValueError, "C.0.0 is True; expected a finite"),
        (with_physics("physical", "mass", value={"value": 1.0}), InvalidValueError, "'mass' is in no matrix"),
        (with_physics("physical", "2x", value={"value": 1.0}), InvalidValueError, "'2x' cannot be a parameter's name"),
        (with_physics("physical", "A", value={"value": 1.0}), InvalidValueError, "'A' cannot be a parameter's name"),
        (with_physics("physical", "rate", value=2.0), InvalidValueError, "physical.rate is 2.0; expected a mapping"),
        (
            with_physics("physical", "rate", value={"valu": 2.0}),
            InvalidValueError,
            "physical.rate is .*expected a mapping",
        ),
        (with_physics("physical", "rate", value={"unit": "m"}), InvalidValueError, "physical.rate.value is missing"),
        (with_physics("randomize", value={"A": [0.9, 1.1]}), UnknownNameError, "Unknown parameter 'A'.*C, gain, rate"),
        (with_physics("names", "action", value=["a", "b"]), ShapeError, r"names.action has 2 label\(s\); expected 1"),
        (
            with_physics("physical", "rate", "value", value=-1e9),
            InvalidValueError,
            "parameters.A grows beyond all numbers",
        ),
        (with_physics("optimum", value={"lqr": 1.0}), InvalidValueError, "optimum.lqg is missing"),
    ],
)
def test_a_wrong_entry_of_the_physics_is_named(own_task, change, error, message):
    folder = own_task("linear", change)
    with pytest.raises(error, match=message) as caught:
        load_plant(folder)
    assert str(folder / "task.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)
