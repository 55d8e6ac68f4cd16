"""Cases that run in the soak, and those that stand for them every time."""

import pytest


def some_soak(cases, *every_time):
    """Return the cases for `parametrize`, all but those of every time marked for the soak."""
    return [case if case in every_time else pytest.param(case, marks=pytest.mark.soak) for case in cases]
