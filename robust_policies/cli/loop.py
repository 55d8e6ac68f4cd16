"""The command `robust-policies loop`. Heavy imports stand inside, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def loop(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="run folder made by `train`")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="folder for loop.json and the pictures [default: DIR]"),
    ] = None,
) -> None:
    """Show the linear part of the loop of a policy and its plant: responses, Bode, Nyquist, poles and margins.

    Beside the LQG controller of the plant's linear model. Writes loop.json, which `report` and `check` read, and
    pictures (PNG, PDF, SVG) into loop/ beside it. Margins are measured for the linear part at the equilibrium, and
    proven where they follow; of a nonlinear plant nothing is proven by them.
    """
    from robust_policies.evaluation.loop import loop_run
    from robust_policies.evaluation.report.loop import margin_texts, notes
    from robust_policies.evaluation.report.loop_charts import loop_charts, margin_rows
    from robust_policies.evaluation.report.static import save
    from robust_policies.files.atomic import output_folder, write_atomic
    from robust_policies.files.text_table import aligned
    from robust_policies.train import open_run

    open_run(folder)
    target = output or folder
    with output_folder(target):
        (target / "loop").mkdir(parents=True, exist_ok=True)
    content = loop_run(folder, target)
    for chart in loop_charts(content, "loop"):
        picture = save(chart, target / "loop")
        write_atomic(target / "loop" / f"{chart.key}.svg", lambda file, text=picture: file.write(text.encode()))
    typer.echo(f"Linear model: {content['model']}. LQG: {content['compared']}.")
    rows = [[whose, of, *margin_texts(one, "proven" in whose)] for whose, of, one in margin_rows(content)]
    head = ["whose", "at", "gain", "phase", "delay [steps]", "largest |S|"]
    typer.echo(aligned(head, rows, range(2, len(head))))
    for note in notes(content):
        typer.echo(note)
    typer.echo(f"Pictures: {target / 'loop'}")
