"""What is proven of a run's policy in the loop with the identified model that it was trained on: model_loop.json."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from robust_policies.certificates.certificate import array_hashes, digest
from robust_policies.envs.batch import plant_of
from robust_policies.envs.registration import IDENTIFIED
from robust_policies.errors import NotCertifiableError, RobustPoliciesError
from robust_policies.files.atomic import write_json
from robust_policies.files.versions import versions
from robust_policies.identification.loop import prove_model_loop
from robust_policies.identification.plant import IdentifiedPlant
from robust_policies.policies import DeployedPolicy, load_policy
from robust_policies.policies.storage import stored_task
from robust_policies.train.run.folder import RunFolder

SCHEMA = 1


def certify_model_loop(folder: str | Path) -> dict[str, Any] | None:
    """Return what is proven of the loop of a run folder's policy with its identified model, None for another task.

    It is also written to model_loop.json: status (PASS, NOT_PROVEN, or NOT_CERTIFIED where the loop is none that is
    known, with the reason), claim, rate, overshoot, steps, gain, and the sha256 of the policy's and the model's arrays.
    A model_loop.json of another task is removed.
    """
    run = RunFolder(folder)
    try:
        task, around = _task(run)
    except RobustPoliciesError:
        # Whether it has one is not known; what reads the folder says so.
        return None
    if task is None or task[0] != IDENTIFIED:
        run.model_loop.unlink(missing_ok=True)
        return None
    try:
        content = _proven(load_policy(run.path), task[1], around)
    # A certificate of the policy stands beside it, whatever became of the model.
    except (RobustPoliciesError, ValueError, ArithmeticError, OSError) as error:
        content = {"status": "NOT_CERTIFIED", "claim": f"Loop with the identified model: {error}", "reason": str(error)}
    content = {"schema": SCHEMA, **content, "versions": versions()}
    write_json(run.model_loop, content)
    return content


def _task(run: RunFolder) -> tuple[tuple[str, dict[str, Any]] | None, list[Any]]:
    """Return (name, options) of the task that a folder names, None for none, and the wrappers around it."""
    if run.recipe.is_file():
        task = run.read_recipe().task
        return (task.id, task.kwargs), task.perturbations
    return stored_task(run.path), []


def _proven(policy: DeployedPolicy, kwargs: dict[str, Any], around: list[Any]) -> dict[str, Any]:
    if around:
        raise NotCertifiableError(f"the wrappers around the task ({around}) are no part of it.")
    plant = plant_of(IDENTIFIED, kwargs)
    if type(plant) is not IdentifiedPlant:
        raise NotCertifiableError(f"the task's plant is {type(plant).__name__}, which may step the model otherwise.")
    if len(plant.models) != 1:
        raise NotCertifiableError(f"the task is an ensemble of {len(plant.models)} models; expected one.")
    found = prove_model_loop(policy, plant.models[0])
    arrays = array_hashes(policy.running_arrays()), array_hashes(plant.models[0].state_dict())
    return {**asdict(found), "policy_sha256": digest(arrays[0]), "model_sha256": digest(arrays[1])}
