"""Every example runs with tiny settings, and prints what its reader came for."""

import re
import runpy
import sys
from pathlib import Path

import gymnasium
import pytest
import torch
import yaml

from robust_policies.evaluation.suite import parse_suite

ROOT = Path(__file__).parents[2]
CLAIM, RETURN = "Proven for the arrays that run", r"return .*\d"
SHORT = [
    "task.num_envs=4", "algorithm.n_steps=100", "algorithm.batch_size=200", "algorithm.n_epochs=1",
    "checkpoints.evaluate_every=400", "checkpoints.evaluate_episodes=2",
]  # fmt: skip
EXAMPLES = {
    "attack_and_report": (
        ["--steps", "800", "--episodes", "2", "--suite", str(ROOT / "tests/tiny_suite.yaml"), "--set", *SHORT],
        [CLAIM, r"mlp return against", r"report\.html"],
    ),
    "learn_with_rsl_rl": (["--steps", "512", "--num-envs", "8"], [CLAIM, RETURN, "policy in"]),
    "learn_with_skrl": (["--steps", "512", "--num-envs", "8"], [CLAIM, RETURN, "policy in"]),
    "identify_a_motor": (["--steps", "20"], [CLAIM, r"fit of the validation: ", "simulated speed", RETURN]),
    "learn_an_observer": (
        ["--steps", "64", "--boxes", "200"],
        [
            "no exact observer",
            r"(proven|statistical): for every trajectory",
            r"error at most \d\.",
            "innovations after",
        ],
    ),
    "observe_a_pendulum": (
        ["--steps", "20"],
        [r"injection: innovations .* by \d\.\de-1[3-9]", r"linear: innovations .* by \d\.\de-0\d", "proven where"],
    ),
    "own_environment": (["--steps", "200"], [CLAIM, RETURN, "policy in"]),
    "own_mjcf": (["--steps", "800"], [CLAIM, RETURN]),
    "own_plant_from_matrices": (["--steps", "2560"], ["LQG design", CLAIM, "closed loop", RETURN]),
    "plain_pytorch": (
        ["--steps", "5"],
        [r"PASS: gain at most [01]\.\d+, contraction rate at most 0\.\d+", "largest gain found"],
    ),
    "ppo_in_one_file": (
        ["--steps", "64", "--num-envs", "4", "--rollout", "8", "--epochs", "1", "--hidden", "4", "--state-size", "2"],
        [CLAIM, RETURN, "policy in"],
    ),
    "plan_with_a_convex_model": (
        ["--steps", "5", "--minutes", "2"],
        [r"error of the levels \d+", r"LQR \(target .* \d", r"convex model .*%", r"the tank itself .*%"],
    ),
    "sac_with_a_window": (["--steps", "110"], [CLAIM, RETURN]),
    "sweep_gains": (
        ["--steps", "400", "--gammas", "4,6", "--seeds", "0", "--set", *SHORT],
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


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.soak
def test_the_attack_runs_with_the_suite_it_shows(tmp_path, monkeypatch, capsys):
    arguments, shown = EXAMPLES["attack_and_report"]
    monkeypatch.setitem(EXAMPLES, "attack_and_report", (arguments[: arguments.index("--suite")], shown))
    test_the_example_runs("attack_and_report", tmp_path, monkeypatch, capsys)


def test_the_suite_of_the_attack_is_one():
    suite = runpy.run_path(str(ROOT / "examples" / "attack_and_report.py"))["SUITE"]
    parsed = parse_suite(yaml.safe_load(suite), "attack_and_report")
    assert [attack.name for attack in parsed.attacks] == ["mad_pgd", "sequence_pgd"]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_example_says_what_it_shows_and_how_to_run_it(name):
    docstring = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    assert "\nShows: " in docstring and f"\n    python examples/{name}.py" in docstring
