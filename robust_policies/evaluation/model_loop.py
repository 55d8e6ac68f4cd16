"""What is proven of a run's policy in the loop with the identified model that it was trained on: model_loop.json.

The plant of that task proves it (`identification.loop`); model_loop.npz keeps what its search ended at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from robust_policies.certificates.certificate import array_hashes, digest
from robust_policies.certificates.kept import Book, keeping
from robust_policies.envs.batch import plant_of, spec_of
from robust_policies.envs.registration import IDENTIFIED
from robust_policies.envs.task import task_file
from robust_policies.errors import CorruptFileError, NotCertifiableError, RobustPoliciesError, UserError
from robust_policies.evaluation.recomputed import SENTENCE, differs, same, same_words
from robust_policies.files.atomic import read_json, write_json
from robust_policies.files.versions import versions
from robust_policies.files.yaml_text import read_yaml
from robust_policies.networks.once import unchanging
from robust_policies.policies import DeployedPolicy, load_policy
from robust_policies.policies.storage import stored_task
from robust_policies.train.run.folder import RunFolder

SCHEMA = 1
STATUSES = ("PASS", "NOT_PROVEN", "NOT_CERTIFIED")
_NUMBERS = ("rate", "overshoot", "steps", "gain")
# As the task file names it: of another one nothing is known, and none of its code runs.
_PLANT = "robust_policies.identification.plant:IdentifiedPlant"


def certify_model_loop(folder: str | Path) -> dict[str, Any] | None:
    """Return what is proven of the loop of a run folder's policy with its identified model, None for another task.

    It is also written to model_loop.json: status (PASS, NOT_PROVEN, or NOT_CERTIFIED where the loop is none that is
    known, with the reason), claim, rate, overshoot, steps, gain, and the sha256 of the policy's and the model's
    numbers; beside it model_loop.npz, what the search ended at, for `check_model_loop`. Those of another task are
    removed. Raises as `load_policy`.
    """
    run = RunFolder(folder)
    try:
        task, around = _task(run)
    except RobustPoliciesError:
        # Whether it has one is not known; what reads the folder says so.
        return None
    if task is None or task[0] != IDENTIFIED:
        for path in (run.model_loop, run.model_loop_proof):
            path.unlink(missing_ok=True)
        return None
    with keeping(Book()) as book:
        content = {"schema": SCHEMA, **_proven(load_policy(run.path), task[1], around), "versions": versions()}
    write_json(run.model_loop, content)
    book.save(run.model_loop_proof)
    return content


def read_model_loop(path: Path) -> dict[str, Any]:
    """Return the content of model_loop.json; raises MissingFileError, CorruptFileError, SchemaError."""
    content = read_json(path, "model loop", SCHEMA)
    wrong = [name for name in ("claim", "reason") if not isinstance(content.get(name), str)]
    wrong += [name for name in _NUMBERS if not _is_number(content.get(name))]
    if content.get("status") not in STATUSES:
        wrong.append("status")
    elif content["status"] == "PASS":
        wrong += [name for name in ("rate", "overshoot") if content.get(name) is None]
    if wrong:
        raise CorruptFileError(f"{path} lacks or garbles {', '.join(wrong)}; write it again with `certify`.")
    return content


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


class LoopCheck(NamedTuple):
    """What in model_loop.json is not so, and why it could not be checked, "" where it could."""

    differences: list[str]
    reason: str = ""


def check_model_loop(folder: str | Path, policy: DeployedPolicy) -> LoopCheck | None:
    """Return what differs between a run folder's model_loop.json and what its policy and the model show now.

    The sha256 of both, and the proof: what model_loop.npz has of it is proven again and not searched for. None where
    there is no such file. `policy` is the folder's.
    """
    run = RunFolder(folder)
    if not run.model_loop.exists():
        return None
    try:
        stored = read_model_loop(run.model_loop)
        task, around = _task(run)
    except UserError as error:
        return LoopCheck([str(error)])
    with unchanging(), keeping(Book.load(run.model_loop_proof)):
        try:
            if task is None or task[0] != IDENTIFIED:
                found = ["the task of this folder is no identified model"]
            else:
                found = _differences(stored, policy, task[1], around)
        except (UserError, OSError) as error:
            return LoopCheck([], f"{run.model_loop.name} cannot be checked: {error}")
    return LoopCheck([f"{run.model_loop.name}: {one}" for one in found])


def _differences(stored: Mapping[str, Any], policy: DeployedPolicy, kwargs: dict[str, Any], around: list) -> list[str]:
    """Return one line for each entry that is not what was computed again; raises where the model cannot be read."""
    if stored.get("policy_sha256") not in (None, _sha256(policy)):
        return ["it is of another policy; the sha256 it states is not this one's"]
    if stored["status"] != "NOT_CERTIFIED":
        try:
            model = _plant(kwargs, around)
        except NotCertifiableError:
            model = None
        if model is not None and stored.get("model_sha256") not in (None, model.sha256):
            where = ", ".join(model.task.model)
            return [f"it is of another model than the one in {where} now; the sha256 it states is not that one's"]
    again = _proven(policy, kwargs, around)
    found = [differs("status", stored["status"], again["status"])] if stored["status"] != again["status"] else []
    for name in _NUMBERS:
        if not same(stored.get(name), again.get(name)):
            found.append(differs(name, stored.get(name), again.get(name)))
    if not same_words(stored["reason"], again["reason"]):
        found.append(differs("reason", stored["reason"], again["reason"]))
    if not found and not same_words(stored["claim"], again["claim"]):
        found.append(SENTENCE)
    return found


def _task(run: RunFolder) -> tuple[tuple[str, dict[str, Any]] | None, list[Any]]:
    """Return (name, options) of the task that a folder names, None for none, and the wrappers around it."""
    if run.recipe.is_file():
        task = run.read_recipe().task
        return (task.id, task.kwargs), task.perturbations
    return stored_task(run.path), []


def _proven(policy: DeployedPolicy, kwargs: dict[str, Any], around: list) -> dict[str, Any]:
    """Return the entries of the file."""
    of = {"policy_sha256": _sha256(policy)}
    try:
        model = _plant(kwargs, around)
        return {**asdict(model.prove_loop(policy)), **of, "model_sha256": model.sha256}
    # A certificate of the policy stands beside it, whatever became of the model.
    except (RobustPoliciesError, ValueError, ArithmeticError, OSError) as error:
        claim = f"Loop with the identified model: {error}"
        return {"status": "NOT_CERTIFIED", "claim": claim, "reason": str(error), **of}


def _plant(kwargs: dict[str, Any], around: list) -> Any:
    """Return the task's `identification.plant.IdentifiedPlant`; raises NotCertifiableError where it is another."""
    if around:
        raise NotCertifiableError(f"the wrappers around the task ({around}) are no part of it.")
    content = read_yaml(task_file(kwargs.get("task", spec_of(IDENTIFIED).kwargs["task"])))
    named = content.get("plant") if isinstance(content, dict) else None
    if named != _PLANT:
        raise NotCertifiableError(f"the task's plant is {named}, which may step the model otherwise.")
    return plant_of(IDENTIFIED, kwargs)


def _sha256(policy: DeployedPolicy) -> str:
    return digest(array_hashes(policy.running_arrays()))
