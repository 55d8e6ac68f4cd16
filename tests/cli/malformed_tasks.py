"""Malformed task folders."""

import random
from pathlib import Path

from malformed_base import Case, leaves, misspelt, put, spoilt, spoilt_text, write_file

from robust_policies.files.assets import tasks_folder
from robust_policies.files.yaml_text import dump_yaml, read_yaml

# Their commands take the least time.
_TASKS = {
    "double_integrator": "DoubleIntegrator", "pendulum": "Pendulum", "cartpole": "CartPole", "youla_example":
    "YoulaExample", "qube_servo": "QubeServo", "inverted_pendulum": "InvertedPendulum", "maglev": "MagLev",
    "quadrotor_planar": "QuadrotorPlanar", "hopper": "Hopper", "mass_spring_damper": "MassSpringDamper",
}  # fmt: skip
_PLANTS = {
    "a class that is not there": ("plant.py:Nothing", "x = 1\n"),
    "a class that is no plant": ("plant.py:Thing", "class Thing:\n    pass\n"),
    "code that raises": ("plant.py:Thing", "raise RuntimeError('no\\nway')\n"),
    "code that ends the process": ("plant.py:Thing", "raise SystemExit(3)\n"),
    "code that is no Python": ("plant.py:Thing", "class :\n"),
    "code of bytes": ("plant.py:Thing", "\x00\x01"),
    "no file": ("nowhere.py:Thing", None),
    "no module": ("nowhere.at.all:Thing", None),
    "nothing before the colon": (":Thing", None),
    "a module's name that is none": ("..:Thing", None),
    "nothing after the colon": ("plant.py:", "x = 1\n"),
    "a class without methods": (
        "plant.py:Thing",
        "from robust_policies.envs.plant import Plant, TaskFile\nclass Thing(Plant):\n    Task = TaskFile\n",
    ),
    "a class without a task": (
        "plant.py:Thing",
        "from robust_policies.envs.plant import Plant\nclass Thing(Plant):\n    pass\n",
    ),
}


def task(random_: random.Random, base: Path) -> Case:
    """Return a command that reads a malformed task folder."""
    name = random_.choice(sorted(_TASKS))
    data = read_yaml(tasks_folder() / name / "task.yaml")
    way, code = random_.random(), None
    if way < 0.2:
        what, content = spoilt_text(random_, dump_yaml(data))
    elif way < 0.3:
        key = random_.choice([key for key in data if key in ("plant", "schema", "time_step", "max_episode_steps")])
        del data[key]
        what, content = f"without {key}", dump_yaml(data).encode()
    elif way < 0.4:
        what = random_.choice(sorted(_PLANTS))
        data["plant"], code = _PLANTS[what]
        content = dump_yaml(data).encode()
    elif way < 0.5:
        path, value = random_.choice([(p, v) for p, v in leaves(data) if isinstance(p[-1], str)])
        wrong = (*path[:-1], misspelt(random_, path[-1]))
        put(data, wrong, value)
        what, content = f"key {wrong}", dump_yaml(data).encode()
    else:
        path, value = random_.choice(
            [one for one in leaves(data) if one[0] != ("description",) and one[0][0] != "termination"]
        )
        wrong = spoilt(random_, value)
        put(data, path, wrong)
        what, content = f"{path} {wrong!r:.80}", dump_yaml(data).encode()

    def write(folder: Path) -> None:
        write_file(folder / "mine" / "task.yaml", content)
        if code is not None:
            (folder / "mine" / "plant.py").write_text(code)
        data = {"task": {"id": f"robust_policies/{_TASKS[name]}-v0", "num_envs": 2, "kwargs": {"task": "mine"}}}
        data |= {"algorithm": {"total_steps": 100, "n_steps": 8, "batch_size": 8}}
        (folder / "recipe.yaml").write_text(dump_yaml(data))

    given = ["--set", "task.kwargs.task=mine"]
    command = random_.choice(
        [
            ["train", "recipe.yaml", "-o", "out"],
            ["train", "recipe.yaml", "--set", "algorithm={name: apg, total_steps: 100}"],
            ["imitate", "lqg", "--task", f"robust_policies/{_TASKS[name]}-v0", *given],
        ]
    )
    return Case(f"task {name}: {what}", command, write)
