"""Train the Youla example by analytic policy gradients, several seeds: results/youla/apg.md and apg.json.

usage: OMP_NUM_THREADS=1 python -m results.youla.example [--seeds 0 1 ... 9] [--recipes NAME ...] [--set KEY=VALUE ...]

The published figures are test costs per step after 80 epochs of 64 x 800 steps: R2DN 1.2625, REN 1.2690, and 4.321 of
the policy that does nothing, on one test set of 64 disturbances. That set is drawn here again, so the costs compare
sequence by sequence (a test set of this size is worth +-0.04 by itself), and a set of 4,096 others is drawn beside it.
The table holds every run that was measured in the runs' folder; an interrupted one is continued (its seconds are not
measured then).

Source of the experiment: N. H. Barbara, R. Wang and I. R. Manchester, "R2DN" (arXiv 2504.01250), its public code.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robust_policies.envs import gradient
from robust_policies.envs.task import load_plant
from robust_policies.evaluation import certify_run
from robust_policies.policies import load_policy
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.sweep.table import interval as spread_of
from robust_policies.sweep.table import interval_text
from robust_policies.train import load_recipe, open_run, train

RESULTS = Path(__file__).resolve().parent
RUNS = RESULTS / "runs"
PUBLISHED = {"youla_example_r2dn_apg": 1.2625, "youla_example_ren_apg": 1.2690}
NOTE = (
    "Both recipes see 80 epochs of 64 sequences of 800 steps, as the published code does. Its R2DN has the sizes of "
    "the recipe here, its REN 400 neurons where the recipe has 100; its figures are of one seed."
)
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
HOLD, PIECES, AMPLITUDE = 50, 16, 10.0


def threefry(key: tuple[int, int], first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two words of Threefry-2x32 with 20 rounds for counters (first, second), all uint32.

    Source: J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
    """
    keys = [np.uint32(key[0]), np.uint32(key[1]), np.uint32(key[0] ^ key[1] ^ 0x1BD11BDA)]
    with np.errstate(over="ignore"):
        x, y = first + keys[0], second + keys[1]
        for group in range(5):
            for bits in ROTATIONS[group % 2]:
                x = x + y
                y = ((y << np.uint32(bits)) | (y >> np.uint32(32 - bits))) ^ x
            x, y = x + keys[(group + 1) % 3], y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def published_disturbances() -> np.ndarray:
    """Return the disturbances (16 pieces, 64 sequences) of the published test set.

    The generator of the experiment's code: of key (0, 0) the second of two keys, of that the first of two, and its
    uniform numbers in [-10, 10).
    """
    key = (0, 0)
    for which in (1, 0):
        words = threefry(key, np.zeros(2, np.uint32), np.arange(2, dtype=np.uint32))
        key = (int(words[0][which]), int(words[1][which]))
    counters = np.arange(PIECES * 64, dtype=np.uint32)
    first, second = threefry(key, np.zeros_like(counters), counters)
    unit = (((first ^ second) >> np.uint32(9)) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    return (unit * np.float32(2 * AMPLITUDE) - np.float32(AMPLITUDE)).reshape(PIECES, 64)


def test_cost(policy: DeployedPolicy | None, pieces: np.ndarray) -> np.ndarray:
    """Return the mean cost per step of each sequence for disturbances (pieces, n); None: the policy does nothing."""
    plant = load_plant("youla_example")
    params = plant.prepare(plant.nominal())
    count = pieces.shape[1]
    state = torch.zeros(count, plant.state_size, dtype=torch.float64)
    memory = None if policy is None else policy.cell.initial_state(count)
    action, total = torch.zeros(count, 1), torch.zeros(count, dtype=torch.float64)
    disturbance = plant.state_names.index("disturbance w")
    with torch.no_grad():
        for piece in torch.from_numpy(pieces.astype(np.float64)):
            state = state.index_copy(1, torch.tensor([disturbance]), piece.unsqueeze(1))
            for _ in range(HOLD):
                if policy is not None and memory is not None:
                    action, memory = policy.actor.step(plant.observe(state, params), memory)
                following = gradient.step(plant, state, action, params)
                total -= following.reward
                state = following.state
    return (total / (HOLD * len(pieces))).numpy()


def measure(name: str, changes: list[str], seed: int, folder: Path, others: np.ndarray) -> dict[str, Any]:
    """Return one row: the recipe with `changes`, trained with one seed."""
    path = folder / "measured.json"
    if path.is_file():
        return json.loads(path.read_text())
    continued, began = folder.is_dir(), time.process_time()
    train(load_recipe(name, changes, seed), folder, resume=continued)
    seconds = None if continued else time.process_time() - began
    policy, provenance = load_policy(folder), open_run(folder).read_provenance()
    row = {
        "recipe": ", ".join([name, *changes]),
        "seed": seed,
        "published_set": float(test_cost(policy, published_disturbances()).mean()),
        "other_set": float(test_cost(policy, others).mean()),
        "certificate": certify_run(folder).status,
        "parameters": sum(p.numel() for p in policy.cell.parameters()),
        "steps": provenance["num_timesteps"],
        "cpu_seconds": seconds,
    }
    path.write_text(json.dumps(row, indent=1))
    return row


def interval(values: list[float]) -> str:
    """Return the mean over seeds with its 95% t interval or, of few seeds, the least and the largest."""
    return interval_text(spread_of(values), lambda value: format(value, ".4f"))


def table(rows: list[dict[str, Any]], nothing: list[float]) -> str:
    """Return the rows as Markdown, a line a recipe and one for the policy that does nothing."""
    lines = [
        "| policy | seeds | published test set (95% interval over seeds) | worst seed | published figure "
        "| 4,096 other sequences | certificates | parameters | CPU seconds a run |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        f"| none (u = 0) | | {nothing[0]:.4f} | | 4.321 | {nothing[1]:.4f} | | | |",
    ]
    for name in dict.fromkeys(row["recipe"] for row in rows):
        found = [row for row in rows if row["recipe"] == name]
        costs = [row["published_set"] for row in found]
        passed = sum(row["certificate"] == "PASS" for row in found)
        cells = [name, len(found), interval(costs), f"{max(costs):.4f}", PUBLISHED.get(name.split(",")[0], "")]
        cells += [interval([row["other_set"] for row in found]), f"{passed} of {len(found)} PASS"]
        seconds = [row["cpu_seconds"] for row in found if row["cpu_seconds"] is not None]
        cells += [found[0]["parameters"], f"{np.median(seconds):.0f}" if seconds else "not measured"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked for; the table is written after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--recipes", nargs="+", default=list(PUBLISHED))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the recipes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    others = np.random.default_rng(2026).uniform(-AMPLITUDE, AMPLITUDE, (PIECES, 4096))
    nothing = [float(test_cost(None, pieces).mean()) for pieces in (published_disturbances(), others)]
    for name in arguments.recipes:
        for seed in arguments.seeds:
            folder = RUNS / "_".join([name, *arguments.set, f"s{seed}"])
            print(measure(name, arguments.set, seed, folder, others), flush=True)
            rows = [json.loads(path.read_text()) for path in sorted(RUNS.glob("youla_example_*/measured.json"))]
            text = "# The linear example by analytic policy gradients\n\nBy `python -m results.youla.example`, which "
            text += f"explains the columns; torch {torch.__version__}, one thread, beside other work. {NOTE}\n\n"
            text += table(rows, nothing) + "\n"
            (RESULTS / "apg.md").write_text(text)
            (RESULTS / "apg.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
