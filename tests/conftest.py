"""What tests of several rooms share."""

import pictures
import pytest


@pytest.fixture
def undrawn():
    """Write reports without their pictures."""
    with pictures.undrawn():
        yield
