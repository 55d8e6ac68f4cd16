"""A recipe that trains in a second or two, and what one training of it leaves, for the tests that need no other."""

import shutil

import pytest
import torch
from stopping import stop_at
from tiny_recipe import TINY

from robust_policies.train import TrainingInterruptedError, load_recipe, train


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny():
    return load_recipe("pendulum_r2dn_gamma6", TINY)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory):
    """What `train` returns of the tiny recipe. Its run folder is read, never changed: `finished` is a copy."""
    torch.set_num_threads(1)
    return train(load_recipe("pendulum_r2dn_gamma6", TINY), tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def finished(finished_once, tmp_path):
    return shutil.copytree(finished_once.folder, tmp_path / "run")


@pytest.fixture(scope="session")
def stopped_once(tmp_path_factory):
    """The tiny recipe's run folder, stopped by Ctrl-C after 900 of 1600 steps. `stopped` is a copy."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(TrainingInterruptedError, match="--resume"):
        train(load_recipe("pendulum_r2dn_gamma6", TINY), folder, **stop_at(900))
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    return shutil.copytree(stopped_once, tmp_path / "run")
