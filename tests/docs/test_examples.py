"""Every example runs with tiny settings, and prints what its reader came for."""

import re
import runpy
import sys
from pathlib import Path

import gymnasium
import pytest
import torch

ROOT = Path(__file__).parents[2]
CLAIM, RETURN = "Proven for the arrays that run", r"return .*\d"
EXAMPLES = {
    "attack_and_report": (["--steps", "8192", "--episodes", "2"], [CLAIM, r"mlp return against", r"report\.html"]),
    "own_environment": (["--steps", "200"], [CLAIM, RETURN, "policy in"]),
    "own_mjcf": (["--steps", "800"], [CLAIM, RETURN]),
    "own_plant_from_matrices": (["--steps", "2560"], ["LQG design", CLAIM, "closed loop", RETURN]),
    "plain_pytorch": (["--steps", "5"], ["PASS: gain at most 2.000", "largest gain found"]),
    "sac_with_a_window": (["--steps", "110"], [CLAIM, RETURN]),
    "sweep_gains": (
        ["--steps", "8192", "--gammas", "4,6", "--seeds", "0"],
        [r"gamma 4: best return -\d+, 1 seed", r"gamma 6: best return"],
    ),
    "youla_around_lqg": (
        ["--steps", "256"],
        ["LQG design", "Proven for the linear model of the closed loop", RETURN],
    ),
}


def test_every_example_is_tested_and_listed():
    names = {path.stem for path in ROOT.glob("examples/*.py")}
    listed = set(re.findall(r"\[`(\w+)\.py`\]\(\1\.py\)", (ROOT / "examples/README.md").read_text(encoding="utf-8")))
    assert names == set(EXAMPLES) == listed


SLOW = ("attack_and_report", "sweep_gains")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in sorted(EXAMPLES)]
)
def test_the_example_runs(name, tmp_path, monkeypatch, capsys):
    arguments, shown = EXAMPLES[name]
    script = ROOT / "examples" / f"{name}.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    torch.set_num_threads(1)
    known = set(gymnasium.registry)
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        for env_id in set(gymnasium.registry) - known:
            del gymnasium.registry[env_id]
    printed = capsys.readouterr().out
    for pattern in shown:
        assert re.search(pattern, printed), f"{pattern!r} is not in what {name}.py printed:\n{printed}"


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_example_says_what_it_shows_and_how_to_run_it(name):
    docstring = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    assert "\nShows: " in docstring and f"\n    python examples/{name}.py" in docstring
