"""A recipe that trains in a second or two."""

import pytest
import torch
from tiny_recipe import TINY

from robust_policies.train import load_recipe


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny():
    return load_recipe("pendulum_r2dn_gamma6", TINY)
