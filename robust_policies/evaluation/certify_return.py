"""What is certified of the return of a run folder: return_certificate.json and smoothed_return.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.certificates.certificate import array_hashes, digest
from robust_policies.envs.batch import ours, plant_of
from robust_policies.envs.plants.cartpole import CartPolePlant
from robust_policies.envs.plants.linear import LinearPlant
from robust_policies.envs.plants.pendulum import PendulumPlant
from robust_policies.errors import InvalidValueError
from robust_policies.policies import load_policy
from robust_policies.policies.return_certificate import ReturnCertificate
from robust_policies.policies.returns import certified_return
from robust_policies.policies.sensors import sensor_errors
from robust_policies.policies.smoothed import SmoothedReturn
from robust_policies.policies.smoothing import smoothed_return
from robust_policies.policies.storage import stored_task
from robust_policies.train.run.folder import RunFolder

# Of the sensors' own noise.
MULTIPLES = (0.5, 1.0, 2.0, 5.0)
# Of a smoothed policy: in this package's environments, which are many at once, and in those of other packages.
EPISODES, EPISODES_APART = 10_000, 1_000


def certify_return_run(
    folder: str | Path,
    sizes: Sequence[float] | None = None,
    norm: str = "per_step_l2",
    episodes: int = 64,
    seed: int = 0,
    delay: int = 0,
    noise: float | None = None,
) -> ReturnCertificate:
    """Return the certificate of the return in a run folder's own task, also written to return_certificate.json.

    On a linear plant it also has what an error of each sensor can do to each action and state
    (`policies.sensor_errors`).

    Args:
        folder: with policy.json and policy.safetensors, and the task's name in recipe.yaml or policy.json.
        sizes: of the perturbations; None: multiples of the largest deviation of the sensors' noise.
        norm: as of `policies.certified_return`, which says what is raised.
        episodes: their number.
        seed: of the episodes.
        delay: as of `policies.certified_return`.
        noise: as of `policies.certified_return`.
    """
    run = RunFolder(folder)
    policy, task = load_policy(run.path), _task(run)
    given = _default_sizes(task) if sizes is None else list(sizes)
    certificate = certified_return(policy, task, given, norm, episodes, seed, delay, noise)
    if isinstance(plant_of(task["id"], task["kwargs"]), LinearPlant):
        certificate = replace(certificate, sensors=sensor_errors(policy, task, delay))
    certificate = replace(certificate, policy_sha256=digest(array_hashes(policy.running_arrays())))
    certificate.to_json(run.return_certificate)
    return certificate


def certify_smoothed_run(
    folder: str | Path,
    sigma: float,
    sizes: Sequence[float] | None = None,
    episodes: int | None = None,
    confidence: float = 0.99,
    *,
    floor: float | None = None,
    seed: int = 0,
) -> SmoothedReturn:
    """Return what is certified of a run folder's policy behind noise, also written to smoothed_return.json.

    Args:
        folder: as of `certify_return_run`; the task's own wrappers are around it.
        sigma: as of `policies.smoothed_return`, as what follows; it says what is raised.
        sizes: of the attacks; None: multiples of sigma.
        episodes: their number; None: 10,000, and 1,000 in another package's environment.
        confidence: with which all holds together.
        floor: of the return.
        seed: of the episodes.
    """
    run = RunFolder(folder)
    policy, task = load_policy(run.path), _task(run)
    count = (EPISODES if ours(task["id"]) else EPISODES_APART) if episodes is None else episodes
    around = {"env_kwargs": task["kwargs"], "perturbations": task.get("perturbations", ())}
    found = smoothed_return(policy, task["id"], sigma, sizes, count, confidence, floor=floor, seed=seed, **around)
    found = replace(found, policy_sha256=digest(array_hashes(policy.running_arrays())))
    found.to_json(run.smoothed_return)
    return found


def _task(run: RunFolder) -> dict[str, Any]:
    if run.recipe.is_file():
        task = run.read_recipe().task
        return {"id": task.id, "kwargs": task.kwargs, "perturbations": task.perturbations}
    known = stored_task(run.path)
    if known is None:
        raise InvalidValueError(
            f"{run.path} has no recipe.yaml that names an environment, and its policy was saved without task=ID; save "
            "it with save_policy(policy, folder, task=ID)."
        )
    return {"id": known[0], "kwargs": known[1]}


def _default_sizes(task: dict[str, Any]) -> list[float]:
    plant = plant_of(task["id"], task["kwargs"])
    deviation = float(np.linalg.norm(plant.F, axis=1).max(initial=0.0)) if isinstance(plant, LinearPlant) else 1.0
    if isinstance(plant, (PendulumPlant, CartPolePlant)):
        deviation = 0.0
    if not deviation:
        raise InvalidValueError("The task's sensors have no noise that sizes could be multiples of; give --sizes.")
    return [multiple * deviation for multiple in MULTIPLES]
