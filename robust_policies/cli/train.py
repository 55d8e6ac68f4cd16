"""The command `robust-policies train`. Heavy imports stand inside, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from robust_policies.cli.errors import one_voice
from robust_policies.cli.steps import DryRun, Threads, ask_first, certify_evaluate_report, said_of_dry_run
from robust_policies.errors import InvalidValueError

_EXAMPLE = "robust-policies train pendulum_r2dn_gamma6, or --env ID"


def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="YAML file, or the name of a recipe (`list recipes`)")
    ] = None,
    env: Annotated[str | None, typer.Option(metavar="ID", help="make a recipe for this environment instead")] = None,
    cell: Annotated[str | None, typer.Option(help="of --env: `list policies` [default: r2dn]")] = None,
    gamma: Annotated[float | None, typer.Option(help="of --env: bound on the cell's gain [default: none]")] = None,
    algo: Annotated[
        str | None,
        typer.Option(help="of --env: tensor_ppo, recurrent_ppo, apg, ppo, sac, td3, recurrent_sac"),
    ] = None,
    steps: Annotated[float | None, typer.Option(help="of --env: environment steps [default: 1e6]")] = None,
    env_kwargs: Annotated[
        list[str] | None, typer.Option("--env-kwargs", metavar="KEY=VALUE ...", help="of --env: passed on to it")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE ...", help="change the recipe: policy.gamma=4")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="in place of the recipe's seed")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="run folder [default: results/RECIPE]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in DIR from its last checkpoint")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="deterministic algorithms only; the same as deterministic=true")
    ] = False,
    threads: Threads = 1,
    dry_run: DryRun = False,
    evaluation: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="certify and evaluate it too")] = True,
    report_: Annotated[
        bool, typer.Option("--report/--no-report", help="write report.html (needs the evaluation)")
    ] = True,
) -> None:
    """Train a recipe, then certify and evaluate the policy and write a report, all into one run folder.

    With --env in place of a recipe, one is made and printed; --dry-run then stops there. Under torchrun, tensor_ppo
    trains in all its processes together: torchrun --nproc-per-node 4 -m robust_policies train RECIPE.
    """
    given = {"--cell": cell, "--gamma": gamma, "--algo": algo, "--steps": steps, "--env-kwargs": env_kwargs or None}
    _one_of(recipe, env, [name for name, value in given.items() if value is not None])

    import torch
    from rich.console import Console

    from robust_policies import train as training
    from robust_policies.train.run.progress import reporter_for

    torch.set_num_threads(threads)
    changes = [*(set_ or []), *["deterministic=true"] * deterministic]
    ranks = training.launched()
    with one_voice(ranks):
        if recipe is not None:
            resolved, name = training.load_recipe(recipe, changes, seed), Path(recipe).stem
        else:
            resolved, text, name = _made(str(env), cell or "r2dn", gamma, algo, steps, env_kwargs or [], changes, seed)
            if ranks.first:
                typer.echo(text, nl=False)
            if dry_run:
                return
        folder = output or Path("results") / name
        if ranks.first:
            ranks.fit(resolved)
            ask_first(resolved, folder, ranks.device(device), resume, evaluation, dry_run)
        if dry_run:
            if ranks.first:
                typer.echo(said_of_dry_run(folder))
            return
        shown, stop = reporter_for(Console()), training.StopOnSignal(together=not ranks.alone)
        result = training.train(resolved, folder, device=device, resume=resume, reporter=shown, stop=stop, ranks=ranks)
    if not ranks.first:
        return
    best = "" if result.best_reward is None else f", best mean return {result.best_reward:.1f}"
    best += "" if result.best_certified is None else f", certified {result.best_certified:.4g}"
    early = " (checkpoints.stop_at_reward was reached)" if result.reached else ""
    typer.echo(f"Trained {result.num_timesteps} steps in {result.seconds:.0f} s{best}{early}: {folder}")
    if result.target is not None:
        typer.echo(result.target.text)
    if not evaluation:
        return
    certify_evaluate_report(folder, report_)


def _one_of(recipe: str | None, env: str | None, given: list[str]) -> None:
    """Raise unless there is a recipe, or an environment to make one for."""
    if recipe is None and env is None:
        raise InvalidValueError(f"No RECIPE was given; expected such as {_EXAMPLE}.")
    if recipe is None:
        return
    wrong = ["--env", *given] if env is not None else given
    if wrong:
        raise InvalidValueError(
            f"{wrong[0]} was given with the recipe {recipe!r}; expected one of them (--set changes a recipe)."
        )


def _made(
    env: str,
    cell: str,
    gamma: float | None,
    algorithm: str | None,
    steps: float | None,
    env_kwargs: list[str],
    changes: list[str],
    seed: int | None,
) -> tuple[Any, str, str]:
    """Return the recipe that the options describe, its text, and what its run folder is called."""
    from robust_policies.files.yaml_text import parse_yaml
    from robust_policies.train.compose import composed

    kwargs: dict[str, Any] = {}
    for assignment in env_kwargs:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise InvalidValueError(f"--env-kwargs was given {assignment!r}; expected KEY=VALUE.")
        kwargs[key] = parse_yaml(text, f"--env-kwargs {key}")
    resolved, text = composed(env, cell, gamma, algorithm, 1e6 if steps is None else steps, kwargs, changes, seed)
    task = env.rpartition("/")[2].rpartition(":")[2]
    return resolved, text, f"{task}_{resolved.policy.cell}_{resolved.algorithm.name}"
