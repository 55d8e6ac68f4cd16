"""skrl's recurrent PPO, its policy a certified cell.

Shows: `SkrlCellPolicy` keeps skrl's contract for recurrent models; the agent's policy, with skrl's scaler in it,
is saved, certified and evaluated as any other.

    python examples/learn_with_skrl.py --steps 245760
"""

import argparse
import time

import gymnasium
import torch
from skrl.memories.torch import RandomMemory
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.trainers.torch import SequentialTrainer
from torch.optim.lr_scheduler import LinearLR

from robust_policies.envs.bridges import SkrlWrapper
from robust_policies.evaluation import run_episodes
from robust_policies.policies import deploy, load_policy, save_policy
from robust_policies.policies.bridges import SkrlCellPolicy, SkrlCellValue, SkrlPPO

TASK = "robust_policies/Pendulum-v0"
ROLLOUT, SEQUENCE, EPOCHS = 32, 32, 10


class Spread(SkrlWrapper):
    """Environments whose first episodes are cut short, each somewhere else: else all begin together for ever."""

    def reset(self):
        """Return the observations (n, nu) after a reset of all environments, and infos."""
        found = super().reset()
        self.base.elapsed = torch.randint(self.base.max_episode_steps, (self.num_envs,))
        return found


def main() -> None:
    """Train, save, and print the claim and the mean return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=245_760, help="environment steps of training, all together")
    parser.add_argument("--num-envs", type=int, default=128, help="environments that step together")
    parser.add_argument("--seed", type=int, default=0, help="of weights, environments and sampling")
    parser.add_argument("--output", default="results/learn_with_skrl", help="folder of the policy and skrl's files")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    env = Spread(gymnasium.make_vec(TASK, num_envs=given.num_envs), seed=given.seed)
    updates = max(1, given.steps // (given.num_envs * ROLLOUT))
    sizes = env.observation_space, env.action_space, env.num_envs, SEQUENCE
    cell = dict(state_size=8, features=16, hidden_sizes=(16, 16), gamma=6.0)
    models = {
        "policy": SkrlCellPolicy(*sizes, cell="r2dn", cell_kwargs=cell, action_scale=2.0, log_std=0.7),
        "value": SkrlCellValue(*sizes, cell="mlp", cell_kwargs=dict(hidden_sizes=(64, 64))),
    }
    agent = SkrlPPO(
        models=models,
        memory=RandomMemory(memory_size=ROLLOUT, num_envs=env.num_envs),
        observation_space=env.observation_space,
        action_space=env.action_space,
        cfg=dict(
            rollouts=ROLLOUT,
            learning_epochs=EPOCHS,
            mini_batches=4,
            discount_factor=0.9,
            learning_rate=3e-3,
            learning_rate_scheduler=LinearLR,
            learning_rate_scheduler_kwargs=dict(start_factor=1.0, end_factor=0.01, total_iters=updates * EPOCHS),
            value_loss_scale=0.5,
            value_clip=0.0,
            time_limit_bootstrap=True,
            observation_preprocessor=RunningStandardScaler,
            observation_preprocessor_kwargs=dict(size=env.observation_space),
            experiment=dict(directory=given.output, write_interval=0, checkpoint_interval=0),
        ),
    )
    began, timesteps = time.process_time(), updates * ROLLOUT
    options = dict(timesteps=timesteps, headless=True, disable_progressbar=True, close_environment_at_exit=False)
    SequentialTrainer(env=env, agents=agent, cfg=options).train()
    print(f"{timesteps * given.num_envs} steps in {time.process_time() - began:.0f} CPU s")
    folder = save_policy(deploy(agent, env), given.output, task=TASK).parent
    policy = load_policy(folder)
    print(policy.certificate().claim)
    found = run_episodes(policy, TASK, "gaussian", [0.0], episodes=64, seed=1000)
    print(f"return {found.returns.mean():.1f} over 64 episodes without exploration, policy in {folder}")


if __name__ == "__main__":
    main()
