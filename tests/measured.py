"""Where measured records lie, which are no part of the project: a test that reads one is skipped where it is not."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("ROBUST_POLICIES_DATA", Path(__file__).parents[2] / "shared" / "data"))


def record(name):
    """Return the path of a measured record, or skip the test."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"the measured record {name} is not here")
    return path
