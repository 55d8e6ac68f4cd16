"""The command `robust-policies local`. Heavy imports stand inside, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robust_policies.errors import InvalidValueError


def local(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="run folder made by `train`, or of `save_policy`")],
    near: Annotated[str, typer.Option(metavar="O1,O2,...", help="an observation, the middle of the box: 1,0,0")],
    within: Annotated[
        str, typer.Option(metavar="W1,W2,...", help="half widths of the box, one for all or one a sensor: 0.1,0.1,0.5")
    ],
    splits: Annotated[int, typer.Option(min=1, help="boxes at most, for each action; more are closer")] = 200,
) -> None:
    """Say how far each action moves at most while the observations stay near one, of policies without a memory.

    Every entry may differ by its half width of the box. Also of policies that read a window of observations.
    """
    from robust_policies.policies import load_policy, local_bounds

    middle, widths = (_numbers(name, text) for name, text in (("--near", near), ("--within", within)))
    widths = widths * len(middle) if len(widths) == 1 else widths
    if len(widths) != len(middle) or min(widths) <= 0:
        raise InvalidValueError(f"--within is {within!r}; expected {len(middle)} number(s) > 0, or one for all.")
    box = [[o + sign * w for o, w in zip(middle, widths, strict=True)] for sign in (-1, 1)]
    typer.echo(local_bounds(load_policy(folder), *box, units=widths, splits=splits).claim)


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidValueError(
            f"{option} is {text!r}; expected numbers separated by commas, such as 1,0,0."
        ) from error
