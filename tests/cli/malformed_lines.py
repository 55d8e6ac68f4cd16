"""Malformed command lines."""

import random
from pathlib import Path

import typer
from malformed_base import RUN, Case, copied

from robust_policies.cli.app import app

_RIGHT = {
    "train": ["pendulum_gru"], "sweep": ["pendulum_gru"], "imitate": ["lqg", "--task", "robust_policies/Linear-v0"],
    "certify": [RUN], "evaluate": [RUN], "report": [RUN], "export": [RUN], "enjoy": [RUN, "--render", "none"],
    "list": ["envs"],
}  # fmt: skip
_WRONG: dict[str, list[str]] = {
    "--seed": ["one", "-1", "1.5", "", "nan", "99999999999999999999", "2147483648"],
    "--seeds": ["", "a", "3-1", "1,,2", "-1", "0-", "1.5", "1,1", "nan", "0-99999999999999999999"],
    "--device": ["gpu", "", "cuda:99", "cuda:", "cuda:x", "cpu:x", "mps!", "meta"],
    "--threads": ["0", "-1", "x", "1.5", "99999999999999999999"],
    "--set": ["", "=", "a", "policy.gamma", "=4", ".=1", "policy..gamma=4", "policy.gamma=[", "nonsense=1", "seed=x",
              "policy=5", "task.id.x=1", "policy.gamma=2020-13-45", "policy.gamma=*a", "policy.gamma=" + "[" * 2000,
              "policy.gamma=!!int x", "seed=" + "9" * 5000, "policy.gamma=.nan", "policy.gamma=a: b: c"],
    "--search": ["", "a", "policy.gamma=", "policy.gamma=5..1", "policy.gamma=a..b", "policy.gamma=log:0..1",
                 "seed=0..3", "policy.gamma=nan..1", "policy.gamma=1..inf", "nonsense=1..2", "policy.gamma=1",
                 "policy.gamma=1..2..3", "policy.gamma=" + "1,1"],
    "--jobs": ["0", "-1", "x", ""],
    "--trials": ["0", "x", "3"],
    "--objective": ["nonsense", "worst", ""],
    "--prune": [None],
    "--address": ["nonsense:port", "http://"],
    "--weights": ["", "a", "1,,2", "nan,1,1", "inf,1,1", "0,1,1", "-1,1,1", "1,2", "1" + ",1" * 40],
    "--suite": ["nonsense", "", "nowhere.yaml", ".", RUN],
    "--sizes": ["", "a", "-1", "nan", "inf", "1,,2", "0..3"],
    "--episodes": ["0", "-1", "x", "1.5"],
    "--task": [RUN, "nonsense", "", "nowhere/at/all", "robust_policies/Pendulum-v99", "nonsense:x", ":",
               "robust_policies/HalfCheetah-v0"],
    "--env": [RUN, ".", "nonsense", "nowhere/at/all", "robust_policies/Pendulum-v99", "nonsense:x", ":",
              "robust_policies/HalfCheetah-v0"],
    "--attack": ["nonsense", "", "PGD!"],
    "--perturb": ["", "nonsense", "[", "[Nonsense]", "[ObservationDelay: x]", "[ObservationDelay: -1]", "5",
                  "[ObservationDelay: 2020-13-45]", "[" * 2000, "[ObservationDelay: .nan]", "[[]]", "*a", "[1: 2]",
                  "!!int x"],
    "--format": ["pickle", "", "onnx", "safetensor"],
    "--render": ["vidoe", "", "Human!"],
    "--gamma": ["x", "0", "-1", "nan", "inf", ""],
    "--method": ["nonsense", ""],
    "--output": ["file.txt", "file.txt/x", "/proc/nowhere/x"],
    "--check": [None],
}  # fmt: skip


def options(random_: random.Random, base: Path) -> Case:
    """Return a command line that is malformed."""
    command = random_.choice(sorted(_RIGHT))
    known = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    own = [option for parameter in known.params for option in parameter.opts if option in _WRONG]
    takes = {option for p in known.params for option in (*p.opts, *p.secondary_opts) if p.param_type_name == "option"}
    right, way = list(_RIGHT[command]), random_.random()
    folder = "nowhere" if random_.random() < 0.3 else RUN
    if way < 0.2:
        name = random_.choice(["--nonsense", "-q", "--se", "---", "--set-", "--out put", "--é", "-", "--seed="])
        given = [*right, name] if random_.random() < 0.5 else [name, *right]
        if name == "-":
            given = ["nowhere"] if command == "evaluate" else [*right, name, name, name]
    elif way < 0.3:
        given = random_.choice(
            [[], ["", "", ""], ["nowhere/at/all"], ["--", "--help"], ["x" * 5000], ["a\nb"], ["file.txt"]]
        )
    elif way < 0.4:
        valued = sorted(takes & set(_WRONG) - {"--prune", "--check"})
        given = [*right, random_.choice(valued)] if valued else ["nonsense"]
    elif not own:
        given = random_.choice([["nonsense"], [""], ["envs", "more"], ["ENV"], ["--", "-x"]])
    else:
        option = random_.choice(own)
        value = random_.choice(_WRONG[option])
        if option == "--task" and value in (RUN, "nowhere/at/all") and command != "imitate":
            value = "nonsense"
        given = [*right, option] if value is None else [*right, option, value]
        if option == "--check":
            given += ["--weights", "1,1,1"]
        if option == "--search" and "--set" in own and random_.random() < 0.3:
            given += ["--objective", "nonsense"]
    given = [folder if argument == RUN else argument for argument in given]
    if command == "report" and RUN in given and "--output" not in given and len(given) == 1:
        given = ["nowhere"]

    def write(target: Path) -> None:
        copied(base, target)
        (target / "file.txt").write_text("hello\n")

    return Case(f"options: {command}", [command, *given], write)
