"""A user's own tasks, in folders outside the repository: matrices, and a plant class of their own."""

import pickle
import subprocess
import sys
import textwrap

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from robust_policies.control.linearize import linearize_plant
from robust_policies.envs import load_plant, register_task
from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, UnknownNameError

MATRICES = """\
schema: 1
plant: linear
description: A cooling tank.
time_step: 1.0
max_episode_steps: 30
parameters:
  A: [[0.9]]
  B: [[0.1]]
  C: [[1.0]]
limits: {action: [1.0]}
cost: {Q: [[1.0]], R: [[0.1]]}
reset: {distribution: uniform, mean: [0.0], spread: [1.0]}
"""

CLASS = """\
schema: 1
plant: tank.py:Tank
description: A draining tank.
time_step: 0.5
max_episode_steps: 40
parameters:
  area: 2.0
  drain: 0.3
randomize:
  area: [0.5, 1.5]
"""

TANK = '''\
"""A tank that drains through a hole and is filled by a pump."""

import numpy as np
import torch

from robust_policies.envs.plant import Plant, PositiveNumber, Section, TaskFile, tensors, units


class Parameters(Section):
    area: PositiveNumber
    drain: PositiveNumber


class TankTask(TaskFile):
    parameters: Parameters


class Tank(Plant):
    kind = "tank"
    Task = TankTask
    state_size = observation_size = reset_size = 1
    state_names = output_names = ("level [m]",)
    action_names = ("flow [m^3/s]",)
    parameter_units = units(Parameters)
    action_low, action_high = np.zeros(1), np.ones(1)
    observation_low, observation_high = np.zeros(1), np.full(1, np.inf)

    def advance(self, state, action, params, noise=None, disturbance=None):
        flow = action.clamp(0.0, 1.0)[..., 0] - params["drain"] * state[..., 0].clamp(min=0.0).sqrt()
        return (state[..., 0] + self.time_step / params["area"] * flow).clamp(min=0.0).unsqueeze(-1)

    def observe(self, state, params, noise=None):
        return state

    def reward(self, state, action, following, params):
        return -((following[..., 0] - 1.0) ** 2)

    def initial(self, uniform, params, options=None):
        return 2.0 * uniform
'''


@pytest.fixture
def tank(tmp_path):
    (tmp_path / "task.yaml").write_text(CLASS)
    (tmp_path / "tank.py").write_text(TANK)
    return tmp_path


@pytest.fixture
def registered():
    made = []

    def register(env_id, folder):
        made.append(register_task(env_id, folder))
        return made[-1]

    yield register
    for env_id in made:
        del gymnasium.registry[env_id]


def test_matrices_in_a_folder_are_an_environment(tmp_path, registered):
    (tmp_path / "task.yaml").write_text(MATRICES)
    env_id = registered("me/Cooling-v0", tmp_path)
    env = gymnasium.make(env_id)
    check_env(env.unwrapped, skip_render_check=True)
    many = gymnasium.make_vec(env_id, num_envs=5, max_episode_steps=3)
    many.reset(seed=0, options={"state": np.ones((5, 1))})
    observation, reward, *_ = many.step(torch.ones(5, 1))
    assert observation.flatten().tolist() == pytest.approx([1.0] * 5) and reward.tolist() == pytest.approx([-1.1] * 5)
    assert gymnasium.make("robust_policies/Linear-v0", task=str(tmp_path)).spec.kwargs["task"] == str(tmp_path)


def test_a_plant_class_with_the_name_step_is_told_the_name_advance(tank):
    (tank / "tank.py").write_text(TANK.replace("def advance(", "def step("))
    with pytest.raises(ValueError, match=r"Tank defines step\(\); expected advance\(\): rename") as caught:
        load_plant(tank)
    assert "\n" not in str(caught.value) and "tank.py" in str(caught.value)
    with pytest.raises(InvalidValueError, match=r"Bare has no advance\(\)"):
        linearize_plant(type("Bare", (), {"step": None})())  # pyright: ignore[reportArgumentType]


def test_a_plant_class_beside_its_task_file_is_an_environment(tank, registered):
    env_id = registered("me/Tank-v0", tank)
    check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)
    many = gymnasium.make_vec(env_id, num_envs=4, randomize=True)
    many.reset(seed=0)
    assert many.params["area"].shape == (4,) and many.unwrapped.plant.kind == "tank"
    many.step(torch.ones(4, 1))
    single = gymnasium.make(env_id, randomize=True)
    single.reset(seed=2)
    single.step(np.ones(1, np.float32))
    np.testing.assert_allclose(many.unwrapped.state[2].numpy(), single.unwrapped.state, rtol=1e-12)
    copied = pickle.loads(pickle.dumps(single.unwrapped))
    assert np.array_equal(copied.state, single.unwrapped.state)
    picture = gymnasium.make(env_id, render_mode="rgb_array")
    picture.reset(seed=0)
    assert picture.render().dtype == np.uint8


def test_a_plant_class_in_an_importable_module_is_found(tank, monkeypatch):
    (tank / "my_plants.py").write_text(TANK)
    (tank / "task.yaml").write_text(CLASS.replace("tank.py:Tank", "my_plants:Tank"))
    monkeypatch.syspath_prepend(str(tank))
    assert load_plant(tank).kind == "tank"


@pytest.mark.parametrize(
    ("plant", "error", "message"),
    [
        ("tank", UnknownNameError, "Unknown plant 'tank'.*Or file.py:Class"),
        ("pendulums", UnknownNameError, "Did you mean 'pendulum'"),
        ("other.py:Tank", MissingFileError, "other.py, which is not beside it"),
        ("tank.py:Tanker", UnknownNameError, "has no class 'Tanker' that is a robust_policies.envs.Plant"),
        ("tank.py:np", UnknownNameError, "has no class 'np'"),
        ("no_such_module:Tank", MissingFileError, "module 'no_such_module', which cannot be imported"),
        ("broken.py:Tank", CorruptFileError, "broken.py does not run: ZeroDivisionError"),
        ("3", UnknownNameError, "Unknown plant '3'"),
    ],
)
def test_a_plant_that_cannot_be_had_is_named(tank, plant, error, message):
    (tank / "broken.py").write_text("1 / 0\n")
    (tank / "task.yaml").write_text(CLASS.replace("tank.py:Tank", f"'{plant}'"))
    with pytest.raises(error, match=message):
        load_plant(tank)


def test_what_cannot_be_registered_is_refused(tank):
    for env_id, message in (("no spaces allowed", "expected such as"), ("CartPole-v1", "registered already")):
        with pytest.raises(InvalidValueError, match=message):
            register_task(env_id, tank)
    with pytest.raises(MissingFileError):
        register_task("me/Nothing-v0", tank / "nothing")
    assert "me/Nothing-v0" not in gymnasium.registry


def test_an_unknown_parameter_is_answered_with_the_known_ones_and_their_units(own_task):
    folder = own_task("pendulum", lambda content: content["parameters"].update(lenght=1.0))
    said = r"'parameters.lenght'. Did you mean 'parameters.length'\?.*mass \[kg\], length \[m\]"
    with pytest.raises(UnknownNameError, match=said):
        load_plant(folder)


def test_a_users_script_outside_the_repository_runs(tank):
    script = """
        import gymnasium, torch
        from robust_policies.envs import register_task

        register_task("me/Tank-v0", "TANK")
        envs = gymnasium.make_vec("me/Tank-v0", num_envs=64)
        observation, info = envs.reset(seed=0)
        observation, reward, terminated, truncated, info = envs.step(torch.ones(64, 1))
        print(tuple(observation.shape), bool(torch.isfinite(reward).all()))
    """
    program = textwrap.dedent(script).replace("TANK", str(tank))
    done = subprocess.run([sys.executable, "-c", program], cwd=tank, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.split() == ["(64,", "1)", "True"], done.stderr
