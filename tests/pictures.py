"""Reports without their pictures, which take most of the time; tests/evaluation/test_report.py has them all."""

import contextlib

import pytest

from robust_policies.evaluation.report import static


@contextlib.contextmanager
def undrawn():
    """Write reports whose figures are empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static, "save", lambda chart, folder: "<svg/>")
        yield
