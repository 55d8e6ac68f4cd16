"""A sweep over gains and seeds, and its table read back: what does a smaller proven gain cost?

Shows: the command `robust-policies sweep` runs trials side by side, one process each, and can be stopped and resumed;
`settings.csv` has a line a setting, for your own figures.

    python examples/sweep_gains.py --steps 250000 --gammas 3,6,12 --seeds 0-4
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run the sweep, and print the mean return and the proven gain of each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250_000, help="environment steps of each training")
    parser.add_argument("--gammas", default="3,6,12", help="gains of the cell")
    parser.add_argument("--seeds", default="0-4", help="training seeds")
    parser.add_argument("--output", type=Path, default=Path("results/gains"), help="sweep folder")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other keys of the recipe")
    given = parser.parse_args()
    command = [sys.executable, "-m", "robust_policies", "sweep", "pendulum_r2dn_gamma6", "-o", str(given.output)]
    command += ["--seeds", given.seeds, "--resume", "--no-evaluate"]
    command += ["--set", f"policy.gamma={given.gammas}", f"algorithm.total_steps={given.steps}", *given.set]
    subprocess.run(command, check=True)
    with (given.output / "settings.csv").open() as file:
        for row in csv.DictReader(file):
            print(f"gamma {row['policy.gamma']}: best return {float(row['best_mean']):.0f}, {row['done']} seed(s)")


if __name__ == "__main__":
    main()
