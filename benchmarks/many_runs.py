"""Run folders of different policies, made from one: what a report of many runs is measured on (report.py).

Each has parameters of its own, a certificate that is proven of them, and returns of its own. Nothing of it is trained
or played: the parameters are those of the run, each times 1 + 0.01 times a normal number, the returns of a policy the
run's times one number near 1, and the witnesses' inputs the run's, of which the gains are computed anew.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from robust_policies.certificates import GainResult, secant_gain
from robust_policies.certificates.certificate import array_hashes, digest
from robust_policies.certificates.kept import Book, keeping
from robust_policies.certificates.peak_search import PeakWitness, peak_secants
from robust_policies.evaluation.certify import PEAK_WITNESS, PROOFS
from robust_policies.evaluation.task_numbers import task_numbers
from robust_policies.files.atomic import write_json
from robust_policies.files.yaml_text import dump_yaml, read_yaml
from robust_policies.policies import load_policy, save_policy
from robust_policies.train.run.folder import RunFolder

LEFT_OUT = ("checkpoints", "figures", "report.html", "overview.png", "evaluation.csv", "policy.zip")


def different(run: Path, folder: Path, number: int) -> None:
    """Write the run folder of the policy `number`, of 0, 1, ...; `run` is trained, certified and evaluated."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    policy, generator = load_policy(folder), torch.Generator().manual_seed(number)
    with torch.no_grad():
        for values in policy.actor.parameters():
            values.mul_(1 + 0.01 * torch.randn(values.shape, generator=generator, dtype=values.dtype))
    save_policy(policy, folder)
    _certify(RunFolder(folder))
    _evaluate(RunFolder(folder), number, 1 + 0.03 * float(torch.randn((), generator=generator)))


def _certify(files: RunFolder) -> None:
    """Prove the certificate of a folder's policy, with the searches for witnesses left out."""
    policy, task = load_policy(files.path), files.read_recipe().task
    known = task_numbers(task.id, task.kwargs)
    with keeping(Book()) as book:
        proven = policy.certificate(None).named(known["observations"], known["actions"])
        peak = policy.peak(None)
    book.save(files.path / PROOFS)
    witness, searched = GainResult.load(files.witness), policy.searched()
    gain = secant_gain(searched, witness.inputs_a, witness.inputs_b)
    replace(witness, gain=gain).save(files.witness)
    curve = files.read_tightness()
    curve |= {"gain": [one * gain / curve["gain"][-1] for one in curve["gain"][:-1]] + [gain]}
    write_json(files.tightness, curve | {"gamma_raw": proven.gamma_raw})
    proven = proven.with_search(gain, files.witness.name)
    if peak is not None:
        step = PeakWitness.load(files.path / PEAK_WITNESS)
        step = replace(step, found=peak_secants(searched, step.inputs, np.asarray(peak["units"])))
        step.save(files.path / PEAK_WITNESS)
        proven = proven.with_peak(peak, step.found.tolist(), PEAK_WITNESS)
    proven.to_json(files.certificate)


def _evaluate(files: RunFolder, seed: int, factor: float) -> None:
    """Make a folder's evaluation, recipe and provenance those of a training of its own."""
    found = files.read_evaluation()
    found["policy_sha256"] = digest(array_hashes(load_policy(files.path).running_arrays()))
    found["training_seed"] = seed
    for row in (*found["rows"], *found["worst"]):
        row["returns"] = [factor * one for one in row["returns"]]
        row |= {key: factor * row[key] for key in ("mean", "low", "high")}
    files.evaluation.write_text(json.dumps(found, indent=2))
    files.provenance.write_text(json.dumps({**json.loads(files.provenance.read_text()), "seed": seed}))
    files.recipe.write_text(dump_yaml({**read_yaml(files.recipe), "seed": seed}))
