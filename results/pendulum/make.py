"""The pendulum under attack: ten policies, ten training seeds each, trained and evaluated by one protocol.

    OMP_NUM_THREADS=1 python -m results.pendulum.make            # whatever is missing, then the tables (some hours)
    OMP_NUM_THREADS=1 python -m results.pendulum.make --seeds 0 1 --methods r2dn_gamma6 lstm
    OMP_NUM_THREADS=1 python -m results.pendulum.make --only tables
    robust-policies report results/pendulum/runs -o results/pendulum/report.html

Runs lie in results/pendulum/runs/METHOD/seed=N; what is finished is not repeated, what was interrupted goes on. Every
method is trained by the recipe pendulum_r2dn_adversarial with another cell of about as many parameters, so
what differs is the cell. `--training plain` trains without the adversary (runs in runs/METHOD_plain).
The tables hold every method and training seed that is evaluated in the runs' folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from results.pendulum.tables import write_tables
from results.training import finished, train_missing
from robust_policies.evaluation import certify_run, evaluate_run, suite_named
from robust_policies.files.atomic import read_json

RESULTS = Path(__file__).resolve().parent
RECIPE = "pendulum_r2dn_adversarial"
TASK = "robust_policies/Pendulum-v0"
SUITE = "paper"
R2DN = "cell: r2dn, state_size: 8, features: 16, hidden_sizes: [16, 16]"
METHODS = {
    "r2dn_gamma3": f"{R2DN}, gamma: 3.0",
    "r2dn_gamma4": f"{R2DN}, gamma: 4.0",
    "r2dn_gamma6": f"{R2DN}, gamma: 6.0",
    "r2dn_gamma10": f"{R2DN}, gamma: 10.0",
    "r2dn_contracting": R2DN,
    "ren_gamma6": "cell: ren, state_size: 8, features: 24, gamma: 6.0",
    "lbdn_gamma6": "cell: lbdn, hidden_sizes: [26, 26], gamma: 6.0",
    "lstm": "cell: lstm, state_size: 44",
    "gru": "cell: gru, state_size: 25",
    "mlp": "cell: mlp, hidden_sizes: [45, 45]",
}


def overrides(method: str, plain: bool) -> list[str]:
    """Return the assignments that make the recipe one of `method`."""
    changed = [f"policy={{{METHODS[method]}, action_scale: 2.0}}", f"description=Pendulum, {method}"]
    # What is looked at on the way does not change the result, and would take a fifth of the time.
    changed += ["checkpoints.certify_every=0", "checkpoints.evaluate_every=614400"]
    if plain:
        changed += ["algorithm.adversary=null", f"description=Pendulum, {method}, without the adversary"]
    return changed


def folder_of(runs: Path, method: str, seed: int, plain: bool) -> Path:
    """Return the run folder of a method and a seed."""
    return runs / (f"{method}_plain" if plain else method) / f"seed={seed}"


def evaluate_missing(folder: Path) -> None:
    """Certify and evaluate a run unless that is done."""
    if not (folder / "tightness.json").is_file():
        certify_run(folder)
    done = folder / "evaluation.json"
    if not done.is_file() or read_json(done, "evaluation", 1).get("suite") != SUITE:
        # The tables read the size that leaves 80% of the return off the worst returns: no search for it.
        found = evaluate_run(folder, suite=suite_named(SUITE).changed(critical={"attacks": []}), tasks=[TASK])
        print(f"{folder}: evaluated, {found['seconds']:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--training", choices=["adversarial", "plain"], default="adversarial")
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs")
    parser.add_argument("--only", choices=["train", "evaluate", "tables"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    plain = given.training == "plain"
    for seed in given.seeds:
        for method in given.methods:
            folder = folder_of(given.runs, method, seed, plain)
            if given.only in (None, "train"):
                train_missing(RECIPE, overrides(method, plain), seed, folder)
            if given.only in (None, "evaluate") and finished(folder):
                evaluate_missing(folder)
    if given.only in (None, "tables"):
        write_tables(given.runs, RESULTS, json.loads(json.dumps(METHODS)))


if __name__ == "__main__":
    main()
