"""A policy that learns beside an LQG controller, and cannot make the loop unstable.

Shows: `YoulaWrapper` designs an observer and a state feedback for the task's linear model and lets the policy read what
the observer did not foresee; `YoulaPolicy` is both in one, and runs in the environment without a wrapper. `region` (m,
m/s, rad, rad/s) is where the certificate judges the plant itself.

    python examples/youla_around_lqg.py --steps 50000
"""

import argparse

import gymnasium
import numpy as np
from sb3_contrib import RecurrentPPO

from robust_policies.evaluation import run_episodes
from robust_policies.policies import RecurrentCellPolicy, YoulaPolicy, YoulaWrapper, load_policy, save_policy

TASK = "robust_policies/CartPoleContinuous-v0"


def main() -> None:
    """Train, and print the design, the claim of the closed loop and the returns with and without the policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50_000, help="environment steps of training")
    parser.add_argument("--output", default="results/youla_around_lqg", help="folder of the policy")
    given = parser.parse_args()
    env = YoulaWrapper(gymnasium.make(TASK), weights={"V": 0.01 * np.eye(4)}, region=[2.4, 1.0, 0.1, 1.0])
    cell = dict(state_size=8, features=16, hidden_sizes=(16,), gamma=0.5)
    options = dict(cell="r2dn", cell_kwargs=cell, critic="mlp")  # the first policy adds nothing: LQG alone
    model = RecurrentPPO(RecurrentCellPolicy, env, n_steps=256, batch_size=128, policy_kwargs=options, seed=0)
    print(env.controller.design)
    print(f"return of the LQG controller alone {mean_return(YoulaPolicy.of(env, model)):.1f}")

    model.learn(given.steps)
    save_policy(YoulaPolicy.of(env, model), given.output)
    policy = load_policy(given.output)
    print(policy.certificate().claim)
    print(f"return with what was learned {mean_return(policy):.1f}")


def mean_return(policy: YoulaPolicy) -> float:
    """Return the mean return of ten episodes in the task itself, which knows nothing of the observer."""
    return float(run_episodes(policy, TASK, "uniform", [0.0], episodes=10, seed=1).returns.mean())


if __name__ == "__main__":
    main()
