"""The command `robust-policies compare`. Heavy imports stand inside, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robust_policies.cli.choices import TableFormat


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="run folders, or folders that hold some")],
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="quantities, such as gamma,return@0.1 (`list quantities`)"),
    ] = None,
    sort: Annotated[str | None, typer.Option(metavar="NAME", help="the quantity to sort by, its best first")] = None,
    task: Annotated[
        str | None, typer.Option(metavar="ID", help="that returns are of [default: the first evaluated]")
    ] = None,
    format: Annotated[TableFormat, typer.Option(help="of the table")] = TableFormat.text,
) -> None:
    """Print a table of run folders beside one another, with intervals over training seeds or episodes.

    Folders that differ by their training seed alone are one line. What the numbers are, and why some are missing, is
    said on stderr.
    """
    from robust_policies.evaluation import compare_runs

    asked = None if columns is None else [part for part in columns.split(",") if part.strip()]
    found = compare_runs(folders, asked, sort, task)
    typer.echo(found.written(format.value))
    for note in found.notes():
        typer.echo(note, err=True)
