"""A Gymnasium environment of your own, RecurrentPPO, and a policy whose gain is proven.

Shows: nothing of the environment has to know this package; `RecurrentCellPolicy` takes the place of sb3-contrib's
"MlpLstmPolicy", and the trained policy says what is proven of it.

    python examples/own_environment.py --steps 40000
"""

import argparse

import gymnasium
import numpy as np
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.evaluation import evaluate_policy

from robust_policies.policies import RecurrentCellPolicy, save_policy


class Cart(gymnasium.Env):
    """A cart on a rail is brought to the middle by a bounded force; its position is measured, its speed is not."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        """Return the measured position [m] of a cart at rest, within a metre of the middle."""
        super().reset(seed=seed)
        self.position, self.speed, self.time = self.np_random.uniform(-1.0, 1.0), 0.0, 0
        return np.array([self.position], np.float32), {}

    def step(self, action):
        """Return what follows 0.1 s of a force [N] on a cart of 1 kg."""
        force = float(np.clip(action[0], -1.0, 1.0))
        self.speed += 0.1 * (force - 0.1 * self.speed)
        self.position += 0.1 * self.speed
        self.time += 1
        reward = -(self.position**2) - 0.01 * force**2
        return np.array([self.position], np.float32), reward, False, self.time >= 100, {}


def main() -> None:
    """Train, and print the claim and the mean return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40_000, help="environment steps of training")
    parser.add_argument("--output", default="results/own_environment", help="folder of the policy")
    given = parser.parse_args()
    cell = dict(state_size=8, features=16, hidden_sizes=(16,), gamma=5.0)
    options = dict(cell="r2dn", cell_kwargs=cell, critic="own")
    model = RecurrentPPO(
        RecurrentCellPolicy, Cart(), n_steps=200, batch_size=100, learning_rate=1e-3, policy_kwargs=options, seed=0
    )
    model.learn(given.steps)
    print(model.policy.certificate().claim)
    mean, deviation = evaluate_policy(model, Cart(), n_eval_episodes=10)
    print(f"return {mean:.1f} +- {deviation:.1f} over 10 episodes, policy in {save_policy(model, given.output).parent}")


if __name__ == "__main__":
    main()
