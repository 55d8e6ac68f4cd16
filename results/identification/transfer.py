"""Policies trained on identified models beside ones trained on the true plant, both played on the true plant.

    OMP_NUM_THREADS=1 python -m results.identification.transfer                # whatever is missing
    OMP_NUM_THREADS=1 python -m results.identification.transfer --tasks dc_motor --seeds 0 1 2

Records are of this package's own plants with random inputs, so that the true return is known. Runs lie in
results/identification/runs/transfer/TASK; rows in transfer.json, which results.identification.make puts on its page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from results.training import train_missing
from robust_policies.envs import load_plant
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.files.atomic import read_json, write_atomic
from robust_policies.files.yaml_text import dump_yaml
from robust_policies.identification import IdentificationFolder, identify, load_model, parse_settings
from robust_policies.policies import load_policy

RESULTS = Path(__file__).resolve().parent
EPISODES = 100
WANTED = 0.95


@dataclass(frozen=True)
class Task:
    """One plant.

    Attributes:
        name, env_id, recipe: of the plant, and of the policy's training.
        inputs, outputs: names of the channels in the records.
        episodes: recorded.
        feedback: of the recorded inputs, on the observation: what keeps it where the policy will be.
        excitation: half width of the random part, held for `held` steps.
        cells: of the models.
        algorithm: of the identification.
        weights: of the outputs' and the inputs' squares in the true cost, in raw units, and the outputs' set point.
        steps: of each policy's training.
    """

    name: str
    env_id: str
    recipe: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    episodes: int
    feedback: tuple[float, ...]
    excitation: float
    held: int
    cells: Mapping[str, Mapping[str, Any]]
    algorithm: Mapping[str, Any]
    weights: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    steps: int


TASKS = {
    "dc_motor": Task(
        "DC motor",
        "robust_policies/DCMotor-v0",
        "dc_motor_r2dn_apg",
        ("voltage",),
        ("angle",),
        episodes=40,
        feedback=(4.0,),
        excitation=4.0,
        held=5,
        cells={"r2dn": {"name": "r2dn", "state_size": 4, "features": 8, "hidden_sizes": [16]}},
        algorithm={"total_steps": 1500, "batch": 32, "window": 100, "burn_in": 10, "initial_state": "encoded"},
        weights=((1.0,), (0.01,), (0.0,)),
        steps=400_000,
    ),
    # The cosine's distance from 1 and the sine: 2 (1 - cos), the angle's square where it is small. A contracting model
    # cannot fall over: beside it a GRU, of which nothing is proven.
    "pendulum": Task(
        "Pendulum",
        "robust_policies/Pendulum-v0",
        "pendulum_r2dn_apg",
        ("torque",),
        ("cos", "sin", "speed"),
        episodes=60,
        feedback=(0.0, 0.0, 0.0),
        excitation=2.0,
        held=10,
        cells={
            "r2dn": {"name": "r2dn", "state_size": 8, "features": 16, "hidden_sizes": [32]},
            "gru": {"name": "gru", "state_size": 32},
        },
        algorithm={"total_steps": 1500, "batch": 64, "window": 48, "burn_in": 6, "initial_state": "encoded"},
        weights=((1.0, 1.0, 0.1), (0.001,), (1.0, 0.0, 0.0)),
        steps=400_000,
    ),
}


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs" / "transfer")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "transfer.json"
    rows = {_key(row): row for row in (read_json(path, "results", 1)["rows"] if path.is_file() else [])}
    for seed in given.seeds:
        for name in given.tasks:
            for row in measured(name, seed, given.runs / name):
                rows[_key(row)] = row
                print(json.dumps(row), flush=True)
                ordered = [rows[key] for key in sorted(rows)]
                text = json.dumps({"schema": 1, "rows": ordered}, allow_nan=False, indent=1) + "\n"
                write_atomic(path, lambda file, text=text: file.write(text.encode()))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["trained_on"], row["seed"]


def measured(name: str, seed: int, runs: Path) -> Any:
    """Yield a row of each policy: what it was trained on, its mean return on the true plant, its certificate."""
    task = TASKS[name]
    files = records(task, seed, runs / "data" / f"seed={seed}")
    for kind in ("plant", *task.cells):
        model = runs / "models" / kind / f"seed={seed}"
        changes = [f"algorithm.total_steps={task.steps}", "target=null", "checkpoints.certify_every=0"]
        row: dict[str, Any] = {"task": name, "trained_on": kind, "seed": seed}
        if kind != "plant":
            if not IdentificationFolder(model).result.is_file():
                identify(settings_of(name, kind, files, seed), model, page=False, resume=model.is_dir())
            found = IdentificationFolder(model).read_result()["records"]
            row["fit"] = next(one["scores"]["model"]["all"]["fit"] for one in found if one["part"] == "test")
            row["model_status"] = read_json(IdentificationFolder(model).certificate, "certificate", 1)["status"]
            folder = task_folder(task, model, runs / "tasks" / kind / f"seed={seed}")
            changes += ["task.id=robust_policies/Identified-v0", f"task.kwargs.task={folder}"]
            changes += ["evaluation.tasks=[robust_policies/Identified-v0]"]
        policy = runs / "policies" / kind / f"seed={seed}"
        train_missing(task.recipe, changes, seed, policy)
        deployed = load_policy(policy)
        certificate = deployed.certificate()
        played = run_episodes(deployed, task.env_id, "gaussian", [0.0], EPISODES, 1000 + seed)
        row |= {"status": certificate.status, "gain": certificate.gamma_raw, "rate": certificate.rate}
        yield {**row, "return": float(np.mean(played.returns[0])), "episodes": EPISODES}


def records(task: Task, seed: int, folder: Path) -> list[str]:
    """Return the files of the recorded episodes, one each."""
    paths = [folder / f"episode{k}.npz" for k in range(task.episodes)]
    if all(path.is_file() for path in paths):
        return [str(path) for path in paths]
    env, rng = gymnasium.make(task.env_id), np.random.default_rng(seed)
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    for k, path in enumerate(paths):
        observation, _ = env.reset(seed=10_000 * seed + k)
        inputs, outputs, ended, t, drive = [], [], False, 0, 0.0
        while not ended:
            drive = rng.uniform(-task.excitation, task.excitation) if t % task.held == 0 else drive
            action = np.clip(drive - np.dot(task.feedback, observation), space.low, space.high).astype(np.float32)
            # A model's output at a time is of its inputs until then: what is seen before the action acts.
            inputs.append(action)
            outputs.append(observation)
            observation, _, terminated, truncated, _ = env.step(action)
            ended, t = terminated or truncated, t + 1
        u, y = np.asarray(inputs, float), np.asarray(outputs, float)
        columns: dict[str, Any] = {n: u[:, i] for i, n in enumerate(task.inputs)} | {
            n: y[:, i] for i, n in enumerate(task.outputs)
        }
        write_atomic(path, lambda file, columns=columns: np.savez(file, **columns))
    return [str(path) for path in paths]


def settings_of(name: str, kind: str, files: list[str], seed: int) -> Any:
    """Return the settings of an identification."""
    task = TASKS[name]
    return parse_settings(
        {
            "seed": seed,
            "data": {
                "files": files,
                "inputs": list(task.inputs),
                "outputs": list(task.outputs),
                "sample_time": load_plant(name).time_step,
            },
            "cell": dict(task.cells[kind]),
            "algorithm": {"patience": None, **task.algorithm},
        },
        name,
    )


def task_folder(task: Task, model: Path, folder: Path) -> Path:
    """Return the folder of a task.yaml with the true cost's weights, in the model's scales."""
    signals, (q, r, setpoint) = load_model(model).signals, task.weights
    space = gymnasium.make(task.env_id).action_space
    assert isinstance(space, gymnasium.spaces.Box)
    high = [float(end) for end in space.high]
    content = {
        "schema": 1,
        "plant": "robust_policies.identification.plant:IdentifiedPlant",
        "model": [str(model)],
        "max_episode_steps": 200,
        "limits": {"action_low": [-end for end in high], "action_high": high},
        "cost": {
            "outputs": [weight * scale**2 for weight, scale in zip(q, signals.output_scale, strict=True)],
            "actions": [weight * scale**2 for weight, scale in zip(r, signals.input_scale, strict=True)],
            "setpoint": list(setpoint),
        },
    }
    write_atomic(folder / "task.yaml", lambda file: file.write(dump_yaml(content).encode()))
    return folder


if __name__ == "__main__":
    main()
