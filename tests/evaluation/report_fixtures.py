"""Run folders with made-up measurements of every kind a report shows, written quickly and the same each time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.train.run.logs import tensorboard_logger

PENDULUM, CARTPOLE = "robust_policies/Pendulum-v0", "robust_policies/CartPole-v0"
SIZES = (0.0, 0.06, 0.11, 0.15, 0.21, 0.3)
ATTACKS = {"per_step_l2": ("mad_pgd", "sequence_pgd", "closed_loop_pgd"), "total_l2": ("sequence_pgd",)}
STRENGTH = {"random": 0.2, "mad_pgd": 0.6, "sequence_pgd": 0.8, "closed_loop_pgd": 1.0}
METHODS = {"R2DN gamma 3": 3.0, "R2DN gamma 10": 10.0, "LSTM": None}


def write_run(
    folder: Path,
    method: str,
    gamma: float | None,
    seed: int = 0,
    *,
    episodes: int = 10,
    tasks: Sequence[str] = (PENDULUM,),
    **changes: Any,
) -> Path:
    """Write one run folder; `changes` replace entries of evaluation.json."""
    folder.mkdir(parents=True)
    random = np.random.default_rng([seed, len(method), *map(ord, method[:4])])
    softness = 1.0 if gamma is None else gamma / 10
    evaluation = _evaluation(folder, method, seed, softness, episodes, tasks, random)
    (folder / "evaluation.json").write_text(json.dumps({**evaluation, **changes}))
    _certificate(folder, gamma, random)
    steps = [1, 2, 5, 10, 20, 50]
    gain = np.sort(random.uniform(0.5, 0.95, len(steps))) * (gamma or 20.0)
    tightness = {"schema": 1, "steps": steps, "gain": gain.tolist(), "gamma_raw": gamma}
    (folder / "tightness.json").write_text(json.dumps(tightness))
    provenance = {
        "schema": 1,
        "command": f"robust-policies train train/{method.replace(' ', '_')}.yaml --seed {seed}",
        "seed": seed,
        "num_timesteps": 200_000,
        "versions": {"torch": "2.9"},
        "target": {
            "expected": -200.0,
            "within": 150_000,
            "best": -161.2,
            "best_steps": 120_000,
            "reached_steps": 80_000,
            "reached_cpu_seconds": 61.0,
        },
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    (folder / "recipe.yaml").write_text(f"schema: 1\nseed: {seed}\ndescription: {method}\n")
    logger = tensorboard_logger(folder / "tensorboard", 0)
    for step in range(2000, 200_001, 4000):
        logger.record("rollout/ep_rew_mean", -1200 * np.exp(-step / 4e4) - 160 + random.normal(0, 12))
        logger.dump(step)
    logger.close()
    return folder


def write_table(root: Path, seeds: int = 2, methods: dict[str, float | None] | None = None, **options: Any) -> Path:
    """Write a folder of run folders: some training seeds of each method."""
    for method, gamma in (methods or METHODS).items():
        for seed in range(seeds):
            write_run(root / f"{method.replace(' ', '_').lower()}_seed{seed}", method, gamma, seed, **options)
    return root


def _evaluation(
    folder: Path, method: str, seed: int, softness: float, episodes: int, tasks: Sequence[str], random: Any
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    worst, critical, index = [], [], []
    arrays: dict[str, np.ndarray] = {}
    for task in tasks:
        level = random.normal(-160, 4, episodes) - (0 if softness < 0.5 else -5)

        def row(group: str, name: str, norm: str, size: float, harm: float, *, task=task, level=level, **more: Any):
            returns = level - 450 * np.tanh(harm) - (random.random(episodes) < 0.1) * 60 * min(harm, 1.0)
            gain = None if size == 0 or group != "attack" else float(softness * 8 * random.uniform(0.5, 1.0))
            rows.append(
                {
                    "policy": folder.name,
                    "task": task,
                    "group": group,
                    "perturbation": name,
                    "attack": name if group == "attack" else "",
                    "norm": norm,
                    "size": size,
                    "unit": more.get("unit", ""),
                    "point": more.get("point", {}),
                    "seed": 0,
                    "episodes": episodes,
                    "mean": float(returns.mean()),
                    "low": float(returns.min()),
                    "high": float(returns.max()),
                    "returns": returns.tolist(),
                    "lengths": [200] * episodes,
                    "deviation": gain and 0.6 * gain,
                    "measured_gain": gain,
                }
            )
            return returns

        row("noise", "none", "", 0.0, 0.0)
        for size in SIZES:
            row("noise", "uniform", "", size, size * softness * 0.3, unit="of the observation")
            for norm, attacks in ATTACKS.items():
                scale = 1.0 if norm == "per_step_l2" else 0.1
                found = {a: row("attack", a, norm, size, size * softness * 6 * STRENGTH[a] * scale) for a in attacks}
                name = min(found, key=lambda attack: found[attack].mean())
                mean = float(found[name].mean())
                worst.append(
                    {
                        "task": task,
                        "norm": norm,
                        "size": size,
                        "attack": name,
                        "mean": mean,
                        "low": mean - 9,
                        "high": mean + 9,
                        "returns": found[name].tolist(),
                    }
                )
        for steps in range(6):
            row("fault", "ObservationDelay", "", float(steps), 0.15 * steps, unit="steps")
        for probability in (0.0, 0.1, 0.3):
            row("fault", "ObservationDropout", "", probability, softness * probability, unit="probability")
        for mass in (0.8, 1.0, 1.2):
            for length in (0.8, 1.0, 1.2):
                harm = abs(mass - 1) + abs(length - 1)
                row("parameter", "mass x length", "", 0.0, harm, point={"mass": mass, "length": length})
        critical.append(
            {
                "task": task,
                "perturbation": "closed_loop_pgd",
                "norm": "per_step_l2",
                "level": 0.8,
                "nominal": -160.0,
                "threshold": -192.0,
                "size": 0.4 * (1.1 - softness) if softness < 1 else None,
                "low": 0.1,
                "high": 0.12,
                "evaluations": 9,
            }
        )
        for number, (name, norm, size) in enumerate(
            [("none", "", 0.0), ("closed_loop_pgd", "per_step_l2", 0.11), ("closed_loop_pgd", "per_step_l2", 0.3)]
        ):
            key = f"t{tasks.index(task)}_{number}"
            index.append({"task": task, "perturbation": name, "norm": norm, "size": size, "key": key})
            time = np.arange(200)[:, None]
            angle = np.pi * np.exp(-time / 30) * np.cos(time / 15) + 3 * size * np.sin(time / 9) + np.zeros((1, 3))
            speed = np.gradient(angle, axis=0) * 20
            seen = np.stack([np.cos(angle), np.sin(angle), speed], -1)
            arrays[f"{key}_observations"] = seen.astype(np.float32)
            arrays[f"{key}_perturbed"] = (seen + size / 2).astype(np.float32)
            arrays[f"{key}_actions"] = np.clip(-speed, -2, 2)[..., None].astype(np.float32)
            arrays[f"{key}_rewards"] = -(angle**2 + 0.1 * speed**2).astype(np.float32)
    np.savez(folder / "trajectories.npz", **arrays)
    return {
        "schema": 2,
        "policy": folder.name,
        "method": method,
        "training_seed": seed,
        "cell": "r2dn",
        "suite": "standard",
        "suite_resolved": {},
        "tasks": list(tasks),
        "perturbations": [],
        "episodes": episodes,
        "seeds": [0],
        "rows": rows,
        "critical_sizes": critical,
        "worst": worst,
        "tuning": [],
        "failures": [],
        "skipped": [],
        "trajectories": index,
        "seconds": 41.0,
        "versions": {"torch": "2.9"},
    }


def _certificate(folder: Path, gamma: float | None, random: Any) -> None:
    found = float((gamma or 30.0) * random.uniform(0.6, 0.95))
    content: dict[str, Any] = {
        "schema": 1,
        "status": "NOT_CERTIFIED",
        "claim": "Nothing is proven: an LSTM has no bound here.",
        "empirical_lower": found,
        "witness": "witness.npz",
        "factors": [],
        "arrays_sha256": {},
        "versions": {},
    }
    if gamma is not None:
        content |= {
            "status": "PASS",
            "gamma_core": gamma / 2,
            "gamma_raw": gamma,
            "rate": 1.0,
            "overshoot": 12.0,
            "margin": 1e-5,
            "ratio": found / gamma,
            "claim": f"Proven for the arrays that run, in exact arithmetic: for any two observation sequences and the "
            f"same initial state, the l2 norm of the difference of the mean actions is at most {gamma:g} times the l2 "
            "norm of the difference of the raw observations. Nothing is said of the closed loop.",
            "factors": [
                {"name": "observation scale", "gain": 1.0, "note": "largest factor of a fixed affine map"},
                {"name": "cell", "gain": gamma / 2, "note": "LMI"},
                {"name": "action scale", "gain": 2.0, "note": "from [-1, 1] to the actuator's range"},
            ],
        }
    (folder / "certificate.json").write_text(json.dumps(content))
