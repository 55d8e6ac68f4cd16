"""CPU seconds of the evaluation suite `quick` and of a report of many runs, beside those of an older state of the code.

    OMP_NUM_THREADS=1 python benchmarks/report.py DIR --old TREE [--output FILE] [--count 100] [--runs FOLDER]
        [--parts evaluate check report]

DIR is a trained run folder, TREE another checkout. `evaluate`: DIR is evaluated by both in turn. `check`: one check of
its certificate by each, written by this side. `report`: a report of `count` runs of different policies (many_runs.py)
in one process by each, `report_s` without Python's start and imports, `process_s` with them; the runs are made in
FOLDER, where they stay, and taken from there where they are.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from many_runs import different

PARTS = ("evaluate", "check", "report")
SIDES = {
    "evaluate": "import sys, time, torch; torch.set_num_threads(1)\n"
    "from robust_policies.evaluation import evaluate_run\n"
    "began = time.process_time(); evaluate_run(sys.argv[1]); print(time.process_time() - began)",
    "report": "import sys, time\nfrom robust_policies.evaluation import write_report\n"
    "began = time.process_time(); write_report(sys.argv[1], sys.argv[2]); print(time.process_time() - began)",
    "certify": "import sys\nfrom robust_policies.evaluation import certify_run\ncertify_run(sys.argv[1])\nprint(0)",
    "check": "import sys, time\nfrom robust_policies.evaluation.certify import check_run\ncheck_run(sys.argv[1])\n"
    "began = time.process_time(); check_run(sys.argv[1]); print(time.process_time() - began)",
}


def seconds(tree: Path, part: str, *arguments: Path) -> tuple[float, float]:
    """Return the CPU seconds of a part with the code in `tree`, without Python's start and imports, and with them."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", SIDES[part], *map(str, arguments)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, cwd=tree, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(done.stdout.split()[-1]), whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--runs", type=Path, help="where the runs are made, or were made before")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    trees = {"old": given.old.resolve(), "new": Path(__file__).resolve().parents[1]}
    found: dict[str, Any] = {name: {} for name in trees}
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        shutil.copytree(given.folder, run)
        for name, tree in trees.items() if "evaluate" in given.parts else ():
            found[name]["evaluate_s"], _ = seconds(tree, "evaluate", run)
        if "check" in given.parts or not given.runs:
            seconds(trees["new"], "certify", run)
        for name, tree in trees.items() if "check" in given.parts else ():
            found[name]["check_s"], _ = seconds(tree, "check", run)
        runs = given.runs or Path(scratch) / "runs"
        for number in range(given.count) if "report" in given.parts else ():
            if not (runs / f"run_{number}").is_dir():
                different(run, runs / f"run_{number}", number)
        for name, tree in trees.items() if "report" in given.parts else ():
            page = Path(scratch) / f"{name}_page" / "report.html"
            found[name]["report_s"], found[name]["process_s"] = seconds(tree, "report", runs.resolve(), page)
            found[name]["page_mb"] = page.stat().st_size / 1e6
    old, new = found["old"], found["new"]
    found["ratios"] = {key: new[key] / old[key] for key in old}
    text = json.dumps(found, indent=2)
    print(text)
    if given.output is not None:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
