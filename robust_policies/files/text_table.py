"""Tables as text: aligned columns for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence

Cells = Sequence[str]


def aligned(head: Cells, rows: Sequence[Cells], right: Collection[int] = ()) -> str:
    """Return a table in aligned columns, however wide; those numbered `right` are set to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = [
            f"{cell:>{width}}" if index in right else f"{cell:<{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(head: Cells, rows: Sequence[Cells], right: Collection[int] = ()) -> str:
    """Return a table in Markdown; the columns numbered `right` are set to the right."""
    rule = ["--:" if index in right else "---" for index in range(len(head))]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (head, rule, *rows)
    )
