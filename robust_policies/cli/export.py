"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from robust_policies.cli.choices import Dtype, Format


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="run folder made by `train`")],
    format: Annotated[
        Format, typer.Option(help="c: policy.h and policy.c; numpy: policy.py; safetensors: policy.json and weights")
    ] = Format.safetensors,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="folder [default: DIR/export]")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="in which it computes, of c, numpy, onnx [float32]")] = None,
) -> None:
    """Write the policy for use elsewhere, with the certificate of what is written and how far it is from the policy.

    The folder must not exist. Beside the files: certificate.json and parity.json.
    """
    from robust_policies.errors import InvalidValueError
    from robust_policies.export import export_policy
    from robust_policies.train import open_run

    run = open_run(folder)
    if dtype is not None and format is Format.safetensors:
        raise InvalidValueError("--dtype was given with --format safetensors, which keeps the policy's own numbers.")
    kind = (dtype or Dtype.float32).value
    written = export_policy(folder, format.value, output or folder / "export", dtype=kind, env=_environment(run))
    typer.echo(f"Exported: {written}")


def _environment(run: Any) -> Any:
    """Return what makes the environment that a run folder names, None where it names none."""
    from robust_policies.envs.batch import make_one
    from robust_policies.envs.perturb import parse, perturb
    from robust_policies.policies.storage import stored_task

    task = run.read_recipe().task if run.recipe.is_file() else None
    if task is not None:
        return lambda: perturb(make_one(task.id, task.kwargs), parse(task.perturbations))
    known = stored_task(run.path)
    return None if known is None else lambda: make_one(*known)
