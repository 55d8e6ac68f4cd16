"""Cases that run with the slow tests, and those that stand for them every time."""

import pytest


def some_slow(cases, *fast):
    """Return the cases for `parametrize`, all but `fast` marked as slow."""
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in cases]
