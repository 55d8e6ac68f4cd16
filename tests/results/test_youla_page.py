"""results/youla says what was measured, and its measures of stability know a stable loop from an unstable one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from results.youla import linear, make, measure, tables
from robust_policies.control.linearize import linearize_plant
from robust_policies.envs import load_plant
from robust_policies.policies import DeployedPolicy
from robust_policies.train import load_recipe
from robust_policies.train.apg.run import ApgRun

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "youla"


@pytest.fixture(scope="module")
def tasks():
    return json.loads((RESULTS / "stabilisation.json").read_text())["tasks"]


def untrained(name, *changes):
    return ApgRun(load_recipe(name, list(changes)), "cpu").algorithm.deployed()


def linear_loop(F, offset):
    F, offset = torch.as_tensor(F), torch.as_tensor(offset)
    return linear.Loop(lambda z: z @ F.T + offset, len(F), torch.eye(len(F), dtype=torch.float64))


def test_the_page_is_that_of_the_stored_rows(tasks):
    assert (RESULTS / "README.md").read_text() == tables.page(make.CASES, tasks, RESULTS)


def test_the_page_shows_every_seed_and_figure(tasks):
    text = (RESULTS / "README.md").read_text()
    assert "[[" not in text
    for name in ("training.png", "attacks.png", "model_error.png"):
        assert name in text and (RESULTS / name).is_file()
    for task, case in make.CASES.items():
        seeds = {method: {row["seed"] for row in tasks[task] if row["method"] == method} for method in case.recipes}
        assert len(set(map(frozenset, seeds.values()))) == 1, "methods with different training seeds"


def test_no_youla_policy_on_the_way_was_unstable(tasks):
    entries = [
        entry for rows in tasks.values() for row in rows if row["method"] == "youla_r2dn" for entry in row["curve"]
    ]
    assert entries
    assert all(entry["proven"] and entry["rate"] < 1.0 for entry in entries)
    assert not any(measure.unstable(entry) for entry in entries)
    assert not any(measure.undecided(entry) for entry in entries)


@pytest.mark.parametrize("largest", [0.9, 1.1])
def test_the_radius_and_the_runaways_of_a_linear_loop_are_known(largest):
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    loop = linear_loop(largest * turn, np.array([0.2, -0.1]))
    assert linear.spectral_radius(loop) == pytest.approx(largest, rel=1e-9)
    starts = torch.as_tensor(np.random.default_rng(0).uniform(-1.0, 1.0, (16, 2)))
    assert linear.runaways(loop, starts, np.ones(2)) == (16 if largest > 1.0 else 0)


def test_a_loop_without_an_equilibrium_has_no_radius():
    loop = linear_loop(np.eye(2), np.array([1.0, 0.0]))
    assert linear.spectral_radius(loop) is None


def test_a_base_controller_has_the_radius_of_its_design_and_nothing_the_plants_own():
    model = linearize_plant(load_plant("qube_servo"))
    base = untrained("qube_servo_youla_r2dn_apg")
    loop = linear.closed_loop(base, model)
    design = base.design
    assert linear.spectral_radius(loop) == pytest.approx(max(design.rho_control, design.rho_estimator), rel=1e-9)
    idle = untrained("cartpole_lstm_apg")
    cart = linearize_plant(load_plant("cartpole_continuous"))
    largest = np.abs(np.linalg.eigvals(cart.A)).max()
    jacobian = linear.closed_loop(idle, cart).jacobian(torch.zeros(4 + 44, dtype=torch.float64))
    assert np.abs(np.linalg.eigvals(jacobian.numpy())).max() == pytest.approx(largest, rel=1e-9)


def test_the_loop_of_a_direct_policy_is_plant_and_policy_step_by_step():
    model = linearize_plant(load_plant("cartpole_continuous"))
    policy = untrained("cartpole_r2dn_apg", "algorithm.zero_init=false")
    assert isinstance(policy, DeployedPolicy)
    loop = linear.closed_loop(policy, model)
    x = 0.02 * np.array([1.0, -2.0, 0.5, 1.5])
    z = torch.cat((torch.as_tensor(x), torch.zeros(loop.size - 4, dtype=torch.float64)))[None]
    memory = policy.actor.cell.initial_state(1)
    for _ in range(20):
        with torch.no_grad():
            action, memory = policy.actor.step(torch.as_tensor(model.C @ x, dtype=torch.float32)[None], memory)
            z = loop.step(z)
        x = model.A @ x + model.B @ action[0].double().numpy()
        np.testing.assert_allclose(z[0, :4].numpy(), x, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("shares", "size", "steps"),
    [
        ([1.0, 1.0, 1.0], 0.2, 2),
        ([1.0, 1.0, 0.8], 0.15, 1),
        ([1.0, 0.5, 1.0], 0.02, 0),
        ([0.8, 1.0, 1.0], 0.0, 0),
    ],
)
def test_what_is_tolerated_ends_where_the_share_first_falls_below_nine_tenths(shares, size, steps):
    assert measure.critical_size([0.0, 0.1, 0.2], shares) == pytest.approx(size)
    assert measure.tolerated_steps([0, 1, 2], shares) == steps
