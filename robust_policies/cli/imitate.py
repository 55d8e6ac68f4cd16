"""The command `robust-policies imitate`. Heavy imports stand inside, so that `--help` answers at once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from robust_policies.cli.steps import DryRun, Threads, ask_first, certify_evaluate_report, said_of_dry_run
from robust_policies.files import numbers


class Method(StrEnum):
    """How what the teacher does is learnt."""

    dagger = "dagger"
    bc = "bc"
    gail = "gail"


def imitate(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="lqg, run folder or policy.json; gail: Minari folder")
    ],
    task: Annotated[str | None, typer.Option(help="Gymnasium id [default: that of the teacher's run folder]")] = None,
    gamma: Annotated[float | None, typer.Option(help="bound on the gain of the student's cell [default: none]")] = None,
    method: Annotated[
        Method,
        typer.Option(help="dagger: the student acts more and more; bc: the teacher alone; gail: PPO, a learnt reward"),
    ] = Method.dagger,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE ...", help="policy.state_size=8 algorithm.rounds=20")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="run folder [default: results/TASK_imitation]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in DIR from its last checkpoint")] = False,
    threads: Threads = 1,
    dry_run: DryRun = False,
    evaluation: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="certify and evaluate it too")] = True,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="write report.html (needs the evaluation)")
    ] = True,
) -> None:
    """Teach a policy of bounded gain what a controller does, and say what is proven of the loop it closes.

    By DAgger, behaviour cloning or adversarial imitation, into a run folder like that of `train`, whose recipe.yaml is
    a recipe.
    """
    import torch
    from rich.console import Console

    from robust_policies.files.atomic import read_json
    from robust_policies.train import RunFolder, StopOnSignal, train
    from robust_policies.train.imitate import default_folder, imitation_recipe
    from robust_policies.train.imitation.run import SCHEMA
    from robust_policies.train.run.progress import reporter_for

    torch.set_num_threads(threads)
    recipe = imitation_recipe(teacher, task, None, set_ or [], gamma=gamma, method=method.value, seed=seed)
    folder = output or default_folder(recipe)
    ask_first(recipe, folder, device, resume, evaluation, dry_run)
    if dry_run:
        typer.echo(said_of_dry_run(folder))
        return
    shown, run = reporter_for(Console()), RunFolder(folder)
    result = train(recipe, folder, device=device, resume=resume, reporter=shown, stop=StopOnSignal())
    found = read_json(run.imitation, "imitation", SCHEMA)
    typer.echo(f"Learnt from {found['demonstrations']} demonstrations in {result.seconds:.0f} s: {folder}")
    if "reward" in found:
        typer.echo(_said_of_reward(found["reward"]))
    else:
        error, spread = sum(found["held_out_mse"]), sum(found["held_out_variance"])
        share = f", {error / spread:.2g} of the actions' variance" if spread > 0 else ""
        typer.echo(f"Mean squared action error on {found['held_out_episodes']} held-out episodes: {error:.3g}{share}.")
    own, teacher = (numbers.shown(found[name]) for name in ("student_return", "teacher_return"))
    typer.echo(f"Mean return: {own}, the teacher's {teacher}.")
    typer.echo(read_json(run.closed_loop, "closed loop", SCHEMA)["claim"])
    if evaluation:
        certify_evaluate_report(folder, report)


def _said_of_reward(reward: dict[str, Any]) -> str:
    """Return what is known of the gain of a learnt reward."""
    designed = "no bound by design" if reward["gamma"] is None else f"at most {reward['gamma']:g} by design"
    proven = "none" if reward["proven_gain"] is None else f"{reward['proven_gain']:.3g}"
    return f"Gain of the learnt reward: {designed}, proven {proven}, found {reward['found_gain']:.3g}."
