"""Whether the files of a run folder agree: the policy as it is here, its certificate and its evaluation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.certificates import Certificate
from robust_policies.certificates.certificate import VIOLATION_MARGIN, array_hashes, digest
from robust_policies.envs.batch import ours
from robust_policies.errors import UserError
from robust_policies.evaluation.certify import check_certificate
from robust_policies.evaluation.model_loop import check_model_loop
from robust_policies.evaluation.recomputed import SENTENCE
from robust_policies.evaluation.task_numbers import may_hold_code, task_numbers
from robust_policies.files.yaml_text import read_yaml
from robust_policies.policies import DeployedPolicy, load_policy
from robust_policies.policies.return_certificate import ReturnCertificate
from robust_policies.policies.smoothed import SmoothedReturn

_TOLERANCE = 1e-9
# Of what is proven of a return and what was found of it, which are sums taken in another order.
_ROUNDED = 1e-6
# What a check does not read, and the contents, by their hash, with which nothing was wrong.
_NOT_CHECKED = ("evaluation.", "trajectories.", "report", "overview.", "provenance.", "policy.zip")
_AGREED: set[str] = set()


@dataclass
class Agreement:
    """What was found by computing again.

    Attributes:
        policy: sha256 of the arrays of the policy in the folder, None: it cannot be read.
        evaluated: sha256 of the policy's arrays that evaluation.json states, None: not stated.
        certificate: what in certificate.json is not so; None: it could not be checked.
        model_loop: what in model_loop.json is not so; None: there is none, or it could not be checked.
        why_no_loop: why it could not.
        others: what in the other files is not so.
        reason: why the certificate could not be checked.
        sentence: whether the certificate's sentence is another than its numbers make, though they are right.
    """

    policy: str | None = None
    evaluated: str | None = None
    certificate: list[str] | None = None
    model_loop: list[str] | None = None
    why_no_loop: str = ""
    others: list[str] = field(default_factory=list)
    reason: str = ""
    sentence: bool = False

    @property
    def differences(self) -> list[str]:
        """All that does not agree."""
        return [*(self.certificate or []), *(self.model_loop or []), *self.others]

    @property
    def weights(self) -> str | None:
        """The sha256 by which two policies are known to be one, None for none."""
        return self.policy or self.evaluated


def agreement(
    folder: Path,
    certificate: Certificate | None,
    evaluation: Mapping[str, Any],
    provenance: Mapping[str, Any],
    returns: ReturnCertificate | None = None,
    smoothed: SmoothedReturn | None = None,
    loop: Mapping[str, Any] | None = None,
    model_loop: Mapping[str, Any] | None = None,
) -> Agreement:
    """Return what agrees in a run folder, given what could be read of its files ({} or None for nothing)."""
    stated = evaluation.get("policy_sha256")
    found = Agreement(evaluated=stated if isinstance(stated, str) else None)
    policy = None
    try:
        policy = load_policy(folder)
        found.policy = digest(array_hashes(policy.running_arrays()))
    except (UserError, OSError) as error:
        found.reason = f"the policy cannot be read: {error}"
    if certificate is not None:
        _certificate(folder, certificate, found, policy)
    if model_loop is not None:
        _model_loop(folder, found, policy)
    if found.policy is not None and found.evaluated not in (None, found.policy):
        found.others.append(
            "evaluation.json: its returns are of another policy; the sha256 it states is not this one's"
        )
    stated = {
        "return_certificate.json": "" if returns is None else returns.policy_sha256,
        "smoothed_return.json": "" if smoothed is None else smoothed.policy_sha256,
        "loop.json": "" if loop is None else loop.get("policy_sha256"),
    }
    for name, of in stated.items():
        if found.policy is not None and of not in ("", found.policy):
            found.others.append(f"{name}: it is of another policy; the sha256 it states is not this one's")
    found.others += [] if returns is None else _bounds(returns)
    found.others += _returns(evaluation)
    found.others += _seeds(folder, evaluation, provenance)
    found.others += _tasks(evaluation)
    return found


def _certificate(folder: Path, certificate: Certificate, found: Agreement, policy: DeployedPolicy | None) -> None:
    gain, lower = certificate.gamma_raw, certificate.empirical_lower
    beyond = gain is not None and lower is not None and lower > gain * (1 + VIOLATION_MARGIN)
    if certificate.status == "PASS" and beyond:
        found.certificate = [f"certificate.json: the gain {lower:.9g} that was found is above the proven {gain:.9g}"]
    if found.policy is None:
        return
    said = _checked(folder, policy)
    found.sentence = SENTENCE in said
    found.certificate = [*(found.certificate or []), *(f"certificate.json: {one}" for one in said if one != SENTENCE)]


def _model_loop(folder: Path, found: Agreement, policy: DeployedPolicy | None) -> None:
    if policy is None:
        found.why_no_loop = found.reason
    elif (checked := check_model_loop(folder, policy)) is not None:
        found.model_loop, found.why_no_loop = None if checked.reason else checked.differences, checked.reason


def _checked(folder: Path, policy: DeployedPolicy | None) -> list[str]:
    """Return what `check_certificate` says; a folder with the same policy, certificate and witnesses: once."""
    content = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.name.startswith(_NOT_CHECKED):
            continue
        content.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    if (key := content.hexdigest()) in _AGREED:
        return []
    said = check_certificate(folder, policy)
    if not said:
        _AGREED.add(key)
    return said


def _bounds(returns: ReturnCertificate) -> list[str]:
    """Return what in the rows of a certificate of the return does not follow from the bounds of its episodes."""
    found = []
    for index, row in enumerate(returns.rows if returns.each else ()):
        each = np.array(returns.each[index] if index < len(returns.each) else (), dtype=np.float64)
        mean = float(each.mean()) if each.size and np.isfinite(each).all() else None
        same = mean is row.certified is None or (
            mean is not None and row.certified is not None and math.isclose(mean, row.certified, rel_tol=_TOLERANCE)
        )
        if not same:
            found.append(f"return_certificate.json: the bound at size {row.size:g} is not the mean of its episodes'")
        if row.certified is not None and row.certified > row.found + _ROUNDED * max(1.0, abs(row.found)):
            found.append(f"return_certificate.json: the return found at size {row.size:g} is below the proven one")
    return found


def _returns(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what in the tables of an evaluation does not follow from its returns."""
    rows, worst = (_readable(evaluation.get(key)) for key in ("rows", "worst"))
    wrong = sum(not math.isclose(mean, returns.mean(), rel_tol=_TOLERANCE) for _, mean, returns in (*rows, *worst))
    found = []
    if wrong:
        found.append(
            f"evaluation.json: {wrong} of {len(rows) + len(worst)} means are not those of the returns beside them"
        )
    attacks: dict[tuple[str, ...], list[np.ndarray]] = {}
    for row, _, returns in rows:
        if row.get("group") == "attack":
            attacks.setdefault(_labels(row, "perturbation"), []).append(returns)
    other = 0
    for row, _, returns in worst:
        own = attacks.get(_labels(row, "attack"))
        other += own is not None and not np.array_equal(np.concatenate(own), returns)
    if other:
        found.append(f"evaluation.json: {other} of {len(worst)} worst attacks have other returns than the same attack")
    return found


def _labels(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return tuple(str(row.get(key)) for key in ("task", name, "norm", "size"))


def _readable(items: Any) -> list[tuple[dict[str, Any], float, np.ndarray]]:
    """Return (row, its mean, its returns) of the rows that state a mean."""
    found = []
    for item in items if isinstance(items, list) else []:
        try:
            mean, returns = float(item["mean"]), np.asarray(item["returns"], dtype=np.float64)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if math.isfinite(mean) and returns.ndim == 1 and returns.size and np.isfinite(returns).all():
            found.append((item, mean, returns))
    return found


def _seeds(folder: Path, evaluation: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[str]:
    try:
        recipe = read_yaml(folder / "recipe.yaml")
    except UserError:
        recipe = None
    given = {
        "recipe.yaml": recipe.get("seed") if isinstance(recipe, dict) else None,
        "provenance.json": provenance.get("seed"),
        "evaluation.json": evaluation.get("training_seed"),
    }
    known = {name: seed for name, seed in given.items() if isinstance(seed, int)}
    if len(set(known.values())) < 2:
        return []
    return [f"the training seed is {', '.join(f'{seed} in {name}' for name, seed in known.items())}"]


def _tasks(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the tasks that are not what they were when the policy was evaluated."""
    stated = evaluation.get("task_numbers")
    found = []
    for task, numbers in stated.items() if isinstance(stated, dict) else ():
        options = numbers.get("options") if isinstance(numbers, dict) else None
        # Making a report runs no code that a file names.
        if not ours(task) or not isinstance(options, dict) or may_hold_code(task, options):
            continue
        now = task_numbers(task, options)
        changed = [key for key in now if numbers.get(key) != now[key]]
        if changed:
            found.append(
                f"evaluation.json: {', '.join(changed)} of {task} are other numbers here than when it was evaluated"
            )
    return found
