"""rsl_rl's runner, its actor a certified cell: two lines of the configuration.

Shows: what Isaac Lab and mjlab train with takes a cell by the name of its class; our environments run in it without a
copy; the runner's policy, with rsl_rl's normaliser in it, is saved, certified and evaluated as any other.

    python examples/learn_with_rsl_rl.py --steps 245760
"""

import argparse
import time

import gymnasium
import torch
from rsl_rl.runners import OnPolicyRunner

from robust_policies.envs.bridges import RslRlVecEnv
from robust_policies.evaluation import run_episodes
from robust_policies.policies import load_policy, save_policy

TASK = "robust_policies/Pendulum-v0"
SETTINGS = {
    "num_steps_per_env": 64,
    "save_interval": 1000,
    "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
    "actor": {
        "class_name": "robust_policies.policies.bridges:RslRlCellModel",
        "cell_kwargs": {"state_size": 8, "features": 16, "hidden_sizes": (16, 16), "gamma": 6.0},
        "action_scale": 2.0,  # N m, the torque limit: the cell's output is the torque in units of it
        "obs_normalization": True,
        "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 2.0},
    },
    "critic": {"class_name": "MLPModel", "hidden_dims": [64, 64], "activation": "tanh", "obs_normalization": True},
    "algorithm": {
        "class_name": "PPO",
        "num_learning_epochs": 10,
        "num_mini_batches": 4,
        "gamma": 0.9,
        "entropy_coef": 0.0,
        "value_loss_coef": 0.5,
        "use_clipped_value_loss": False,
    },
}


def main() -> None:
    """Train, save, and print the claim and the mean return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=245_760, help="environment steps of training, all together")
    parser.add_argument("--num-envs", type=int, default=128, help="environments that step together")
    parser.add_argument("--seed", type=int, default=0, help="of weights, environments and sampling")
    parser.add_argument("--output", default="results/learn_with_rsl_rl", help="folder of the policy")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    env = RslRlVecEnv(gymnasium.make_vec(TASK, num_envs=given.num_envs), seed=given.seed)
    runner = OnPolicyRunner(env, SETTINGS, log_dir=None, device="cpu")
    began = time.process_time()
    iterations = max(1, given.steps // (given.num_envs * SETTINGS["num_steps_per_env"]))
    runner.learn(iterations, init_at_random_ep_len=True)
    print(f"{iterations} iterations in {time.process_time() - began:.0f} CPU s")
    folder = save_policy(runner, given.output, task=TASK).parent
    policy = load_policy(folder)
    print(policy.certificate().claim)
    found = run_episodes(policy, TASK, "gaussian", [0.0], episodes=64, seed=1000)
    print(f"return {found.returns.mean():.1f} over 64 episodes without exploration, policy in {folder}")


if __name__ == "__main__":
    main()
