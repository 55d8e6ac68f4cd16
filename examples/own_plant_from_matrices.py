"""A plant of your own from its matrices: a task's folder, a policy trained on it, and a closed loop that is proven.

Shows: a `task.yaml` with A, B and C is an environment; a linear plant is differentiable, so analytic policy
gradients train on it; plant and policy together are one inequality.

    python examples/own_plant_from_matrices.py --steps 200000
"""

import argparse
from pathlib import Path

from robust_policies.control import linearize_plant, lqg
from robust_policies.envs import load_plant
from robust_policies.evaluation import run_episodes
from robust_policies.policies import closed_loop_bound, load_policy
from robust_policies.train import parse_recipe, train

TASK = """\
schema: 1
plant: linear
description: A heated room, the temperature of its air measured.
time_step: 60.0                      # s
max_episode_steps: 60
parameters:                          # x+ = A x + B u, y = C x: degrees of the air and of the walls
  A: [[0.80, 0.15], [0.03, 0.96]]
  B: [[0.50], [0.0]]
  C: [[1.0, 0.0]]
limits: {action: [1.0]}              # kW, clipped here
cost: {Q: [[1.0, 0.0], [0.0, 0.1]], R: [[0.1]]}
noise: {process: [0.02, 0.0], measurement: [0.05]}
reset: {distribution: uniform, mean: [0.0, 0.0], spread: [2.0, 2.0]}
"""


def main() -> None:
    """Train, and print what is proven of the policy and of the loop, and the mean return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps of training")
    parser.add_argument("--output", type=Path, default=Path("results/own_plant"), help="folder of task and run")
    given = parser.parse_args()
    task = given.output / "task"
    task.mkdir(parents=True, exist_ok=True)
    (task / "task.yaml").write_text(TASK)

    model = linearize_plant(load_plant(task))
    print(lqg.design(model))  # what an engineer would compare with
    recipe = {
        "task": {"id": "robust_policies/Linear-v0", "num_envs": 64, "kwargs": {"task": str(task)}},
        "policy": {"cell": "r2dn", "state_size": 4, "features": 8, "hidden_sizes": [8], "gamma": 3.0},
        "algorithm": {"name": "apg", "total_steps": given.steps, "horizon": 20, "learning_rate": "lin_5e-3"},
    }
    result = train(parse_recipe(recipe, "this script"), given.output / "run")
    policy = load_policy(result.folder)
    print(policy.certificate().claim)
    print(closed_loop_bound(policy, model).claim(model))
    env = {"env_kwargs": {"task": str(task)}}
    found = run_episodes(policy, "robust_policies/Linear-v0", "uniform", [0.0], episodes=20, seed=1, **env)
    print(f"return {found.returns.mean():.2f}")


if __name__ == "__main__":
    main()
