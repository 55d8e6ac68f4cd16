"""CPU seconds of the evaluation suite `quick` and of a report of many runs, beside those of an older state of the code.

    OMP_NUM_THREADS=1 python benchmarks/report.py DIR --old TREE [--output FILE] [--count 100]

DIR is a trained run folder, TREE another checkout. Each side certifies nothing: DIR is evaluated by both in turn, then
certified by this side; `count` copies of it are the report's runs. As copies hold the same policy, this side checks its
certificate once and the older one each time; `check_s` is one check by either, this side's with what its own searches
left in proofs.npz, and `different_s` what a report of `count` different policies takes with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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


def seconds(tree: Path, part: str, *arguments: Path) -> float:
    """Return the CPU seconds of a part with the code in `tree`, without Python's start and imports."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", SIDES[part], *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=tree, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--count", type=int, default=100)
    given = parser.parse_args()
    trees = {"old": given.old.resolve(), "new": Path(__file__).resolve().parents[1]}
    found: dict[str, Any] = {name: {} for name in trees}
    with tempfile.TemporaryDirectory() as scratch:
        for name, tree in trees.items():
            run = Path(scratch) / name
            shutil.copytree(given.folder, run)
            found[name]["evaluate_s"] = seconds(tree, "evaluate", run)
        run = Path(scratch) / "new"
        seconds(trees["new"], "certify", run)
        for name, tree in trees.items():
            found[name]["check_s"] = seconds(tree, "check", run)
        for number in range(given.count):
            shutil.copytree(run, Path(scratch) / "runs" / f"run_{number}")
        for name, tree in trees.items():
            page = Path(scratch) / f"{name}_page" / "report.html"
            found[name]["report_s"] = seconds(tree, "report", Path(scratch) / "runs", page)
            found[name]["page_mb"] = page.stat().st_size / 1e6
    # The older side has checked each copy already.
    found["old"]["different_s"] = found["old"]["report_s"]
    found["new"]["different_s"] = found["new"]["report_s"] + (given.count - 1) * found["new"]["check_s"]
    old, new = found["old"], found["new"]
    found["ratios"] = {key: new[key] / old[key] for key in old}
    text = json.dumps(found, indent=2)
    print(text)
    if given.output is not None:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
