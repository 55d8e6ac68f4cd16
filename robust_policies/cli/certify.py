"""The work behind `robust-policies certify`: several run folders, here or on the machines of a Ray cluster."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from robust_policies.cli.steps import certify_folder, certify_return_folder, certify_smoothed_folder
from robust_policies.errors import RobustPoliciesError

_KINDS = {"gain": certify_folder, "return": certify_return_folder, "smooth": certify_smoothed_folder}


def certify_folders(
    folders: Sequence[Path],
    kind: str,
    options: Mapping[str, Any],
    address: str | None = None,
    jobs: int | None = None,
    resume: bool = False,
) -> int:
    """Return the exit status after certifying all folders: 0, or that of the first of which nothing is proven.

    Args:
        folders: run folders.
        kind: what of: gain, return or smooth.
        options: arguments of what does that, in `cli.steps`.
        address: of a Ray cluster; None: here, one after the other.
        jobs: folders at a time on the cluster; None: as many as it has CPUs.
        resume: leave out folders whose certificate of the gain is that of their policy.

    Raises:
        RobustPoliciesError: the only folder cannot be certified.
    """
    from robust_policies.evaluation.certify import is_certified
    from robust_policies.train import open_run

    left = []
    for folder in folders:
        if resume and is_certified(folder, options.get("weights")):
            typer.echo(f"{folder} has its certificate.")
        else:
            left.append(folder)
    if len(folders) == 1:
        for folder in left:
            open_run(folder)
    items = [{"folder": str(folder.resolve()), "kind": kind, "options": dict(options)} for folder in left]
    statuses = dict.fromkeys(left, 0)
    apart: set[Path] = set()
    if address is not None:
        from robust_policies.sweep.ray_parts import RayParts

        spread = RayParts(address, jobs)
        try:
            for place, (text, status) in spread(certified_apart, items):
                apart.add(left[place])
                statuses[left[place]] = status
                _say(left[place], text, len(folders) > 1)
        finally:
            spread.close()
    # What the cluster could not do is tried here, and says why not.
    for folder, item in zip(left, items, strict=True):
        if folder in apart:
            continue
        try:
            text, status = certified_apart(item)
        except RobustPoliciesError as error:
            if len(folders) == 1:
                raise
            typer.echo(f"error: {folder}: {error}", err=True)
            statuses[folder] = error.exit_status
            continue
        statuses[folder] = status
        _say(folder, text, len(folders) > 1)
    return next((status for status in statuses.values() if status), 0)


def certified_apart(data: Mapping[str, Any]) -> tuple[str, int]:
    """Return what certifying a folder says, and the exit status: 1 where nothing is proven; raises as what does it."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        proven = _KINDS[data["kind"]](Path(data["folder"]), **data["options"])
    return said.getvalue(), 0 if proven else 1


def _say(folder: Path, text: str, several: bool) -> None:
    for line in text.splitlines():
        typer.echo(f"{folder}: {line}" if several else line)
