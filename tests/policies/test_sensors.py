"""What an error of a sensor can do to each action and state of the closed loop: known values, and no search above."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from robust_policies.envs import load_plant
from robust_policies.envs.known import Known
from robust_policies.networks import R2DN, Contracting, make_cell
from robust_policies.policies import DeployedPolicy, sensor_errors
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.playing import Playing

TASK = """
schema: 1
plant: linear
description: A lag with two sensors.
time_step: 0.1
max_episode_steps: 50
parameters: {A: [[0.9]], B: [[1.0]], C: [[1.0], [1.0]]}
limits: {action: [1000.0]}
cost: {Q: [[1.0]], R: [[1.0]]}
reset: {distribution: uniform, mean: [0.0], spread: [1.0]}
names: {state: ["level [m]"], output: ["first [m]", "second [m]"], action: ["flow [l/s]"]}
"""
STATE, ACTION = "level [m]", "flow [l/s]"


def policy(cell):
    actor = Actor(ScaledCell(cell, Scaling(2)), MeanHead(1, 1, False))
    box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    return DeployedPolicy(actor, box, spaces.Box(-1000.0, 1000.0, (1,), np.float32))


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lag")
    (folder / "task.yaml").write_text(TASK)
    return load_plant(folder)


def static(*gains):
    """Return a policy u = gains y, with neurons that reach nothing."""
    torch.manual_seed(0)
    cell = R2DN(2, 1, 1, features=1, hidden_sizes=(1,), guarantee=Contracting())
    with torch.no_grad():
        cell.C2.zero_()
        cell.D21.zero_()
        cell.D22.copy_(torch.tensor([gains]))
    return policy(cell)


def test_a_static_loop_moves_by_the_sum_of_its_impulse_response(plant):
    first, second = sensor_errors(static(-0.25, -0.125), plant)
    assert (first.sensor, second.sensor) == ("first [m]", "second [m]")
    # x+ = 0.9 x + u, u = k (x + d) in sum: a = 0.525, and an error of one sensor drives x by its own gain.
    a = 0.9 - 0.375
    for entry, k in ((first, 0.25), (second, 0.125)):
        assert entry.states[STATE] == pytest.approx(k / (1 - a), rel=1e-4) and entry.states[STATE] >= k / (1 - a)
        # The action: the error itself, and what it did to x before.
        action = k + 0.375 * k / (1 - a)
        assert action <= entry.actions[ACTION] <= 1.35 * action
        assert entry.reason == ""


def test_no_search_moves_an_action_or_the_state_by_more(plant):
    torch.manual_seed(3)
    cell = make_cell("r2dn", 2, 1, state_size=2, features=4, hidden_sizes=[4], gamma=0.3)
    given = policy(cell)
    entries = sensor_errors(given, plant)
    random = np.random.default_rng(0)
    steps, count = 40, 256
    start, nothing = torch.as_tensor(random.uniform(-1, 1, (count, 1))), torch.zeros(steps, count, 0)
    playing = Playing(given.running(), plant, Known(start, nothing, nothing), *(np.full(1, s * 1e9) for s in (-1, 1)))
    still = playing.play()
    for number, entry in enumerate(entries):
        # Signs that hold for a while, of which the worst errors of a lag are made.
        signs = np.repeat(random.choice([-1.0, 1.0], (steps // 4, count)), 4, axis=0)
        signs[:, :2] = (1.0, -1.0)
        for size in (1e-3, 1.0):
            added = torch.zeros(steps, count, 2, dtype=torch.float64)
            added[..., number] = torch.as_tensor(size * signs)
            played = playing.play(added)
            action = float((played.actions - still.actions).abs().max()) / size
            state = float((played.states - still.states).abs().max()) / size
            assert 0 < action <= entry.actions[ACTION] * (1 + 1e-9)
            assert 0 < state <= entry.states[STATE] * (1 + 1e-9)


def test_nothing_is_said_of_a_policy_with_gates(plant):
    entry, _ = sensor_errors(policy(make_cell("lstm", 2, 1, state_size=2)), plant)
    assert entry.states == {STATE: None} and entry.actions == {ACTION: None}
    assert "LSTMCell" in entry.reason


def test_a_loop_that_does_not_contract_has_none(plant):
    entry, _ = sensor_errors(static(0.25, 0.0), plant)
    assert entry.states == {STATE: None} and "no ellipsoid" in entry.reason
