"""Values and learnt rewards of bounded gain against unbounded ones: three tasks, five seeds.

usage: OMP_NUM_THREADS=1 python -m results.critics.make [--parts critic reward] [--tasks NAME ...] [--seeds 0 1 2]
       [--runs FOLDER]

Writes a row a training into critics.json and the tables into README.md here, after each training. Rows that are there
are not made again; with --seeds and no number only the tables are written. The return is that of the last policy,
in 50 episodes without exploration, of the task's own reward. Means are over training seeds, none left out: below five
with the least and the largest, from five on with their 95% interval by Student's t.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from results.critics.study import TASKS, measure, teach, variants
from robust_policies.files.atomic import write_atomic
from robust_policies.sweep.table import interval, interval_text

RESULTS = Path(__file__).resolve().parent
PARTS = ("critic", "reward")


def shown(values: list[float]) -> str:
    """Return the mean of the values and how far the seeds lie apart, as text."""
    return interval_text(interval(values), lambda value: f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}")


def above(group: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """Return on how many of the seeds that both have a variant ended above the first one; empty of the first."""
    first = next(iter(variants(group[0]["part"])))
    if group[0]["variant"] == first:
        return ""
    task = group[0]["task"]
    other = {row["seed"]: row["evaluations"][-1][1] for row in rows if (row["task"], row["variant"]) == (task, first)}
    pairs = [(row["evaluations"][-1][1], other[row["seed"]]) for row in group if row["seed"] in other]
    return f"{sum(mine > theirs for mine, theirs in pairs)} of {len(pairs)}"


def table(rows: list[dict[str, Any]], part: str) -> str:
    """Return the table of a part: a line a task and variant."""
    chosen = [row for row in rows if row["part"] == part]
    extra = " teacher | proven gain | found gain |" if part == "reward" else ""
    lines = [f"| task | {part} | seeds | return after half | return | above | CPU s |{extra}"]
    lines.append("|---|---|--:|--:|--:|--:|--:|" + ("--:|--:|--:|" if extra else ""))
    for task in TASKS:
        for variant in variants(part):
            group = [row for row in chosen if (row["task"], row["variant"]) == (task, variant)]
            if not group:
                continue
            half = [row["evaluations"][len(row["evaluations"]) // 2 - 1][1] for row in group]
            last = [row["evaluations"][-1][1] for row in group]
            cells = [task, variant, str(len(group)), shown(half), shown(last), above(group, chosen)]
            cells.append(f"{sum(row['cpu_seconds'] for row in group) / len(group):.0f}")
            if part == "reward":
                proven = [row["proven"] for row in group]
                cells.append(f"{group[0]['teacher']:.3g}")
                cells.append("none" if None in proven else f"{max(proven):.3g}")
                cells.append(shown([row["found"] for row in group]))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(rows: list[dict[str, Any]]) -> str:
    """Return README.md: page.md with the tables of the rows."""
    text = (RESULTS / "page.md").read_text()
    for part in PARTS:
        text = text.replace(f"<!-- {part} -->", table(rows, part))
    return text


def write(rows: list[dict[str, Any]]) -> None:
    """Write the rows and the page."""
    rows.sort(key=lambda row: (row["part"], row["task"], row["variant"], row["seed"]))
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    for name, content in (("critics.json", text), ("README.md", page(rows))):
        write_atomic(RESULTS / name, lambda file, content=content: file.write(content.encode()))


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs")
    arguments = parser.parse_args()
    path = RESULTS / "critics.json"

    def kept() -> list[dict[str, Any]]:
        return json.loads(path.read_text()) if path.is_file() else []

    write(kept())
    for seed in arguments.seeds:
        for part in arguments.parts:
            if part == "reward":
                teach(arguments.runs)
            for task in arguments.tasks:
                for variant in variants(part):
                    key = (part, task, variant, seed)
                    if key in {(row["part"], row["task"], row["variant"], row["seed"]) for row in kept()}:
                        continue
                    row = measure(*key, arguments.runs)
                    print(key, row["evaluations"][-1][1], f"{row['cpu_seconds']:.0f} CPU s", flush=True)
                    write([*kept(), row])


if __name__ == "__main__":
    main()
