"""The certificate of a run folder: certificate.json, the largest gains found, and the check of them all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.certificates import Certificate, GainResult, gain_curve, not_certified, secant_gain
from robust_policies.certificates.certificate import claim
from robust_policies.certificates.gain import CURVE_STEPS
from robust_policies.certificates.gain_search import running_map
from robust_policies.certificates.kept import Book, keeping
from robust_policies.certificates.loop import NUMBERS
from robust_policies.certificates.peak_search import PeakWitness, peak_secants, peak_witness
from robust_policies.errors import CorruptFileError, MissingFileError, NotCertifiableError, UserError
from robust_policies.evaluation.model_loop import check_model_loop
from robust_policies.evaluation.recomputed import SENTENCE, TOLERANCE, differs, same, same_words
from robust_policies.evaluation.task_numbers import may_hold_code, task_numbers
from robust_policies.networks.once import unchanging
from robust_policies.policies import DeployedPolicy, load_policy
from robust_policies.policies.storage import certificate_is_of, running_arrays_agree
from robust_policies.train.run.folder import RunFolder

# Margins are differences of sums that may round differently on another machine.
_TOLERANCES = {"margin": 1e-3}
PEAK_WITNESS = "peak_witness.npz"
PROOFS = "proofs.npz"
_FIELDS = ("gamma_core", "gamma_raw", "gamma_weighted", "rate", "overshoot", "empirical_lower", "ratio", "margin")


def certify_run(
    folder: str | Path, *, steps: int = 50, seed: int = 0, weights: Sequence[float] | None = None
) -> Certificate:
    """Return the certificate of the policy in a run folder, also written to certificate.json.

    Beside it: witness.npz, two input sequences that show the largest gain found, tightness.json, that gain against the
    sequences' length, and proofs.npz, what the searches for proofs found, for `check_run`. The search for a gain runs
    whether or not something is proven, and its witness is evaluated again before it counts.

    Args:
        folder: with policy.json and policy.safetensors.
        steps: greatest length of the sequences that are searched.
        seed: of the search.
        weights: the size of one unit of each observation, for a second gain in these units.
    """
    with keeping(Book()) as book:
        certificate = _certified(RunFolder(folder), steps, seed, weights)
    book.save(RunFolder(folder).path / PROOFS)
    return certificate


def _certified(run: RunFolder, steps: int, seed: int, weights: Sequence[float] | None) -> Certificate:
    policy = load_policy(run.path)
    certificate = _proven(run, policy, None, weights)
    searched = policy.searched()
    if searched is None:
        for path in (run.witness, run.tightness):
            path.unlink(missing_ok=True)
    else:
        curve = gain_curve(searched, [*(count for count in CURVE_STEPS if count < steps), steps], seed)
        longest = curve.witnesses[-1]
        found = replace(longest, gain=secant_gain(searched, longest.inputs_a, longest.inputs_b))
        found.save(run.witness)
        curve.to_json(run.tightness, certificate.gamma_raw)
        certificate = certificate.with_search(found.gain, run.witness.name)
    certificate = _with_peak(run, policy, certificate, steps, seed)
    certificate.to_json(run.certificate)
    return certificate


def _with_peak(run: RunFolder, policy: DeployedPolicy, certificate: Certificate, steps: int, seed: int) -> Certificate:
    """Return a certificate with the bound of every step and the largest change found, whose witness is written."""
    path = run.path / PEAK_WITNESS
    peak = policy.peak(certificate.weights) if certificate.status == "PASS" else None
    if peak is None:
        path.unlink(missing_ok=True)
        return certificate
    witness = peak_witness(policy.searched(), np.asarray(peak["units"]), steps, seed)
    witness.save(path)
    return certificate.with_peak(peak, witness.found.tolist(), path.name)


def is_certified(folder: str | Path, weights: Sequence[float] | None = None) -> bool:
    """Return whether the certificate in a run folder, in units of `weights`, is of the arrays of its policy."""
    run = RunFolder(folder)
    try:
        stored, policy = run.read_certificate(), load_policy(run.path)
    except UserError:
        return False
    given = None if weights is None else list(weights)
    here = None if stored.weights is None else list(stored.weights)
    whole = stored.witness is None or (run.path / Path(stored.witness).name).is_file()
    return given == here and whole and certificate_is_of(stored, policy)


def check_run(folder: str | Path) -> list[str]:
    """Return what differs between the certificates in a run folder and what its files show, [] if nothing.

    They are certificate.json (`check_certificate`) and, where there is one, model_loop.json
    (`model_loop.check_model_loop`); one that cannot be checked is a difference too. A folder that does not exist raises
    MissingFileError.
    """
    found = check_certificate(folder)
    try:
        loop = check_model_loop(folder, load_policy(folder)) if RunFolder(folder).model_loop.exists() else None
    except UserError:
        # Of which the certificate's check has said so.
        return found
    return found if loop is None else [*found, *loop.differences, *filter(None, [loop.reason])]


def check_certificate(folder: str | Path, policy: DeployedPolicy | None = None) -> list[str]:
    """Return what differs between a run folder's certificate.json and what its policy and witness show, [] if nothing.

    The arrays' hashes, the proof, the gain of the witness and every number and sentence are computed again; where
    proofs.npz has the metric and the multipliers of a proof, they are proven again and not searched for. A file that is
    missing or cannot be read is a difference too; a folder that does not exist raises MissingFileError. `policy` is the
    folder's, where it has been loaded already.
    """
    run = RunFolder(folder)
    if not run.path.is_dir():
        raise MissingFileError(f"{folder} does not exist; expected a run folder.")
    with unchanging(), keeping(Book.load(run.path / PROOFS)):
        return _checked(run, policy)


def _checked(run: RunFolder, policy: DeployedPolicy | None) -> list[str]:
    try:
        stored = run.read_certificate()
        policy = load_policy(run.path) if policy is None else policy
        agree = running_arrays_agree(run.path, policy)
        expected = _proven(run, policy, stored, stored.weights)
        searched = policy.searched()
        if searched is not None and (stored.witness is not None or stored.peak is not None):
            # Once for all witnesses.
            searched = running_map(searched)
        if stored.peak is not None:
            expected = expected.with_peak(*_peak_again(run, policy, searched, stored.peak))
        # A certificate without a search, such as that of an export, has none.
        unsearched = stored.witness is None and not run.tightness.exists()
        tightness = None if searched is None or unsearched else run.read_tightness()
        if stored.witness is not None:
            expected = expected.with_search(
                _witness_gain(searched, run.path / Path(stored.witness).name), stored.witness
            )
    except UserError as error:
        return [str(error)]
    found = [] if agree else ["the arrays that robust_policies.runtime runs are not those of the policy's parameters"]
    found += _differences(stored, expected)
    return found + ([] if tightness is None else _tightness_differences(tightness, expected))


def _proven(
    run: RunFolder, policy: DeployedPolicy, stored: Certificate | None, weights: Sequence[float] | None
) -> Certificate:
    """Return what is proven of a policy, with the names and units of the signals of the task it was trained in.

    To check a `stored` certificate no code of the task is run: where it may have any, the names are the certificate's.
    """
    try:
        return policy.certificate(weights).named(*_names(run, stored))
    except NotCertifiableError as error:
        return not_certified(str(error), policy.running_arrays())


def _names(run: RunFolder, stored: Certificate | None) -> tuple[Sequence[str], Sequence[str]]:
    """Return the names of a folder's task's observations and actions, () and () where there is no such task."""
    if not run.recipe.is_file():
        return (), ()
    task = run.read_recipe().task
    if stored is not None and may_hold_code(task.id, task.kwargs):
        return ((), ()) if stored.signals is None else (stored.signals.sensors, stored.signals.actuators)
    known = task_numbers(task.id, task.kwargs)
    return known.get("observations", ()), known.get("actions", ())


def _peak_again(
    run: RunFolder, policy: DeployedPolicy, searched: Any, stored: dict[str, Any]
) -> tuple[dict[str, Any] | None, list[float], str | None]:
    """Return the bound of every step as it is proven now, and what the witness in a folder shows."""
    name = stored.get("witness")
    if name is None:
        return policy.peak(stored["units"]), [], None
    witness = PeakWitness.load(run.path / Path(name).name)
    found = peak_secants(searched, witness.inputs, np.asarray(stored["units"]))
    return policy.peak(stored["units"]), found.tolist(), name


def _peak_differences(stored: dict[str, Any] | None, expected: dict[str, Any] | None) -> list[str]:
    """Return what of the bound of every step is not what was computed again."""
    if stored is None or expected is None:
        return [] if stored is expected else ["peak is in one of the file and what was computed again only"]
    agrees = set(stored) == set(expected) and all(stored[key] == expected[key] for key in ("units", "method"))
    for name in ("gamma", "found"):
        given, again = stored.get(name, []), expected.get(name, [])
        agrees = agrees and len(given) == len(again) and all(map(_near, given, again))
    return [] if agrees else [differs("peak", stored, expected)]


def _near(given: float, again: float) -> bool:
    # A path of Newton steps ends elsewhere on another machine, within the gap that it stops at.
    return bool(np.isclose(given, again, rtol=1e-3, atol=1e-12))


def _witness_gain(searched: Any, path: Path) -> float:
    witness = GainResult.load(path)
    gain = math.nan if searched is None else secant_gain(searched, witness.inputs_a, witness.inputs_b)
    if not math.isfinite(gain):
        raise CorruptFileError(f"{path} shows no gain with this policy ({gain}); write it again with `certify`.")
    return gain


def _differences(stored: Certificate, expected: Certificate) -> list[str]:
    """Return one line for each field of certificate.json that is not what was computed again."""
    found = []
    names = sorted(set(stored.arrays_sha256) | set(expected.arrays_sha256))
    changed = [name for name in names if stored.arrays_sha256.get(name) != expected.arrays_sha256.get(name)]
    if changed:
        found.append(f"the sha256 of {', '.join(changed)} is not that of the policy's arrays")
    for name in ("status", "method", "reason", "choices"):
        if (given := getattr(stored, name)) != (again := getattr(expected, name)):
            found.append(differs(name, given, again))
    old = stored.closed_loop is None and stored.signals is None and expected.signals is not None
    for name in _FIELDS:
        given, again = getattr(stored, name), getattr(expected, name)
        if old and name in ("rate", "overshoot"):
            # A file of an older version has the rate of the design; what is proven now implies it.
            if name == "rate" and (given is None or again is None or not again <= given <= 1):
                found.append(differs("rate", given, again))
        elif not same(given, again, _TOLERANCES.get(name, TOLERANCE)):
            found.append(differs(name, given, again))
    if [(factor.name, factor.note) for factor in stored.factors] != [(f.name, f.note) for f in expected.factors]:
        found.append("the factors are not those of the policy's chain")
    else:
        for given, again in zip(stored.factors, expected.factors, strict=True):
            if not same(given.gain, again.gain):
                found.append(differs(f"factor {given.name!r}", given.gain, again.gain))
    for name in () if old else ("signals", "forgets"):
        if (given := getattr(stored, name)) != (again := getattr(expected, name)):
            found.append(differs(name, given, again))
    found += _peak_differences(stored.peak, expected.peak)
    found += _loop_differences(stored.closed_loop, expected.closed_loop)
    if not same_words(stored.claim, claim(stored)):
        found.append(SENTENCE)
    return found


def _loop_differences(stored: dict[str, Any] | None, expected: dict[str, Any] | None) -> list[str]:
    """Return what of the closed loop's entries is not what was computed again."""
    if stored is None or expected is None:
        return [] if stored is expected else ["closed_loop is in one of the file and what was computed again only"]
    found = []
    for name in sorted(set(stored) | set(expected)):
        given, again = stored.get(name), expected.get(name)
        if name in NUMBERS and all(isinstance(value, int | float | None) for value in (given, again)):
            agrees = same(given, again)
        elif isinstance(given, str) and isinstance(again, str):
            agrees = same_words(given, again)
        else:
            agrees = given == again
        if not agrees:
            found.append(differs(f"closed_loop.{name}", given, again))
    return found


def _tightness_differences(content: dict[str, Any], expected: Certificate) -> list[str]:
    """Return what in tightness.json does not fit the certificate; only its last gain has a witness."""
    gains, gamma = content.get("gain"), content.get("gamma_raw")
    numbers = isinstance(gains, list) and all(isinstance(gain, (int, float)) for gain in gains)
    if not isinstance(gains, list) or not numbers or not gains or any(a > b for a, b in pairwise(gains)):
        return [f"the gains in tightness.json are {gains!r}; expected numbers that do not decrease"]
    found = []
    if not isinstance(gamma, int | float | None) or not same(gamma, expected.gamma_raw):
        found.append(f"gamma_raw is {gamma!r} in tightness.json and {expected.gamma_raw!r} when computed again")
    if not same(gains[-1], expected.empirical_lower):
        found.append(
            f"the last gain in tightness.json is {gains[-1]!r} and the witness shows {expected.empirical_lower!r}"
        )
    return found
