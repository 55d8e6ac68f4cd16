"""The part of the page about how to reproduce it: the commands of each method, and what they ran on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from robust_policies.evaluation.report.load import Run
from robust_policies.evaluation.report.markup import details, escape, name_of, table
from robust_policies.evaluation.report.methods import Method
from robust_policies.policies.return_certificate import ReturnCertificate


def reproduce(methods: Sequence[Method]) -> str:
    """Return the commands and what they ran on, by method."""
    return "".join(map(_reproduce, methods))


def _reproduce(method: Method) -> str:
    folders = " ".join(shlex.quote(str(run.folder)) for run in method.runs)
    lines = [_train_command(run) for run in method.runs]
    lines += [f"robust-policies certify {shlex.quote(str(run.folder))}" for run in method.runs]
    suite = (method.runs[0].evaluation or {}).get("suite")
    option = f" --suite {shlex.quote(suite)}" if isinstance(suite, str) and suite else ""
    lines += [_return_command(run, run.returns) for run in method.runs if run.returns is not None]
    lines += [f"robust-policies evaluate {folders}{option}", f"robust-policies report {folders}"]
    commands = f"<pre>{escape(chr(10).join(lines))}</pre>"
    if len(method.runs) > 1:
        commands = details(f"Commands of {len(method.runs)} training seeds", commands)
    first = method.runs[0]
    rows = [
        [escape(key.replace("_", " ")), escape(_setting("", first.provenance[key]).strip())]
        for key in ("seed", "num_timesteps", "training_seconds", "written", "git_commit", "machine")
        if first.provenance.get(key) is not None
    ]
    versions = first.provenance.get("versions")
    if isinstance(versions, dict):
        rows.append(["versions", escape(", ".join(f"{key} {value}" for key, value in versions.items()))])
    evaluation = first.evaluation
    if evaluation is not None:
        keys = ("suite", "episodes", "seeds", "attack_budget", "seconds")
        rows.append(["evaluation", escape("; ".join(_setting(k, evaluation[k]) for k in keys if k in evaluation))])
    facts = table(["", escape(first.name)], rows) if rows else ""
    return f"<h3>{name_of(method)}</h3>{commands}{facts}"


def _train_command(run: Run) -> str:
    command = run.provenance.get("command")
    if isinstance(command, str):
        return command
    return f"robust-policies train {shlex.quote(str(run.folder / 'recipe.yaml'))} -o NEW_FOLDER"


def _return_command(run: Run, certificate: ReturnCertificate) -> str:
    sizes = ",".join(f"{row.size:.12g}" for row in certificate.rows)
    return (
        f"robust-policies certify {shlex.quote(str(run.folder))} --return --sizes {sizes} "
        f"--norm {shlex.quote(str(certificate.norm))} --episodes {certificate.episodes + certificate.set_aside} "
        f"--seed {certificate.seed}"
    )


def _setting(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{str(key).replace('_', ' ')} {item}" for key, item in value.items())
    return f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"
