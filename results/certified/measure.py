"""What is measured of one policy of results/certified: a row of plain numbers; costs are what returns fall short of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from results.certified.study import Study
from robust_policies.errors import NotCertifiableError
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.files.atomic import write_json
from robust_policies.policies import DeployedPolicy, certified_return, load_policy

EPISODES, SEED = 16, 777
ATTACK = {"search": "whole_episode", "steps": 10, "restarts": 2}


def measure_run(study: Study, method: str, folder: Path, runs: Path) -> None:
    """Write measured.json into a run's folder unless it is there."""
    done = folder / "measured.json"
    if done.is_file():
        return
    began, policy, kwargs = time.process_time(), load_policy(folder), study.environment(runs)
    seed = int(folder.name.partition("=")[2])
    row = {"method": method, "seed": seed, "episodes": EPISODES, **_certified(study, policy, kwargs)}
    attacked = run_episodes(
        policy, study.task, "closed_loop_pgd", study.sizes, EPISODES, SEED, options=ATTACK, env_kwargs=kwargs
    )  # fmt: skip
    for size, returns in zip(row["sizes"], attacked.returns, strict=True):
        # Both search the same episodes; a worse one at a smaller size counts as well.
        size["attacked"] = _mean_cost(study, returns)
    worst = np.maximum.accumulate([max(size["found"], size["attacked"]) for size in row["sizes"]])
    for size, value in zip(row["sizes"], worst, strict=True):
        size["worst"] = float(value)
    row["delays"] = [_delayed(study, policy, kwargs, steps) for steps in (0, *study.delays)]
    row["factors"] = _changed(study, policy, kwargs)
    row["cpu_seconds"] = time.process_time() - began
    write_json(done, {"schema": 1, **row})
    print(f"{folder}: measured in {row['cpu_seconds']:.0f} s of CPU, {row['status']}", flush=True)


def _certified(study: Study, policy: DeployedPolicy, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what is proven, and the worst that the same search found."""
    task = {"id": study.task, "kwargs": kwargs}
    try:
        found = certified_return(policy, task, study.sizes, episodes=EPISODES, seed=SEED)
    except NotCertifiableError as error:
        raise NotCertifiableError(f"{study.name}: {error}") from error
    sizes = [
        {
            "size": row.size,
            "nominal": study.best - row.nominal,
            "found": study.best - row.found,
            "certified": None if row.certified is None else study.best - row.certified,
            "unclipped": None if row.unclipped is None else study.best - row.unclipped,
            "clipped_share": row.clipped_share,
        }
        for row in found.rows
    ]
    region = None if found.region is None else found.region["size_up_to"]
    return {
        "status": found.status, "gain": found.gain, "unclipped_up_to": found.unclipped_up_to, "region": region,
        "set_aside": found.set_aside, "reason": found.reason, "sizes": sizes,
    }  # fmt: skip


def _mean_cost(study: Study, returns: Any) -> float:
    return float(study.best - np.mean(np.asarray(returns, dtype=float)))


def _delayed(study: Study, policy: DeployedPolicy, kwargs: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the mean cost with actions `steps` late."""
    found = run_episodes(
        policy, study.task, "uniform", [0.0], EPISODES, SEED,
        env_kwargs=kwargs, perturbations=[{"ActionDelay": {"steps": steps}}] if steps else (),
    )  # fmt: skip
    return {"steps": steps, "nominal": _mean_cost(study, found.returns[0])}


def _changed(study: Study, policy: DeployedPolicy, kwargs: dict[str, Any]) -> dict[str, list[float]]:
    """Return the mean costs with each physical parameter at the least and the largest factor of the task's."""
    costs = {}
    for name, (low, high) in study.plant().task.randomize.items():
        found = run_episodes(
            policy, study.task, "uniform", [0.0, 0.0], EPISODES, SEED, env_kwargs=kwargs, factors={name: [low, high]}
        )
        costs[name] = [_mean_cost(study, returns) for returns in found.returns]
    return costs
