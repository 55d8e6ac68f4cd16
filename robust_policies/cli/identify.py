"""The command `robust-policies identify`. Heavy imports stand inside, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from robust_policies.cli.steps import Threads

_PIECES = "NAME, NAME[START:STOP] or [START:STOP], separated by commas"
# What does not belong to the settings of an identification.
_OF_ANY_RUN = ("data", "device", "output", "resume", "threads", "report")


def identify(
    context: typer.Context,
    data: Annotated[
        list[Path] | None, typer.Argument(metavar="DATA...", help="CSV, NPZ, MAT or Parquet files, or folders of them")
    ] = None,
    inputs: Annotated[str | None, typer.Option(metavar="A,B", help="columns that drive the plant")] = None,
    outputs: Annotated[str | None, typer.Option(metavar="C,D", help="columns that were measured")] = None,
    sample_time: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="[default: that of the time column]")
    ] = None,
    time: Annotated[str | None, typer.Option(metavar="COLUMN", help="of the time [default: time or t, if any]")] = None,
    experiment: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="tells experiments apart [default: each file is one]")
    ] = None,
    train: Annotated[
        str | None, typer.Option(metavar="PIECES", help=f"{_PIECES} [default: 70% of the experiments, or of each]")
    ] = None,
    validation: Annotated[str | None, typer.Option(metavar="PIECES", help="chooses the model that is kept")] = None,
    test: Annotated[str | None, typer.Option(metavar="PIECES", help="seen by neither")] = None,
    cell: Annotated[str, typer.Option(help="r2dn, ren, lstm, gru, ... (`list policies`)")] = "r2dn",
    gamma: Annotated[
        float | None, typer.Option(help="bound on the gain between scaled signals [default: contraction alone]")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE ...", help="cell.state_size=8 algorithm.total_steps=5000 keep.every=100"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="run folder [default: results/DATA_CELL]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue the run in DIR; DATA and columns may be left out")
    ] = False,
    threads: Threads = 1,
    report: Annotated[bool, typer.Option("--report/--no-report", help="write report.html")] = True,
) -> None:
    """Fit a model with a certificate to measured records, beside a linear one, and say how well it simulates.

    Writes model.json and model.safetensors, certificate.json, identification.json and report.html into one run folder.
    """
    import torch
    from rich.console import Console

    from robust_policies.errors import InvalidValueError
    from robust_policies.identification.folder import IdentificationFolder
    from robust_policies.identification.run import identify as run_identification
    from robust_policies.identification.run import result_lines
    from robust_policies.identification.settings import parse_settings
    from robust_policies.train import StopOnSignal
    from robust_policies.train.recipe.recipe import set_value
    from robust_policies.train.run.progress import reporter_for

    torch.set_num_threads(threads)
    if not data and not (resume and output is not None):
        raise InvalidValueError("No data was given; name a file or a folder, or a run with --resume -o DIR.")
    folder = output or Path("results") / f"{(data or [Path('data')])[0].stem}_{cell}"
    if not data:
        _refuse_changes(context, folder)
        settings = IdentificationFolder(folder).read_settings()
    else:
        content: dict[str, Any] = {
            "seed": seed,
            "data": {
                "files": [str(path) for path in data],
                "inputs": _names(inputs),
                "outputs": _names(outputs),
                "sample_time": sample_time,
                "time": time,
                "experiment": experiment,
                "train": _names(train),
                "validation": _names(validation),
                "test": _names(test),
            },
            "cell": {"name": cell, **({} if gamma is None else {"gamma": gamma})},
        }
        for option, value in (("--inputs", inputs), ("--outputs", outputs)):
            if not _names(value):
                raise InvalidValueError(f"{option} names no column; give such as {option} a,b.")
        for assignment in set_ or []:
            set_value(content, assignment)
        settings = parse_settings(content, "identify")
    shown, stop = reporter_for(Console(), "fit in percent"), StopOnSignal()
    result = run_identification(settings, folder, device=device, resume=resume, page=report, reporter=shown, stop=stop)
    typer.echo(f"Identified in {result.seconds:.0f} s: {folder}")
    run = IdentificationFolder(folder)
    for line in result_lines(run):
        typer.echo(line)
    from robust_policies.files.atomic import read_json

    found = read_json(run.certificate, "certificate", 1)
    typer.echo(f"{found['status']}: {found['claim']}")


def _refuse_changes(context: typer.Context, folder: Path) -> None:
    """Raise InvalidValueError for an option that a run which goes on by its own settings would not follow."""
    from robust_policies.errors import InvalidValueError

    for option in context.command.params:
        source = context.get_parameter_source(str(option.name))
        if option.name not in _OF_ANY_RUN and source is not None and source.name == "COMMANDLINE":
            raise InvalidValueError(
                f"{option.opts[0]} was given with --resume and no DATA, which goes on with the settings of {folder}; "
                "leave it out, or name DATA and all options as at first."
            )


def _names(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
