"""Recurrent PPO in one file, its actor an R2DN: every line of the algorithm to read and to change.

Shows: no training library is needed. The cell is stepped in the rollout with its arrays computed once, and run over
whole sequences in the update; whatever the optimizer does to it, the gain stays below `gamma`. The policy is saved as
any other, loaded, and certified.

    python examples/ppo_in_one_file.py
    tensorboard --logdir results/ppo_in_one_file
"""

import argparse
import time
from dataclasses import dataclass, fields
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import robust_policies.envs  # noqa: F401 (the environments' ids)
from robust_policies.networks import R2DN, Lipschitz
from robust_policies.policies import load_policy, policy_from_cell, save_policy


@dataclass
class Settings:
    """All of them; each is an option of the command of the same name."""

    env_id: str = "robust_policies/Pendulum-v0"
    """one of ours, whose actions are a Box"""
    output: str = "results/ppo_in_one_file"
    """folder of the policy, its certificate and TensorBoard's file"""
    seed: int = 0
    """of weights, environments and sampling"""
    steps: int = 245_760
    """environment steps, all environments together"""
    num_envs: int = 128
    """environments that step together"""
    rollout: int = 32
    """steps of each environment between two updates, and the length of a training sequence"""
    epochs: int = 10
    """passes over a rollout"""
    minibatches: int = 4
    """parts of a rollout, by environments"""
    learning_rate: float = 3e-3
    """of Adam at first; it falls to zero in a straight line"""
    discount: float = 0.9
    """of a reward one step later"""
    gae_lambda: float = 0.95
    """of the advantage estimate"""
    clip: float = 0.2
    """how far a probability ratio counts"""
    value_weight: float = 0.5
    """of the critic's loss"""
    max_grad_norm: float = 0.5
    """of the gradients"""
    gamma: float = 6.0
    """bound of the cell's gain, from observation to action in units of the actuator's limit"""
    state_size: int = 8
    """of the cell"""
    hidden: int = 16
    """width of its features and of its two hidden layers"""


class Agent(nn.Module):
    """An R2DN that gives the mean action, a free deviation, and a critic without memory."""

    def __init__(self, env: gymnasium.vector.VectorEnv, given: Settings) -> None:
        super().__init__()
        inputs, outputs = env.single_observation_space.shape[0], env.single_action_space.shape[0]
        hidden, guarantee = given.hidden, Lipschitz(given.gamma)
        self.cell = R2DN(inputs, given.state_size, outputs, hidden, (hidden, hidden), guarantee=guarantee)
        self.cell.zero_output_()
        self.register_buffer("scale", torch.as_tensor(env.single_action_space.high))
        self.log_std = nn.Parameter(self.scale.log())
        self.critic = nn.Sequential(
            nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1), nn.Flatten(-2)
        )

    def distribution(self, outputs: torch.Tensor) -> torch.distributions.Independent:
        """Return that of the actions, for the cell's outputs."""
        normal = torch.distributions.Normal(outputs * self.scale, self.log_std.exp())
        return torch.distributions.Independent(normal, 1)


@dataclass
class Rollout:
    """What was seen and done, (time, env) and (time, env, n), and the cell's state (env, nx) before it."""

    state: torch.Tensor
    starts: torch.Tensor
    observations: torch.Tensor
    actions: torch.Tensor
    log_probs: torch.Tensor
    advantages: torch.Tensor
    values: torch.Tensor


class Collector:
    """Environments between two rollouts."""

    def __init__(self, env: gymnasium.vector.VectorEnv, given: Settings) -> None:
        self.env, self.given, count = env, given, given.num_envs
        self.observation, _ = env.reset(seed=given.seed)
        # The first episodes are cut short, each somewhere else, so that not all begin together for ever.
        env.unwrapped.elapsed = torch.randint(env.unwrapped.max_episode_steps, (count,))
        self.start = torch.ones(count, dtype=torch.bool)
        self.state = torch.zeros(count, given.state_size)
        self.totals, self.ended = torch.zeros(count), []

    @torch.no_grad()
    def collect(self, agent: Agent) -> Rollout:
        """Return the next rollout; `ended` has the returns of the episodes that ended in it."""
        arrays, first, rows, rewards, self.ended = agent.cell.explicit(), self.state, [], [], []
        for _ in range(self.given.rollout):
            state = self.state.masked_fill(self.start.unsqueeze(-1), 0.0)
            outputs, following = agent.cell.step(arrays, self.observation, state)
            distribution = agent.distribution(outputs)
            action = distribution.sample()
            value, log_prob = agent.critic(self.observation), distribution.log_prob(action)
            rows.append((self.start, self.observation, action, log_prob, value))
            self.observation, reward, terminated, truncated, info = self.env.step(action)
            self.totals += reward
            self.state, self.start, beyond = following, terminated | truncated, agent.critic(self.observation)
            if self.start.any():
                # The observation is the next episode's; what a time limit cut off goes on from the last one.
                beyond = torch.where(self.start, agent.critic(info["final_obs"]), beyond)
                self.ended += self.totals[self.start].tolist()
                self.totals[self.start] = 0.0
            rewards.append((reward + self.given.discount * beyond.masked_fill(terminated, 0.0), self.start))
        starts, observations, actions, log_probs, values = (torch.stack(column) for column in zip(*rows, strict=True))
        advantages, advantage = torch.empty_like(values), torch.zeros(self.given.num_envs)
        for t in reversed(range(self.given.rollout)):
            target, end = rewards[t]
            advantage = advantage.masked_fill(end, 0.0) * self.given.discount * self.given.gae_lambda
            advantage = advantages[t] = target - values[t] + advantage
        return Rollout(first, starts, observations, actions, log_probs, advantages, values)


def update(agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, given: Settings) -> dict[str, float]:
    """Do PPO's epochs on a rollout, and return the last losses."""
    normal = (rollout.advantages - rollout.advantages.mean()) / (rollout.advantages.std() + 1e-8)
    targets = rollout.advantages + rollout.values
    losses = {}
    for _ in range(given.epochs):
        for rows in torch.randperm(given.num_envs).chunk(given.minibatches):
            observations = rollout.observations[:, rows]
            outputs, _ = agent.cell(observations, rollout.state[rows], rollout.starts[:, rows])
            log_probs = agent.distribution(outputs).log_prob(rollout.actions[:, rows])
            ratio = (log_probs - rollout.log_probs[:, rows]).exp()
            part = normal[:, rows]
            policy_loss = -torch.minimum(part * ratio, part * ratio.clamp(1 - given.clip, 1 + given.clip)).mean()
            value_loss = (agent.critic(observations) - targets[:, rows]).square().mean()
            optimizer.zero_grad()
            (policy_loss + given.value_weight * value_loss).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), given.max_grad_norm)
            optimizer.step()
            clipped = ((ratio - 1).abs() > given.clip).float().mean()
            losses = {"policy": policy_loss.item(), "value": value_loss.item(), "clipped": clipped.item()}
    return losses


def evaluate(folder: Path, given: Settings) -> float:
    """Return the mean return of the saved policy without exploration, over one episode of each environment."""
    policy, env = load_policy(folder), gymnasium.make_vec(given.env_id, num_envs=given.num_envs)
    observation, _ = env.reset(seed=given.seed + 1)
    total, running, state = np.zeros(given.num_envs), np.ones(given.num_envs, bool), None
    while running.any():
        action, state = policy.predict(observation.numpy(), state)
        observation, reward, terminated, truncated, _ = env.step(torch.from_numpy(action))
        total += reward.numpy() * running
        running &= ~(terminated | truncated).numpy()
    return float(total.mean())


def main() -> None:
    """Train, save and certify, and print what is proven and the mean return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in fields(Settings):
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=type(option.default), default=option.default)
    given = Settings(**vars(parser.parse_args()))
    torch.manual_seed(given.seed)
    env = gymnasium.make_vec(given.env_id, num_envs=given.num_envs)
    agent, collector, began = Agent(env, given), Collector(env, given), time.process_time()
    optimizer = torch.optim.Adam(agent.parameters(), lr=given.learning_rate)
    writer, count = SummaryWriter(given.output), given.num_envs * given.rollout
    updates = max(1, given.steps // count)
    for k in range(updates):
        optimizer.param_groups[0]["lr"] = given.learning_rate * (1 - k / updates)
        rollout = collector.collect(agent)
        losses = update(agent, optimizer, rollout, given)
        for name, value in losses.items():
            writer.add_scalar(f"losses/{name}", value, (k + 1) * count)
        if collector.ended:
            writer.add_scalar("charts/episodic_return", np.mean(collector.ended), (k + 1) * count)
    writer.close()
    spaces = env.single_observation_space, env.single_action_space
    policy = policy_from_cell(agent.cell, *spaces, action_scale=agent.scale, log_std=agent.log_std, raw=True)
    folder = save_policy(policy, given.output, task=given.env_id).parent
    certificate = load_policy(folder).certificate()
    certificate.to_json(folder / "certificate.json")
    print(certificate.claim)
    print(f"{updates * count} steps in {time.process_time() - began:.0f} CPU s, policy in {folder}")
    print(f"return {evaluate(folder, given):.1f} over {given.num_envs} episodes without exploration")


if __name__ == "__main__":
    main()
