"""A cell of another package runs in NumPy and is exported once its step is registered, and is refused until then."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.export import export_policy, parity
from robust_policies.networks import Cell, register_cell, registry
from robust_policies.policies import DeployedPolicy, load_policy, save_policy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.runtime import RunningCell, cells, load, register_step


class Arrays(NamedTuple):
    pole: torch.Tensor
    into: torch.Tensor


class Lags(Cell):
    """First-order filters whose states are the outputs."""

    name = "test_lags"

    def __init__(self, input_size, state_size, output_size):
        super().__init__(input_size, state_size, output_size)
        self.free = nn.Parameter(torch.linspace(-2.0, 2.0, state_size))
        self.into = nn.Parameter(torch.linspace(-1.0, 1.0, state_size * input_size).reshape(state_size, input_size))

    def explicit(self):
        return Arrays(torch.sigmoid(self.free), self.into)

    def step(self, explicit, input, state):
        following = explicit.pole * state + input @ explicit.into.mT
        return following, following

    def run(self, explicit, inputs, state, starts):
        return self.unroll(explicit, inputs, state, starts)

    def options(self):
        return {key: getattr(self, key) for key in ("input_size", "state_size", "output_size")}

    def zero_output_(self):
        nn.init.zeros_(self.into)
        return self


def lags(config, arrays):
    pole, into = arrays["pole"], arrays["into"].T.copy()

    def step(input, state):
        following = pole * state + input @ into
        return following, following

    return RunningCell(len(pole), step)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "CELLS", dict(registry.CELLS))
    register_cell(Lags)
    monkeypatch.setattr(cells, "OWN_STEPS", {})
    monkeypatch.setattr(parity, "STEPS", 1000)
    actor = Actor(ScaledCell(Lags(3, 2, 2), Scaling(3)), MeanHead(2, 1, True, 0.7))
    box, action = spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-9, 9, (1,), np.float32)
    save_policy(DeployedPolicy(actor, box, action, torch.zeros(1), raw=True), tmp_path / "run")
    return tmp_path


def test_a_cell_without_a_step_is_refused_in_one_line_that_says_what_to_do(folder):
    for call in (lambda: load(folder / "run"), lambda: export_policy(folder / "run", "numpy", folder / "out")):
        with pytest.raises(UnknownNameError, match=r"register_step\('test_lags', make\)") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()


def test_safetensors_need_no_step(folder):
    export_policy(folder / "run", "safetensors", folder / "out")
    policies = [load_policy(folder / part) for part in ("run", "out")]
    seen = np.random.default_rng(0).uniform(-1, 1, 3).astype(np.float32)
    np.testing.assert_array_equal(*(policy.predict(seen)[0] for policy in policies))
    assert "register_step('test_lags', make)" in json.loads((folder / "out" / "parity.json").read_text())["ran"]


def test_a_cell_with_a_step_runs_as_in_torch_and_its_exported_constants_are_proven(folder):
    register_step("test_lags", lags)
    running, policy, state, other = load(folder / "run"), load_policy(folder / "run"), None, None
    for seen in np.random.default_rng(0).uniform(-1, 1, (20, 3)).astype(np.float32):
        found, state = running.predict(seen, state)
        expected, other = policy.predict(seen, other)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    export_policy(folder / "run", "numpy", folder / "out")
    content = json.loads((folder / "out" / "certificate.json").read_text())
    # The class says nothing of its own; the run's certificate proves nothing, so neither does the export's.
    assert content["status"] == "NOT_CERTIFIED"
    # Rounding is bounded all the same: the program is a system whose contraction is proven of its constants.
    assert 0 < content["rounding"]["bound"][0] < 1e-4


def test_a_step_that_does_what_cannot_be_written_is_refused_by_name(folder):
    def sines(config, arrays):
        return RunningCell(2, lambda input, state: (np.sin(state), state + input @ arrays["into"].T))

    register_step("test_lags", sines)
    with pytest.raises(InvalidValueError, match="does sin, which has no operation in an exported program"):
        export_policy(folder / "run", "c", folder / "out")
    assert not (folder / "out").exists()


def test_a_name_of_this_package_is_not_given_away():
    with pytest.raises(InvalidValueError, match="'r2dn' is a cell of this package"):
        register_step("r2dn", lags)
    with pytest.raises(InvalidValueError, match="expected a function"):
        register_step("mine", 3)
