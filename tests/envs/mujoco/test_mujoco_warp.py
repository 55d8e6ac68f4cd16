"""MuJoCo-Warp does what the C library does; here on the CPU, where it is for testing."""

import importlib
import importlib.util
import sys

import pytest
import torch
import yaml

from robust_policies.envs import TorchVectorEnv, load_plant
from robust_policies.envs.incidents import collected
from robust_policies.errors import InvalidValueError

# Not imported here: MuJoCo-Warp takes five seconds, of every process that collects the tests.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("mujoco_warp") is None, reason="the extra warp is missing")
CPU = torch.device("cpu")
FOR_TESTING = "ignore:MuJoCo-Warp runs on the CPU"


@pytest.fixture
def unoptimized(monkeypatch):
    """Compile kernels without optimization, which costs more here than it saves in a few steps."""
    monkeypatch.setattr(importlib.import_module("warp").config, "optimization_level", 0)


def elliptic(content):
    content["options"] = {"cone": "elliptic"}


def after(plant, backend, steps, device=CPU):
    """Return the states (4, state_size) after steps of small actions with masses and pushes of their own."""
    plant.use(backend, device, 4)
    generator = torch.Generator().manual_seed(2)
    physical = plant.nominal()
    physical["body_mass"] = torch.tensor([[0.8], [1.0], [1.1], [1.3]], dtype=torch.float64) * physical["body_mass"]
    params = plant.prepare(physical)
    uniform = torch.rand((4, plant.reset_size), dtype=torch.float64, generator=generator)
    state = plant.initial(uniform, params)
    push = torch.zeros((4, 6), dtype=torch.float64)
    push[1:, 2], push[3, 4] = -20.0, 2.0
    for t in range(steps):
        action = 0.1 * torch.rand((4, plant.action_size), dtype=torch.float64, generator=generator) - 0.05
        pushed = push.to(device) if t < 20 else None
        state = plant.advance(state.to(device), action.to(device), params, disturbance=pushed)
    plant.close()
    return state.cpu()


@pytest.mark.soak
@pytest.mark.filterwarnings(FOR_TESTING, "ignore:compiler attribute")
def test_warp_agrees_with_c_after_a_hundred_steps_with_elliptic_cones(own_task):
    plant = load_plant(own_task("half_cheetah", elliptic))
    expected, got = after(plant, "c", 100), after(plant, "warp", 100)
    assert torch.isfinite(got).all()
    # The runners lie and stand on the ground by then, pushed and at rest: contacts all along, and no chaos.
    assert (expected[:, 1] < -0.05).all()
    difference = (got - expected).abs().amax(-1)
    assert difference.max() < 1e-3, difference
    # Masses and pushes made a difference to the states that agree so well.
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    assert (expected[2] - expected[3]).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.filterwarnings(FOR_TESTING)
def test_readings_of_the_last_stage_agree_on_warp(unoptimized):
    plant = load_plant("reacher")
    expected, got = after(plant, "c", 10), after(plant, "warp", 10)
    params = plant.prepare(plant.nominal())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(plant.observe(got, params), plant.observe(expected, params), rtol=0, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["half_cheetah", "reacher"])
def test_warp_on_a_gpu_agrees_with_c(own_task, name):
    plant = load_plant(own_task(name, elliptic))
    steps = 100 if name == "half_cheetah" else 10
    expected, got = after(plant, "c", steps), after(plant, "auto", steps, torch.device("cuda"))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings(FOR_TESTING)
def test_a_feature_that_warp_cannot_run_is_named(own_task):
    plant = load_plant(own_task("hopper", lambda content: content.update(options={"solver": "PGS"})))
    with pytest.raises(InvalidValueError, match=r"mjSOL_PGS.*use backend='c'"):
        plant.use("warp", CPU, 2)
    params = plant.prepare(plant.nominal())
    state = plant.initial(torch.rand((2, plant.reset_size), dtype=torch.float64), params)
    assert torch.isfinite(plant.advance(state, torch.zeros((2, 3)), params)).all()


def test_warp_on_the_cpu_says_that_it_is_for_testing():
    plant = load_plant("hopper")
    with pytest.warns(UserWarning, match="meant for testing"):
        plant.use("warp", CPU, 2)


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    with pytest.raises(InvalidValueError, match=r"pip install robust-policies\[warp\]"):
        load_plant("hopper").use("warp", CPU, 2)


STIFF = """<mujoco><option timestep="0.02" gravity="0 0 0"><flag autoreset="disable"/></option><worldbody>
<body><joint name="s" type="slide" axis="1 0 0" stiffness="20000"/><geom size="0.1" mass="1"/></body></worldbody>
<actuator><motor joint="s" ctrlrange="-5 5"/></actuator></mujoco>"""
BOXES = """<mujoco><option timestep="0.002"/><worldbody><geom type="plane" size="1 1 1"/>
<body pos="0 0 0.1"><freejoint name="box"/><geom type="box" size="0.1 0.1 0.1" mass="1"/></body>
<body pos="5 0 5"><joint name="s" type="slide" axis="1 0 0"/><geom size="0.1" mass="1" contype="0"/></body>
</worldbody><actuator><motor joint="s" ctrlrange="-5 5"/></actuator></mujoco>"""


def task(folder, model, time_step, **more):
    content = {"schema": 1, "plant": "mujoco", "description": "A test.", "model": "model.xml", "frame_skip": 1,
               "time_step": time_step, "max_episode_steps": 200, "observation": [{"positions": "all"}],
               "reward": [{"term": "alive", "weight": 1.0}]}  # fmt: skip
    (folder / "model.xml").write_text(model)
    (folder / "task.yaml").write_text(yaml.safe_dump(content | more))
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings(FOR_TESTING, "ignore:compiler attribute")
def test_an_unstable_simulation_ends_in_the_same_step_as_in_c(tmp_path, monkeypatch, unoptimized):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into a file there.
    ends = {}
    for backend in ("c", "warp"):
        env = TorchVectorEnv(task(tmp_path, STIFF, 0.02), num_envs=2, backend=backend, autoreset_mode="Disabled")
        observation, _ = env.reset()
        step, terminated = 0, torch.zeros(2, dtype=torch.bool)
        while step < 60 and not terminated.any():
            observation, _, terminated, _, _ = env.step(torch.ones(2, 1))
            step += 1
        ends[backend] = step, observation
        env.close()
    assert ends["c"][0] == ends["warp"][0] == 14
    torch.testing.assert_close(ends["warp"][1], ends["c"][1], rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings(FOR_TESTING, "ignore:compiler attribute")
def test_room_that_runs_out_is_said_and_counted(tmp_path, unoptimized):
    def height(**warp):
        env = TorchVectorEnv(task(tmp_path, BOXES, 0.002, warp=warp), num_envs=2, backend="warp")
        env.reset()
        for _ in range(100):
            observation = env.step(torch.zeros(2, 1))[0]
        env.close()
        return observation[:, 2]

    with collected() as enough:
        rests = height(pooled_contacts_per_world=8)
    assert not enough and (rests > 0.0995).all()
    with collected() as found, pytest.warns(UserWarning, match="no room for all contacts"):
        sinks = height(pooled_contacts_per_world=2)
    assert sinks.min() < 0.099
    assert len(found) == 1 and "All 2 worlds share one pool of 4" in found[0]
    assert "warp.pooled_contacts_per_world" in found[0]
    with collected() as found, pytest.warns(UserWarning, match="no room for all constraints"):
        height(constraints=4)
    assert len(found) == 1 and "Each world has room for 4" in found[0]
