"""The command that says how steep a policy is near an observation."""

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from in_process import answer, one_line

from robust_policies.networks import make_cell
from robust_policies.policies import DeployedPolicy, save_policy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling


@pytest.fixture
def folder(tmp_path):
    def made(kind, **options):
        torch.manual_seed(0)
        actor = Actor(ScaledCell(make_cell(kind, 2, 1, **options), Scaling(2)), MeanHead(1, 1, False, 3.0))
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        save_policy(DeployedPolicy(actor, box, spaces.Box(-9, 9, (1,), np.float32)), tmp_path / kind)
        return tmp_path / kind, actor

    return made


def test_it_bounds_what_the_policy_does_in_the_box(folder):
    path, actor = folder("mlp", hidden_sizes=[8])
    done = answer("local", path, "--near", "0.3,-0.2", "--within", "0.1,0.2")
    assert done.returncode == 0, done.stderr
    bound = float(re.search(r"differ by at most ([\d.]+)\. Proven", done.stdout)[1])
    widths, middle = torch.tensor([0.1, 0.2]), torch.tensor([0.3, -0.2])
    one = middle + widths * (2 * torch.rand(2000, 2) - 1)
    two = torch.minimum(torch.maximum(one + widths * (2 * torch.rand(2000, 2) - 1), middle - widths), middle + widths)
    with torch.no_grad():
        moved = [actor.step(part, part[:, :0])[0] for part in (one, two)]
    found = float((moved[0] - moved[1]).abs().max())
    assert 0.3 * bound <= found <= bound


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--near", "0,x", "--within", "1"], "--near"),
        (["--near", "0,0", "--within", "0"], "--within"),
        (["--near", "0,0", "--within", "1,1,1"], "expected 2 number(s)"),
        (["--near", "0,0,0", "--within", "1"], "expected 2"),
    ],
)
def test_a_wrong_box_is_one_line(folder, options, words):
    path, _ = folder("mlp", hidden_sizes=[4])
    assert words in one_line(answer("local", path, *options))


def test_a_policy_with_a_memory_is_refused(folder):
    path, _ = folder("nemon", state_size=2, features=2)
    assert "memory" in one_line(answer("local", path, "--near", "0,0", "--within", "1"))
