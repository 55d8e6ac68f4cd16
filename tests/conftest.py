"""What tests of several rooms share."""

import gc
import os

import pictures
import pytest
import torch

if not torch.cuda.is_available():
    # Triton asks when it is imported: its kernels then run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Spare the garbage collector what stays: modules and tests, through which it would go again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def undrawn():
    """Write reports without their pictures."""
    with pictures.undrawn():
        yield
