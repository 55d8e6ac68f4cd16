"""What several commands do with a finished run folder, and print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from robust_policies.errors import InvalidValueError
from robust_policies.files import numbers

Threads = Annotated[int, typer.Option(min=1, max=1024, help="CPU threads; small networks are fastest with one")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="make one update in a scratch folder with all that follows, and stop")
]


def ask_first(recipe: Any, folder: Path, device: str, resume: bool, evaluate: bool, dry_run: bool) -> None:
    """Raise for whatever would be refused after hours of training, a second or two before it begins."""
    from robust_policies import checks
    from robust_policies.evaluation.rehearsal import rehearse
    from robust_policies.evaluation.suite import suite_named
    from robust_policies.train import RunFolder

    suite_named(recipe.evaluation.suite)
    checks.device(device)
    if not RunFolder(folder).continues(recipe, resume) or dry_run:
        rehearse(recipe, device, evaluate=evaluate)


def said_of_dry_run(folder: Path) -> str:
    """Return what a dry run has shown."""
    return f"One update was made, saved, loaded, certified and evaluated; nothing was written into {folder}."


def check_together(modes: list[str], given: list[str]) -> None:
    """Raise InvalidValueError unless `certify` was asked for one thing, and given options of it alone."""
    if len(modes) > 1:
        why = ", which takes them from certificate.json" if set(modes) == {"--check", "--weights"} else "; give one"
        raise InvalidValueError(f"{modes[1]} was given with {modes[0]}{why}.")
    mode = modes[0] if modes else ""
    for option in given:
        whose = dict.fromkeys(("--norm", "--delay", "--noise"), "--return")
        whose |= dict.fromkeys(("--confidence", "--floor"), "--smooth")
        takes = (whose[option],) if option in whose else ("--return", "--smooth")
        if mode not in takes:
            raise InvalidValueError(f"{option} was given without {' or '.join(takes)}, which it is for.")


def check_elsewhere(modes: list[str], given: list[str]) -> None:
    """Raise InvalidValueError where options of `certify` about where and whether do not fit what it was asked for."""
    if given == ["--jobs"]:
        raise InvalidValueError("--jobs was given without --address; without it folders are certified in turn.")
    if "--resume" in given and modes and modes != ["--weights"]:
        raise InvalidValueError(f"--resume was given with {modes[0]}; it is for certificate.json, without one.")
    if given and "--check" in modes:
        raise InvalidValueError(f"{given[0]} was given with --check, which is done here.")


def certify_folder(folder: Path, weights: list[float] | None = None) -> bool:
    """Return whether something is proven of the policy in `folder`, after writing its certificate."""
    from robust_policies.evaluation import certify_model_loop, certify_run

    certificate = certify_run(folder, weights=weights)
    typer.echo(f"{certificate.status}: {certificate.claim}")
    if certificate.empirical_lower is not None:
        of = "" if certificate.ratio is None else f", {numbers.shown(certificate.ratio)} of the proven one"
        typer.echo(f"Largest gain found by search: {numbers.lower(certificate.empirical_lower)}{of}.")
    if certificate.peak is not None and certificate.peak.get("found"):
        shares = [
            low / bound
            for low, bound in zip(certificate.peak["found"], certificate.peak["gamma"], strict=True)
            if bound
        ]
        reached = f", {', '.join(map(numbers.shown, shares))} of the proven one" if shares else ""
        changes = ", ".join(map(numbers.lower, certificate.peak["found"]))
        typer.echo(f"Largest change of an action in one step found by search: {changes}{reached}.")
    if (loop := certify_model_loop(folder)) is not None:
        typer.echo(f"{loop['status']}: {loop['claim']}")
    return certificate.status == "PASS"


def certify_return_folder(folder: Path, sizes: list[float] | None, **options: Any) -> bool:
    """Return whether something is proven of the return of the policy in `folder`, after writing it there."""
    from robust_policies.evaluation import certify_return_run

    certificate = certify_return_run(folder, sizes, **options)
    typer.echo(f"{certificate.status}: {certificate.claim}")
    for row in certificate.rows:
        proven = "nothing" if row.certified is None else numbers.lower(row.certified)
        typer.echo(
            f"size {row.size:.4g}: certified {proven}, worst found {numbers.shown(row.found)}, without errors "
            f"{numbers.shown(row.nominal)}; clipped at the worst found: {row.clipped_share:.2%} of the steps"
        )
    for entry in certificate.sensors:
        changes = [(name, bound) for name, bound in {**entry.actions, **entry.states}.items() if bound is not None]
        if changes:
            said = ", ".join(f"{name} by at most {numbers.upper(bound)}" for name, bound in changes)
            typer.echo(f"{entry.sensor} off by 1 at every step moves, for ever and while nothing is clipped: {said}")
    return certificate.status == "PASS"


def certify_smoothed_folder(folder: Path, sigma: float, sizes: list[float] | None, **options: Any) -> bool:
    """Return whether something is certified of the policy in `folder` behind noise, after writing it there."""
    from robust_policies.evaluation import certify_smoothed_run

    found = certify_smoothed_run(folder, sigma, sizes, **options)
    typer.echo(f"{found.status}: {found.claim}")
    for what, mean, error in (
        ("without the noise", found.nominal, found.nominal_error),
        ("with it, not attacked", found.smoothed, found.smoothed_error),
    ):
        typer.echo(f"Mean return {what}: {numbers.shown(mean)}, standard error {numbers.shown(error, 2)}.")
    return found.status == "PASS"


def report_on(folders: Sequence[Path], output: Path | None, limits: Path | None = None) -> None:
    """Write the report of run folders."""
    from robust_policies.evaluation import write_report

    typer.echo(f"Report: {write_report(folders, output, limits)}")


def certify_evaluate_report(folder: Path, report: bool) -> None:
    """Do all that follows a training; raises typer.Exit where something could not be evaluated."""
    from robust_policies.cli.evaluate import evaluate_folders

    certify_folder(folder)
    status = evaluate_folders([folder], {}, 1)
    if report:
        report_on([folder], None)
    if status:
        raise typer.Exit(status)
