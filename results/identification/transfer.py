"""Policies trained on identified models beside ones trained on the true plant, both played on the true plant.

    OMP_NUM_THREADS=1 python -m results.identification.transfer                # whatever is missing
    OMP_NUM_THREADS=1 python -m results.identification.transfer --tasks dc_motor --seeds 0 1 2

Records are of this package's own plants with random inputs, so that the true return is known. Runs lie in
results/identification/runs/transfer/TASK; rows in transfer.json, which results.identification.make puts on its page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from results.training import train_missing
from robust_policies.envs import load_plant
from robust_policies.envs.plant import Params
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.files.atomic import read_json, write_atomic
from robust_policies.files.yaml_text import dump_yaml
from robust_policies.identification import IdentificationFolder, identify, load_model, parse_settings
from robust_policies.identification.plant import IdentifiedPlant
from robust_policies.policies import load_policy

RESULTS = Path(__file__).resolve().parent
EPISODES, STEPS = 100, 200
# What gives an action at a step with an observation.
Act = Callable[[int, Any], Any]


@dataclass(frozen=True)
class Recording:
    """How an episode is recorded.

    Attributes:
        feedback: of the recorded inputs, on the observation: what keeps it where the policy will be.
        start: half widths of the state it begins in; None: as episodes do.
    """

    feedback: tuple[float, ...]
    start: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Ensemble:
    """Models of one cell from different seeds on the same records; an episode of a policy's training is of one.

    Attributes:
        cell: of the models.
        count: of the models.
        after: the models whose policy plays further episodes, which are recorded too; None: no further ones.
        episodes: of that policy.
    """

    cell: str
    count: int
    after: str | None = None
    episodes: int = 0


@dataclass(frozen=True)
class Task:
    """One plant.

    Attributes:
        name, env_id, recipe: of the plant, and of the policy's training.
        inputs, outputs: names of the channels in the records.
        episodes: recorded.
        recordings: of the episodes, in turn.
        excitation: half width of the random part, held for `held` steps.
        cells: of the models.
        algorithm: of the identification.
        steps: of each policy's training.
        weights: of the outputs' and the inputs' squares in the true cost, in raw units, and the outputs' set point.
        plant: the class with the cost, where that is not a sum of squares.
        judged: samples of each piece that chooses or tests a model; None: whole episodes.
        ensembles: by name.
    """

    name: str
    env_id: str
    recipe: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    episodes: int
    recordings: tuple[Recording, ...]
    excitation: float
    held: int
    cells: Mapping[str, Mapping[str, Any]]
    algorithm: Mapping[str, Any]
    steps: int
    weights: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]] | None = None
    plant: str = "robust_policies.identification.plant:IdentifiedPlant"
    judged: int | None = None
    ensembles: Mapping[str, Ensemble] = field(default_factory=dict)


class SwingUp(IdentifiedPlant):
    """An identified pendulum whose cost is the true one, of the angle that cosine and sine give."""

    def reward(self, state: Tensor, action: Tensor, following: Tensor, params: Params) -> Tensor:
        """Return minus the cost of a step from states (..., nx) with actions (..., 1)."""
        cos, sin, speed = self.observe(state, params).unbind(-1)
        limit = float(self.action_high[0])
        torque = action[..., 0].to(state.dtype).clamp(-limit, limit)
        return -(torch.atan2(sin, cos).square() + 0.1 * speed.square() + 0.001 * torque.square())


TASKS = {
    "dc_motor": Task(
        "DC motor",
        "robust_policies/DCMotor-v0",
        "dc_motor_r2dn_apg",
        ("voltage",),
        ("angle",),
        episodes=40,
        recordings=(Recording((4.0,)),),
        excitation=4.0,
        held=5,
        cells={"r2dn": {"name": "r2dn", "state_size": 4, "features": 8, "hidden_sizes": [16]}},
        algorithm={"total_steps": 1500, "batch": 32, "window": 100, "burn_in": 10, "initial_state": "encoded"},
        steps=400_000,
        weights=((1.0,), (0.01,), (0.0,)),
    ),
    # A contracting model cannot fall over, so the model is a GRU, of which nothing is proven. What falls over is not
    # foreseen for long, so it is judged by short pieces.
    "pendulum": Task(
        "Pendulum",
        "robust_policies/Pendulum-v0",
        "pendulum_r2dn_apg",
        ("torque",),
        ("cos", "sin", "speed"),
        episodes=150,
        # What falls over is seldom upright: a third of the episodes begins and is held there.
        recordings=(Recording((0.0, 0.0, 0.0)), Recording((0.0, 0.0, 0.0)), Recording((0.0, 12.0, 3.0), (0.3, 1.0))),
        excitation=2.0,
        held=10,
        cells={"gru": {"name": "gru", "state_size": 32}},
        algorithm={"total_steps": 5000, "batch": 64, "window": 20, "burn_in": 4, "initial_state": "encoded"},
        steps=400_000,
        plant="results.identification.transfer:SwingUp",
        judged=32,
        # A policy finds what is wrong with one model and uses it; what serves with each of several is right more often,
        # and what its own episodes show more often still.
        ensembles={
            "gru_ensemble": Ensemble("gru", 3),
            "gru_five": Ensemble("gru", 5),
            "gru_again": Ensemble("gru", 3, after="gru_ensemble", episodes=60),
        },
    ),
}


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--models", nargs="+", help="cells of the models, in place of all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs" / "transfer")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in given.seeds:
        for name in given.tasks:
            for row in measured(name, seed, given.runs / name, given.models):
                print(json.dumps(row), flush=True)
                _store(row)


def _store(row: Mapping[str, Any]) -> None:
    """Put a row in the place of its like."""
    path = RESULTS / "transfer.json"
    rows = {_key(one): one for one in (read_json(path, "results", 1)["rows"] if path.is_file() else [])}
    rows[_key(row)] = dict(row)
    text = json.dumps({"schema": 1, "rows": [rows[key] for key in sorted(rows)]}, allow_nan=False, indent=1) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["seed"], row["trained_on"] != "plant", row["trained_on"]


def measured(name: str, seed: int, runs: Path, models: Sequence[str] | None = None) -> Any:
    """Yield a row of each policy: what it was trained on, its mean return on the true plant, its certificate."""
    task = TASKS[name]
    files = records(task, seed, runs / "data" / f"seed={seed}")
    kinds = (*task.cells, *task.ensembles)
    for kind in ("plant", *(one for one in kinds if models is None or one in models)):
        changes = [f"algorithm.total_steps={task.steps}", "target=null", "checkpoints.certify_every=0"]
        row: dict[str, Any] = {"task": name, "trained_on": kind, "seed": seed}
        if kind != "plant":
            members = identified(name, kind, [files, *further(task, kind, seed, runs)], seed, runs / "models")
            found = [one for member in members for one in member.read_result()["records"] if one["part"] == "test"]
            fits = [one["scores"]["model"]["all"]["fit"] for one in found]
            # A piece in which nothing moves has none.
            row["fit"] = float(np.median([fit for fit in fits if fit is not None]))
            row["model_status"] = read_json(members[0].certificate, "certificate", 1)["status"]
            folder = task_folder(task, members, runs / "tasks" / kind / f"seed={seed}")
            changes += ["task.id=robust_policies/Identified-v0", f"task.kwargs.task={folder}"]
            changes += ["evaluation.tasks=[robust_policies/Identified-v0]"]
        policy = runs / "policies" / kind / f"seed={seed}"
        train_missing(task.recipe, changes, seed, policy)
        deployed = load_policy(policy)
        certificate = deployed.certificate()
        played = run_episodes(deployed, task.env_id, "gaussian", [0.0], EPISODES, 1000 + seed)
        row |= {"status": certificate.status, "gain": certificate.gamma_raw, "rate": certificate.rate}
        yield {**row, "return": float(np.mean(played.returns[0])), "episodes": EPISODES}


def identified(name: str, kind: str, files: list[list[str]], seed: int, models: Path) -> list[IdentificationFolder]:
    """Return the folders of a model, or of an ensemble's; on the same records the first is the cell's own model."""
    ensemble = TASKS[name].ensembles.get(kind, Ensemble(kind, 1))
    found = []
    for k in range(ensemble.count):
        place = ensemble.cell if ensemble.after is None else kind
        folder = IdentificationFolder(models / place / (f"seed={seed}" + (f"_{k}" if k else "")))
        if not folder.result.is_file():
            settings = settings_of(name, ensemble.cell, files, seed + 100 * k)
            identify(settings, folder.path, page=False, resume=folder.path.is_dir())
        found.append(folder)
    return found


def records(task: Task, seed: int, folder: Path) -> list[str]:
    """Return the files of the recorded episodes with random inputs, one each."""
    rng = np.random.default_rng(seed)

    def feedback(how: Recording) -> Act:
        drive = 0.0

        def act(t: int, observation: Any) -> Any:
            nonlocal drive
            drive = rng.uniform(-task.excitation, task.excitation) if t % task.held == 0 else drive
            return drive - np.dot(how.feedback, observation)

        return act

    def begun(k: int) -> tuple[Act, dict[str, Any] | None]:
        how = task.recordings[k % len(task.recordings)]
        start = None if how.start is None else {"state": rng.uniform(-1.0, 1.0, len(how.start)) * how.start}
        return feedback(how), start

    paths = [folder / f"episode{k}.npz" for k in range(task.episodes)]
    return recorded(task, paths, 10_000 * seed, begun)


def further(task: Task, kind: str, seed: int, runs: Path) -> list[list[str]]:
    """Return the files of episodes that the policy of other models played on the plant, with random inputs added."""
    ensemble = task.ensembles.get(kind)
    if ensemble is None or ensemble.after is None:
        return []
    policy = load_policy(runs / "policies" / ensemble.after / f"seed={seed}")
    rng = np.random.default_rng(5_000 + seed)

    def begun(k: int) -> tuple[Act, None]:
        # From none of it to a quarter of what the first records have.
        share, drive, memory = 0.25 * (k % 3) / 2, 0.0, None

        def act(t: int, observation: Any) -> Any:
            nonlocal drive, memory
            drive = share * rng.uniform(-task.excitation, task.excitation) if t % task.held == 0 else drive
            action, memory = policy.predict(observation, memory)
            return action + drive

        return act, None

    paths = [runs / "data" / f"seed={seed}" / f"{kind}{k}.npz" for k in range(ensemble.episodes)]
    return [recorded(task, paths, 10_000 * seed + 5_000, begun)]


def recorded(
    task: Task, paths: list[Path], seed: int, begun: Callable[[int], tuple[Act, dict[str, Any] | None]]
) -> list[str]:
    """Return the files of recorded episodes, one each: of `begun(k)`, what acts and the options of the reset."""
    if all(path.is_file() for path in paths):
        return [str(path) for path in paths]
    env = gymnasium.make(task.env_id)
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    for k, path in enumerate(paths):
        act, options = begun(k)
        observation, _ = env.reset(seed=seed + k, options=options)
        inputs, outputs, ended = [], [], False
        while not ended:
            action = np.clip(act(len(inputs), observation), space.low, space.high).astype(np.float32)
            # A model's output at a time is of its inputs until then: what is seen before the action acts.
            inputs.append(action)
            outputs.append(observation)
            observation, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
        u, y = np.asarray(inputs, float), np.asarray(outputs, float)
        columns: dict[str, Any] = {n: u[:, i] for i, n in enumerate(task.inputs)} | {
            n: y[:, i] for i, n in enumerate(task.outputs)
        }
        write_atomic(path, lambda file, columns=columns: np.savez(file, **columns))
    return [str(path) for path in paths]


def settings_of(name: str, kind: str, files: list[list[str]], seed: int) -> Any:
    """Return the settings of an identification, with files of several sorts."""
    task, parts = TASKS[name], {}
    if task.judged is not None:
        pieces = [f"[{k}:{k + task.judged}]" for k in range(0, STEPS - task.judged + 1, task.judged)]
        parts = {"train": [], "validation": [], "test": []}
        for names in ([Path(path).stem for path in some] for some in files):
            first, second = round(0.7 * len(names)), round(0.85 * len(names))
            parts["train"] += names[:first]
            parts["validation"] += [name + piece for name in names[first:second] for piece in pieces]
            parts["test"] += [name + piece for name in names[second:] for piece in pieces]
    return parse_settings(
        {
            "seed": seed,
            "data": {
                "files": [path for some in files for path in some],
                "inputs": list(task.inputs),
                "outputs": list(task.outputs),
                "sample_time": load_plant(name).time_step,
                **parts,
            },
            "cell": dict(task.cells[kind]),
            "algorithm": {"patience": None, **task.algorithm},
        },
        name,
    )


def task_folder(task: Task, members: Sequence[IdentificationFolder], folder: Path) -> Path:
    """Return the folder of a task.yaml with the true cost, its weights in the model's scales."""
    space = gymnasium.make(task.env_id).action_space
    assert isinstance(space, gymnasium.spaces.Box)
    high = [float(end) for end in space.high]
    content: dict[str, Any] = {
        "schema": 1,
        "plant": task.plant,
        "model": [str(member.path) for member in members],
        "member": "each" if len(members) > 1 else "mean",
        "max_episode_steps": STEPS,
        "starts": "beginnings",
        "limits": {"action_low": [-end for end in high], "action_high": high},
    }
    if task.weights is not None:
        signals, (q, r, setpoint) = load_model(members[0].path).signals, task.weights
        content["cost"] = {
            "outputs": [weight * scale**2 for weight, scale in zip(q, signals.output_scale, strict=True)],
            "actions": [weight * scale**2 for weight, scale in zip(r, signals.input_scale, strict=True)],
            "setpoint": list(setpoint),
        }
    write_atomic(folder / "task.yaml", lambda file: file.write(dump_yaml(content).encode()))
    return folder


if __name__ == "__main__":
    main()
