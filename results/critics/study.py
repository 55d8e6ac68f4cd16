"""What is trained: three tasks, values and learnt rewards with a bound of their gain and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robust_policies.files.assets import task_folder
from robust_policies.files.atomic import read_json
from robust_policies.files.yaml_text import dump_yaml, read_yaml
from robust_policies.train import RunFolder, load_recipe, train
from robust_policies.train.compose import composed
from robust_policies.train.imitate import imitation_recipe
from robust_policies.train.recipe.recipe import Recipe

TASKS = {"Pendulum": 131072, "MassSpringDamper": 65536, "DCMotor": 65536}
"""Environment steps of a training in each task."""
_MEASURED = {
    "MassSpringDamper": ("mass_spring_damper", [0, 1], [0.02, 0.02], 0.95),
    "DCMotor": ("dc_motor", [0, 1], [0.002, 0.2], 0.95),
}
"""The task's folder, which of the linear plant's states are measured, with which noise, and the discount."""
CRITICS = {
    "unbounded": "mlp",
    "gamma 1": "{cell: lbdn, gamma: 1, activation: tanh}",
}
REWARDS = {
    "unbounded": "{cell: mlp, hidden_sizes: [32, 32], updates: 20}",
    "gamma 1": "{cell: lbdn, gamma: 1, hidden_sizes: [32, 32], updates: 20}",
}
SMALL = (
    "task.num_envs=128", "policy.hidden_sizes=[32, 32]", "checkpoints.keep=last", "checkpoints.every=10000000",
    "checkpoints.evaluate_episodes=50", "checkpoints.certify_every=0", "algorithm.n_steps=32",
    "algorithm.batch_size=1024", "algorithm.n_epochs=10", "algorithm.learning_rate=lin_2e-3",
)  # fmt: skip


def variants(part: str) -> dict[str, str]:
    """Return the variants of a part of the study, "critic" or "reward", by name."""
    return CRITICS if part == "critic" else REWARDS


def task_of(name: str, runs: Path) -> tuple[str, dict[str, Any], float]:
    """Return the Gymnasium id of a task, its options and the discount.

    The linear plants' tasks measure the position alone; a policy without memory needs the speed, measured here too.
    """
    if name not in _MEASURED:
        return f"robust_policies/{name}-v0", {}, 0.9
    source, states, noise, discount = _MEASURED[name]
    task = read_yaml(task_folder(source) / "task.yaml")
    size = len(task["names"]["state"])
    task["parameters"]["C"] = [[float(column == state) for column in range(size)] for state in states]
    task["noise"]["measurement"] = noise
    task["names"]["output"] = [f"measured {task['names']['state'][state]}" for state in states]
    task.pop("optimum")
    folder = runs / "tasks" / source
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.yaml").write_text(dump_yaml(task))
    return "robust_policies/Linear-v0", {"task": str(folder)}, discount


def recipe_of(part: str, task: str, variant: str, seed: int, runs: Path) -> Recipe:
    """Return the recipe of one training."""
    env_id, kwargs, discount = task_of(task, runs)
    steps = TASKS[task]
    changes = [*SMALL, f"algorithm.discount={discount}", f"checkpoints.evaluate_every={steps // 4}"]
    if part == "critic":
        changes += [f"policy.critic={CRITICS[variant]}", "policy.critic_kwargs={}"]
        return composed(env_id, "mlp", steps=steps, env_kwargs=kwargs, overrides=changes, seed=seed)[0]
    changes += ["policy.cell=mlp", f"algorithm.reward={REWARDS[variant]}", f"algorithm.total_steps={steps}"]
    teacher = str(runs / "teacher") if task == "Pendulum" else "lqg"
    return imitation_recipe(teacher, {"id": env_id, "kwargs": kwargs}, None, changes, method="gail", seed=seed)


def teach(runs: Path) -> None:
    """Train the teacher of the pendulum, of which there is no linear design that swings it up."""
    folder = runs / "teacher"
    if not (RunFolder(folder).provenance.is_file() and RunFolder(folder).policy_json.is_file()):
        train(load_recipe("pendulum_mlp"), folder, resume=folder.exists())


def measure(part: str, task: str, variant: str, seed: int, runs: Path) -> dict[str, Any]:
    """Return one row: a training's evaluations, the last of them of the last policy."""
    folder = runs / f"{part}_{task}_{variant.replace(' ', '_')}_{seed}"
    train(recipe_of(part, task, variant, seed, runs), folder, resume=folder.exists())
    provenance = RunFolder(folder).read_provenance()
    row = {
        "part": part,
        "task": task,
        "variant": variant,
        "seed": seed,
        "evaluations": [[steps, mean] for steps, _, mean in provenance["evaluations"]],
        "cpu_seconds": provenance["cpu_seconds"],
    }
    if part == "reward":
        said = read_json(RunFolder(folder).imitation, "imitation", 1)
        row |= {"teacher": said["teacher_return"], "proven": said["reward"]["proven_gain"]}
        row["found"] = said["reward"]["found_gain"]
    return row
