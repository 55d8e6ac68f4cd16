"""Small settings, models and data."""

import pytest
from small_data import record
from small_models import SMALL, small_model

from robust_policies.identification import parse_settings
from robust_policies.identification.records import Experiment


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
    return small_model
