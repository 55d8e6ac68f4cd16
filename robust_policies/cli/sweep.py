"""The command `robust-policies sweep`. Heavy imports stand inside, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robust_policies.errors import InvalidValueError, RobustPoliciesError

if TYPE_CHECKING:
    from rich.console import Console

    from robust_policies.sweep.folder import SweepFolder
    from robust_policies.sweep.jobs import Pool
    from robust_policies.sweep.run import Source
    from robust_policies.sweep.search import Search

_TRIALS = 20
# Where nobody resizes the window, a table may be as wide as it needs to be.
_WIDTH = 160


class SweepInterruptedError(RobustPoliciesError):
    """A sweep was stopped by Ctrl-C or SIGTERM after its trials wrote their checkpoints."""

    exit_status = 1


def sweep(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="YAML file, or the name of a recipe (`list recipes`)")
    ],
    seeds: Annotated[str | None, typer.Option(help="such as 0-9 or 0,3 [default: the recipe's]")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=A,B,C ...", help="a setting for each value; one value: for all trials"),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="trials at a time [default: CPU cores, or what the Ray cluster has]")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster: auto, HOST:PORT, ray://HOST:PORT or local [default: no Ray]")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=RANGE ...", help="search with Optuna: 3..12, log:1e-4..1e-2 or a,b,c"),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help=f"settings a search tries [default: {_TRIALS}]")] = None,
    objective: Annotated[
        str | None, typer.Option(help="of a search: return, worst, best or gamma [default: return]")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="a search ends settings early whose return is below the median")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N, for each trial")] = "cpu",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="sweep folder [default: results/RECIPE_sweep]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the sweep in DIR; finished trials stay")] = False,
    evaluation: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="certify and evaluate them too")] = True,
) -> None:
    """Train a recipe with several seeds and settings, or search for a good setting; then a table of all trials."""
    from rich.console import Console

    from robust_policies.checks import seed_list
    from robust_policies.sweep.folder import SweepFolder

    given = set_ or []
    chosen = None if seeds is None else seed_list("--seeds", seeds)
    if search:
        work = _searching(recipe, given, chosen, search, trials or _TRIALS, objective or "return", prune, evaluation)
    else:
        for option, value in (("--trials", trials), ("--objective", objective), ("--prune", prune or None)):
            if value is not None:
                raise InvalidValueError(f"{option} is for a search; add --search KEY=LOW..HIGH, or leave it out.")
        work = _planned(recipe, given, chosen, evaluation)
    folder = SweepFolder(output or Path("results") / f"{Path(recipe).stem}_sweep")
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    with ExitStack() as stack:
        pool = _pool(address, jobs, device)
        stack.callback(pool.close)
        stack.enter_context(folder.reserved(work.facts, resume))
        complete = _run(work, folder, pool, console, device, evaluation)
    if not complete:
        done = sum(row["status"] in ("done", "pruned") for row in folder.rows.values())
        raise SweepInterruptedError(
            f"Stopped with {done} of {max(work.total, len(folder.rows))} trials done; those under way have their "
            f"checkpoints in {folder.trials}. To go on, run the same command with --resume."
        )
    failed = [row for row in folder.rows.values() if row["status"] == "failed"]
    if failed:
        typer.echo(f"{len(failed)} of {len(folder.rows)} trials failed:", err=True)
        for row in failed:
            typer.echo(f"  {row['name']}: {row['reason']}", err=True)
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Work:
    """What a command line asks for.

    Attributes:
        facts: what describes the sweep, for `SweepFolder.begin`.
        total: number of trials.
        names: of the trials in the order of the table; empty: by name.
        source: makes the source of trials from the begun folder and a function that shows a refused trial's row.
    """

    facts: dict[str, Any]
    total: int
    names: list[str]
    source: Callable[[SweepFolder, Callable[[dict[str, Any]], None]], Source]


def _planned(recipe: str, given: list[str], seeds: list[int] | None, evaluation: bool) -> _Work:
    """Return the work of a sweep over grids and seeds."""
    from robust_policies.sweep.plan import plan_trials
    from robust_policies.sweep.run import Planned

    planned = plan_trials(recipe, given, seeds)
    for trial in planned:
        _check(trial.recipe)
    facts = {"recipe": planned[0].recipe.resolved(), "keys": list(planned[0].setting), "search": None}
    return _Work(
        facts,
        len(planned),
        [trial.name for trial in planned],
        lambda folder, rejected: Planned([trial for trial in planned if not folder.is_done(trial.name, evaluation)]),
    )


def _searching(
    recipe: str,
    given: list[str],
    seeds: list[int] | None,
    search: list[str],
    trials: int,
    objective: str,
    prune: bool,
    evaluation: bool,
) -> _Work:
    """Return the work of a search."""
    from robust_policies.errors import UnknownNameError
    from robust_policies.sweep.plan import checked_seeds, read_assignments
    from robust_policies.sweep.search import OBJECTIVES, Search, import_optuna
    from robust_policies.sweep.space import read_space
    from robust_policies.train import load_recipe

    import_optuna()
    if objective not in OBJECTIVES:
        raise UnknownNameError.among("objective", objective, OBJECTIVES)
    if objective != "best" and not evaluation:
        raise InvalidValueError(
            f"--objective {objective} needs the evaluation; leave --no-evaluate out, or use --objective best."
        )
    if prune and objective == "gamma":
        raise InvalidValueError("--prune compares training returns, and --objective gamma is none; leave one out.")
    assignments = read_assignments(given)
    if assignments.grid:
        key = next(iter(assignments.grid))
        raise InvalidValueError(
            f"--set {key} has several values, and with --search every key has one; write --search {key}=A,B,C."
        )
    base = load_recipe(recipe, assignments.fixed)
    _check(base)
    chosen = checked_seeds(seeds, base.seed)
    space = read_space(search, lambda assignment: _check(load_recipe(recipe, [*assignments.fixed, assignment])))
    facts = {
        "recipe": base.resolved(),
        "keys": list(space),
        "search": search,
        "objective": objective,
        "seeds": chosen,
    }

    def source(folder: SweepFolder, rejected: Callable[[dict[str, Any]], None]) -> Search:
        return Search(
            folder,
            space,
            trials,
            chosen,
            objective,
            lambda overrides, seed: load_recipe(recipe, [*assignments.fixed, *overrides], seed),
            prune=prune,
            evaluate=evaluation,
            rejected=rejected,
        )

    return _Work(facts, trials * len(chosen), [], source)


def _run(work: _Work, folder: SweepFolder, pool: Pool, console: Console, device: str, evaluation: bool) -> bool:
    """Return whether all trials ran to their end, after showing the tables."""
    from robust_policies.cli.sweep_display import SweepDisplay
    from robust_policies.sweep.run import drive

    done = sum(row["status"] == "pruned" or folder.is_done(name, evaluation) for name, row in folder.rows.items())
    display = SweepDisplay(console, max(work.total, done), done)
    source = work.source(folder, display.ended)
    with display:
        complete = drive(source, pool, folder, display, device, evaluation)
    folder.sort(work.names or sorted(folder.rows))
    folder.write_tables()
    _show(console, folder, source)
    return complete


def _check(recipe: Any) -> None:
    """Raise for what would fail in every trial, before any begins."""
    from robust_policies.envs.batch import spec_of
    from robust_policies.evaluation.suite import suite_named

    suite_named(recipe.evaluation.suite)
    for task in (recipe.task.id, *recipe.evaluation.tasks):
        spec_of(task)


def _pool(address: str | None, jobs: int | None, device: str) -> Pool:
    from robust_policies import checks
    from robust_policies.sweep.local import LocalPool, cores

    if address is not None:
        from robust_policies.sweep.ray_pool import RayPool

        return RayPool(address, jobs, device)
    checks.device(device)
    return LocalPool(jobs or cores())


def _show(console: Console, folder: SweepFolder, source: Source) -> None:
    from robust_policies.sweep.table import INTERVAL, settings_table, trials_table

    rows = list(folder.rows.values())
    if rows:
        console.print(trials_table(rows))
    if any(row["status"] == "done" for row in rows):
        console.print(f"Settings: mean and {INTERVAL}", highlight=False)
        console.print(settings_table(rows))
    for line in (*source.summary(), f"Tables: {folder.table}, trials.csv and settings.csv"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
