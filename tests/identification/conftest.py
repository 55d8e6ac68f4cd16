"""Small settings, models and data."""

import numpy as np
import pytest
import torch
from small_data import TIME_STEP, record

from robust_policies.identification import IdentifiedModel, Signals, parse_settings
from robust_policies.identification.records import Experiment
from robust_policies.networks import make_cell

SMALL = {"state_size": 4, "features": 6, "hidden_sizes": [8], "activation": "tanh"}


@pytest.fixture
def settings():
    """Return a function that makes settings, quick ones unless it is told otherwise."""

    def make(files=("none.csv",), cell=None, data=None, keep=None, **algorithm):
        quick = {"total_steps": 4, "batch": 4, "window": 40, "burn_in": 10}
        return parse_settings(
            {
                "data": {"files": [str(f) for f in files], "inputs": ["u"], "outputs": ["y"], **(data or {})},
                "cell": {"name": "r2dn", **SMALL} if cell is None else cell,
                "keep": keep or {"evaluate_every": 2, "every": 2},
                "algorithm": {**quick, **algorithm},
            },
            "test",
        )

    return make


@pytest.fixture
def experiment():
    """Return a function that makes a record of the small plant."""
    return lambda seed=0, count=400, **options: Experiment(f"r{seed}", *record(seed, count, **options))


@pytest.fixture
def model():
    """Return a function that makes an untrained model of two inputs and two outputs with uneven scales."""

    def make(name="r2dn", nu=2, ny=2, initial=None, dtype=torch.float64, **options):
        torch.manual_seed(0)
        sizes = {key: SMALL[key] for key in (SMALL if name == "r2dn" else ["state_size"])}
        cell = make_cell(name, nu, ny, **{**sizes, **options}).to(dtype)
        scales = [np.array([0.5, 20.0])[:nu], np.array([3.0, 0.01])[:ny]]
        offsets = [np.array([1.0, -2.0])[:nu], np.array([-1.0, 5.0])[:ny]]
        numbers = (offsets[0], scales[0], offsets[1], scales[1])
        signals = Signals(
            tuple(f"u{k}" for k in range(nu)),
            tuple(f"y{k}" for k in range(ny)),
            TIME_STEP,
            *(tuple(map(float, v)) for v in numbers),
        )
        return IdentifiedModel(cell, signals, None if initial is None else initial(cell))

    return make
