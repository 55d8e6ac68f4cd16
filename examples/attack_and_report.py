"""Train two policies, attack what they observe, and write a report that sets the proven beside the found.

Shows: an attack from Python at sizes of your own, a suite of your own in a few lines of YAML, the report as one HTML
file. Any run folder of `robust-policies train` does in place of the two that are trained here.

    python examples/attack_and_report.py --steps 250000 --episodes 50
"""

import argparse
from pathlib import Path

from robust_policies.evaluation import certify_run, evaluate_run, run_episodes, write_report
from robust_policies.policies import load_policy
from robust_policies.train import load_recipe, train

TASK = "robust_policies/Pendulum-v0"
SUITE = """\
schema: 1
description: noise, two attacks and delays
tuning: {episodes: 4, seeds: [1000]}   # episodes that are not reported
seeds: [0]
sizes: [0, 0.1, 0.2]                   # in the observation's own units
noise: [gaussian]
attacks:
  - {name: mad_pgd, steps: 3}
  - {name: sequence_pgd, steps: 4}
faults:
  - {perturbation: ObservationDelay, parameter: steps, values: [0, 1, 2]}
"""


def main() -> None:
    """Train, attack, certify, evaluate and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250_000, help="environment steps of training")
    parser.add_argument("--episodes", type=int, default=50, help="episodes for each size")
    parser.add_argument("--output", type=Path, default=Path("results/attacked"), help="folder of runs and report")
    parser.add_argument("--suite", help="name or file of a suite in place of the one here")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other keys of the recipes")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    own = given.output / "suite.yaml"
    own.write_text(SUITE)
    suite = given.suite or str(own)
    folders = []
    for recipe in ("pendulum_r2dn_gamma6", "pendulum_mlp"):
        folder = given.output / recipe
        train(load_recipe(recipe, [f"algorithm.total_steps={given.steps}", *given.set]), folder)
        policy = load_policy(folder)
        found = run_episodes(
            policy, TASK, "mad_pgd", [0.0, 0.1, 0.2], episodes=given.episodes, seed=7, options={"steps": 3}
        )
        print(recipe, "return against the attack's size:", found.returns.mean(axis=1).round(1))
        print(certify_run(folder).claim)
        evaluate_run(folder, tasks=[TASK], suite=suite, episodes=given.episodes)
        folders.append(folder)
    print("report:", write_report(folders, given.output / "report.html"))


if __name__ == "__main__":
    main()
