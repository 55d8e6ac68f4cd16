"""The command `robust-policies check`. Heavy imports stand inside, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robust_policies.errors import InvalidValueError


def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="run folder made by `train`")],
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMIT",
            help='"NAME[@SIZE] OP NUMBER", repeatable: "gamma <= 12", "return@0.1 >= -200" (`list quantities`)',
        ),
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file of limits [default: DIR/limits.yaml, without --require]"),
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="write the outcomes there as JUnit XML")] = None,
    task: Annotated[
        str | None, typer.Option(metavar="ID", help="that returns are of [default: the first evaluated]")
    ] = None,
) -> None:
    """Check what a run folder holds against limits; exit status 1 if one is not met or cannot be told.

    A number that is missing counts as not met, and so does everything of a folder whose files do not agree.
    """
    from robust_policies.evaluation.junit import write_junit
    from robust_policies.evaluation.limits import Limits, judge, read_limits, requirement, summary
    from robust_policies.evaluation.report.load import load_runs
    from robust_policies.files.atomic import output_folder
    from robust_policies.files.text_table import aligned
    from robust_policies.train import open_run

    given = [requirement(text) for text in require or []]
    run = open_run(folder)
    file = limits or (run.limits if not given and run.limits.is_file() else None)
    if file is None and not given:
        raise InvalidValueError(
            f'No limit was given and {run.limits} does not exist; give one with --require "gamma <= 12" or a file with '
            "--limits."
        )
    known = Limits(()) if file is None else read_limits(file)
    wanted = Limits((*known.requirements, *given), task or known.task)
    if junit is not None and junit.is_dir():
        raise InvalidValueError(f"--junit is {str(junit)!r}, a folder; expected a file, such as {junit / 'check.xml'}.")
    if junit is not None:
        with output_folder(junit.parent, "--junit"):
            junit.parent.mkdir(parents=True, exist_ok=True)
    [loaded] = load_runs([folder], pictures=False)
    outcomes = judge(loaded, wanted)
    rows = [
        ["met" if one.met else "NOT MET", one.requirement.label, str(one.requirement.asked), *one.shown]
        for one in outcomes
    ]
    head = ["", "label", "quantity", "value", "limit", "margin"]
    if not any(one.requirement.label for one in outcomes):
        head, rows = [head[0], *head[2:]], [[row[0], *row[2:]] for row in rows]
    numeric = range(len(head) - 3, len(head))
    typer.echo(aligned(head, rows, numeric))
    for one in outcomes:
        if one.reason:
            typer.echo(f"{one.requirement.asked}: {one.reason.rstrip('.')}.")
    for difference in loaded.agreement.differences:
        typer.echo(f"{folder}: {difference}", err=True)
    if junit is not None:
        facts = {"folder": str(folder), "policy_sha256": loaded.agreement.policy or "", "limits": str(file or "")}
        with output_folder(junit.parent, "--junit"):
            write_junit(junit, loaded.name, outcomes, facts)
    typer.echo(f"{summary(outcomes)}: {folder}")
    if not all(one.met for one in outcomes):
        raise typer.Exit(1)
