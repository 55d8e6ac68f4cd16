"""MuJoCo-Warp does what the C library does; here on the CPU, where it is for testing."""

import importlib.util
import sys

import pytest
import torch

from robust_policies.envs import load_plant
from robust_policies.errors import InvalidValueError

# Not imported here: MuJoCo-Warp takes five seconds, of every process that collects the tests.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("mujoco_warp") is None, reason="the extra warp is missing")
CPU = torch.device("cpu")
FOR_TESTING = "ignore:MuJoCo-Warp runs on the CPU"


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


@pytest.mark.slow
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
def test_readings_of_the_last_stage_agree_on_warp(own_task):
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
