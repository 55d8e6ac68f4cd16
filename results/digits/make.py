"""Digits that are classified with a proof: nemon, an LBDN and MLPs against l-infinity attacks (extra `digits`).

    OMP_NUM_THREADS=1 python -m results.digits.make                  # whatever is missing, then the page
    OMP_NUM_THREADS=1 python -m results.digits.make --seeds 5 6
    OMP_NUM_THREADS=1 python -m results.digits.make --only page      # from results/digits/digits.json

The digits are those that come with scikit-learn (`pip install 'robust-policies[digits]'`); nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from results.digits.study import METHODS, measure
from results.digits.tables import write_page
from robust_policies.files.atomic import read_json, write_atomic

RESULTS = Path(__file__).resolve().parent


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--only", choices=["measure", "page"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "digits.json"
    rows: list[dict[str, Any]] = read_json(path, "results", 1)["rows"] if path.is_file() else []
    if given.only != "page":
        for seed in given.seeds:
            for method in given.methods:
                if any(row["method"] == method and row["seed"] == seed for row in rows):
                    continue
                rows.append(measure(method, seed))
                text = json.dumps({"schema": 1, "rows": rows}, allow_nan=False, indent=1) + "\n"
                write_atomic(path, lambda file, text=text: file.write(text.encode()))
                print(f"{method}, seed {seed}: {rows[-1]}", flush=True)
    if given.only != "measure":
        write_page(rows, RESULTS)


if __name__ == "__main__":
    main()
