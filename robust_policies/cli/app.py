"""The command line. Heavy imports stand inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from robust_policies import __version__
from robust_policies.cli.check import check as check_limits
from robust_policies.cli.choices import Norm, Render
from robust_policies.cli.compare import compare
from robust_policies.cli.errors import exit_status, short_warnings
from robust_policies.cli.export import export
from robust_policies.cli.identify import identify
from robust_policies.cli.imitate import imitate
from robust_policies.cli.listing import Listing, entries_of
from robust_policies.cli.local import local
from robust_policies.cli.loop import loop
from robust_policies.cli.steps import (
    check_elsewhere,
    check_together,
    report_on,
)
from robust_policies.cli.sweep import sweep
from robust_policies.cli.train import train
from robust_policies.errors import InvalidValueError

app = typer.Typer(
    name="robust-policies",
    help="Recurrent control policies that are stable and robust by construction: train, certify, stress, report.",
    no_args_is_help=True,
    add_completion=False,
    # Rich's own markup would take `[default: ...]` for a style and leave it out.
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 done, 1 failed or not certified, 2 wrong input. --debug anywhere shows tracebacks.",
)


# Options that take several values, as in `--set a=1 b=2`.
_SPREAD = ("--set", "--search", "--env-kwargs")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="run folder made by `train`")]
Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="one or several run folders")]
Perturb = Annotated[
    str | None,
    typer.Option(
        metavar="YAML", help="wrappers around the task, such as '[ObservationDelay: 2]' (`list perturbations`)"
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster that does it: auto, HOST:PORT, ray://HOST:PORT or local [default: no Ray]"),
]
Episodes = Annotated[int | None, typer.Option(min=1, help="episodes for each size and seed")]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"robust-policies {__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    version: Annotated[
        bool, typer.Option("--version", help="show the version and end", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """See the application's help."""


@app.command("list")
def list_(what: Annotated[Listing, typer.Argument(help="what to list")]) -> None:
    """List environments, recipes, policy cells, attacks, perturbations, suites or quantities, one a line."""
    lines = entries_of(what)
    width = max(map(len, lines), default=0)
    for name, text in lines.items():
        typer.echo(f"{name:<{width}}  {text}".rstrip())


app.command()(train)
app.command()(imitate)
app.command()(identify)
app.command()(sweep)
app.command("check")(check_limits)
app.command()(compare)
app.command()(loop)
app.command()(local)


@app.command()
def certify(
    folders: Folders,
    weights: Annotated[
        str | None,
        typer.Option(metavar="W1,W2,...", help="size of one unit of each sensor, for a gain in these units: 1,1,0.1"),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="prove again what certificate.json and model_loop.json say, and change nothing"),
    ] = False,
    return_: Annotated[
        bool, typer.Option("--return", help="prove what its return in a linear task cannot fall below instead")
    ] = False,
    smooth: Annotated[
        float | None,
        typer.Option(
            metavar="SIGMA",
            help="certify its return in any environment with Gaussian noise of this deviation on what it reads",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="of the errors, for --return: 0.02,0.1 [default: 0.5, 1, 2 and 5 times the sensors' noise], and for "
            "--smooth [default: 0.25, 0.5, 1 and 2 times SIGMA]"
        ),
    ] = None,
    norm: Annotated[Norm | None, typer.Option(help="of the sizes, for --return [default: per_step_l2]")] = None,
    delay: Annotated[
        int | None,
        typer.Option(min=0, metavar="STEPS", help="from an action to the plant, for --return [default: the task's]"),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="K",
            help="of every noise up to K deviations, for --return [default: of the noise of the episodes]",
        ),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            min=1, help="for --return [default: 64] and --smooth [default: 10000; 1000 in other packages' environments]"
        ),
    ] = None,
    confidence: Annotated[float | None, typer.Option(help="of all together, for --smooth [default: 0.99]")] = None,
    floor: Annotated[
        float | None,
        typer.Option(help="no return is below it, for --smooth [default: where the task's rewards have a floor, that]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="for --return and --smooth [default: 0]")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="run folders at a time, with --address [default: its CPUs]")
    ] = None,
    address: Address = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="leave out folders whose certificate.json is that of their policy")
    ] = False,
) -> None:
    """Prove the gain and contraction of the policy that runs; exit status 1 if nothing could be proven.

    With --return: what its return cannot fall below, whatever the errors of its sensors, into return_certificate.json.
    With --smooth: what its return does not fall below with stated confidence if noise is added to what it reads,
    whatever an attacker adds before, into smoothed_return.json.
    """
    from robust_policies.cli.certify import certify_folders

    modes = {"--check": check, "--weights": weights, "--return": return_, "--smooth": smooth}
    asked = [name for name, value in modes.items() if value is not None and value is not False]
    given = {"--sizes": sizes, "--norm": norm, "--episodes": episodes, "--seed": seed}
    given |= {"--confidence": confidence, "--floor": floor, "--delay": delay, "--noise": noise}
    check_together(asked, [name for name, value in given.items() if value is not None])
    numbers = None if sizes is None else _numbers("--sizes", sizes)
    elsewhere = {"--address": address, "--jobs": jobs, "--resume": resume or None}
    check_elsewhere(asked, [name for name, value in elsewhere.items() if value is not None])
    if check:
        _check_certificates(folders)
        return
    kind, options = "gain", {"weights": None if weights is None else _numbers("--weights", weights)}
    if return_:
        kind = "return"
        options = {"norm": (norm or Norm.per_step_l2).value, "episodes": episodes or 64, "seed": seed or 0}
        options |= {"sizes": numbers, "delay": delay or 0, "noise": noise}
    elif smooth is not None:
        kind, level = "smooth", 0.99 if confidence is None else confidence
        options = {"episodes": episodes, "confidence": level, "floor": floor, "seed": seed or 0}
        options |= {"sigma": smooth, "sizes": numbers}
    status = certify_folders(folders, kind, options, address, jobs, resume)
    if status:
        raise typer.Exit(status)


@app.command()
def evaluate(
    folders: Folders,
    suite: Annotated[
        str | None, typer.Option(help="quick, standard, paper or a YAML file (`list suites`) [default: the recipe's]")
    ] = None,
    sizes: Annotated[str | None, typer.Option(help="perturbation sizes, such as 0,0.1,0.2")] = None,
    episodes: Episodes = None,
    seeds: Annotated[str | None, typer.Option(help="evaluation seeds, such as 0-4 or 0,3")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Gymnasium id, repeatable [default: the recipe's]")] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="in place of the suite's attacks, repeatable (`list attacks`)")
    ] = None,
    perturb: Perturb = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="run folders evaluated at the same time [default: 1]; with --address, parts [default: its CPUs]"
        ),
    ] = None,
    address: Address = None,
) -> None:
    """Measure return under noise, attacks and faults; an interrupted evaluation goes on where it was.

    Writes evaluation.json, evaluation.csv and trajectories.npz into each run folder. A folder that cannot be evaluated
    is named, the others are; the exit status then is not 0.
    """
    from robust_policies.checks import seed_list
    from robust_policies.cli.evaluate import evaluate_folders

    given = {
        "suite": suite,
        "sizes": None if sizes is None else _numbers("--sizes", sizes),
        "episodes": episodes,
        "seeds": None if seeds is None else seed_list("--seeds", seeds),
        "tasks": task or None,
        "attacks": attack or None,
        "perturbations": None if perturb is None else _wrappers(perturb),
    }
    given = {key: value for key, value in given.items() if value is not None}
    status = evaluate_folders(folders, given, jobs, address)
    if status:
        raise typer.Exit(status)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="run folders, or folders that hold some")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="HTML file [default: DIR/report.html]")
    ] = None,
    limits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="limits to show [default: limits.yaml of each folder]")
    ] = None,
) -> None:
    """Write one self-contained HTML file about runs, with its pictures as PNG and PDF in figures/ beside it."""
    report_on(folders, output, limits)


app.command()(export)


@app.command()
def enjoy(
    folder: Folder,
    render: Annotated[Render, typer.Option(help="a window, a video file in DIR/videos, or nothing")] = Render.human,
    env: Annotated[str | None, typer.Option(help="Gymnasium id [default: the recipe's]")] = None,
    episodes: Annotated[int, typer.Option(min=1)] = 3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    perturb: Perturb = None,
) -> None:
    """Run the policy in an environment and show it."""
    from robust_policies.evaluation.enjoy import enjoy_run
    from robust_policies.policies.storage import stored_task
    from robust_policies.train import open_run

    run = open_run(folder)
    task = run.read_recipe().task if run.recipe.is_file() else None
    known, options = (task.id, task.kwargs) if task is not None else stored_task(folder) or ("", {})
    if not (env or known):
        raise InvalidValueError(
            f"{folder} has no recipe.yaml that names an environment, and its policy was saved without task=ID; give "
            "one with --env ID."
        )
    own = env in (None, known)
    kwargs, wrappers = (options, [] if task is None else task.perturbations) if own else ({}, [])
    wrappers = wrappers if perturb is None else _wrappers(perturb)
    env_id = env or known
    for number, total in enumerate(enjoy_run(folder, env_id, kwargs, render.value, episodes, seed, wrappers), 1):
        typer.echo(f"episode {number}: return {total:.1f}")
    if render is Render.video:
        typer.echo(f"Videos: {folder / 'videos'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; `arguments` None means those of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = _spread_set([argument for argument in given if argument != "--debug"])
    try:
        _check_command(given)
        with short_warnings(not debug):
            status = typer.main.get_command(app).main(given, prog_name="robust-policies", standalone_mode=False)
    except BaseException as error:
        if debug and not isinstance(error, (SystemExit, typer.Exit)):
            traceback.print_exc()
        status = exit_status(error, given)
    sys.stdout.flush()
    raise SystemExit(status if isinstance(status, int) else 0)


def _check_command(arguments: Sequence[str]) -> None:
    # An application with commands makes a group, which has them.
    commands = sorted(typer.main.get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    if first is not None and first not in commands:
        close = difflib.get_close_matches(first, commands, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InvalidValueError(f"Unknown command {first!r}.{hint} Known: {', '.join(commands)}.")


def _spread_set(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--set a=1 b=2` written as `--set a=1 --set b=2`, and `--search` likewise."""
    spread: list[str] = []
    option = ""
    for argument in arguments:
        if option and spread[-1] != option and "=" in argument and not argument.startswith("-"):
            spread.append(option)
        elif argument.startswith("-"):
            option = argument if argument in _SPREAD else ""
        spread.append(argument)
    return spread


def _check_certificates(folders: Sequence[Path]) -> None:
    from robust_policies.evaluation.certify import check_run

    found = [f"{folder}: {difference}" for folder in folders for difference in check_run(folder)]
    for difference in found:
        typer.echo(difference, err=True)
    if found:
        typer.echo("Not confirmed; write the certificate again with `certify` if you trust the policy's files.")
        raise typer.Exit(1)
    loops = " and model_loop.json" if any((folder / "model_loop.json").exists() for folder in folders) else ""
    typer.echo(f"Confirmed: the arrays, the proof, the witness and every entry of certificate.json{loops} agree.")


def _wrappers(text: str) -> list[Any]:
    """Return what --perturb lists, in its short form."""
    from robust_policies.envs.perturb import describe, parse

    return describe(parse(text))


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidValueError(
            f"{option} is {text!r}; expected numbers separated by commas, such as 0,0.1,0.2."
        ) from error
