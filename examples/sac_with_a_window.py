"""SAC on an environment of your own, through a window of past observations.

Shows: SAC keeps no state, so `HistoryWrapper` hands it a window of observations, over which `WindowedExtractor` runs
the cell. The perceptron of SAC reads the cell's output; `certify_model` proves the gain of all of it.

    python examples/sac_with_a_window.py --steps 10000
"""

import argparse

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy

from robust_policies.policies import HistoryWrapper, WindowedExtractor, certify_model


class Tank(gymnasium.Env):
    """A tank that drains through a hole is kept at a level of one metre by a pump that acts three steps late."""

    observation_space = spaces.Box(0.0, np.inf, (1,), np.float32)
    action_space = spaces.Box(0.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        """Return the level [m] of a tank that is filled to anything up to two metres."""
        super().reset(seed=seed)
        self.level, self.underway, self.time = self.np_random.uniform(0.0, 2.0), [0.0] * 3, 0
        return np.array([self.level], np.float32), {}

    def step(self, action):
        """Return what follows half a second of flow [m^3/s] into two square metres."""
        self.underway.append(float(np.clip(action[0], 0.0, 1.0)))
        self.level = max(0.0, self.level + 0.25 * (self.underway.pop(0) - 0.3 * self.level**0.5))
        self.time += 1
        return np.array([self.level], np.float32), -((self.level - 1.0) ** 2), False, self.time >= 50, {}


def main() -> None:
    """Train, and print the claim and the mean return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps of training")
    given = parser.parse_args()
    env = HistoryWrapper(Tank(), window=8)  # VecHistory(venv, window) does the same for a VecEnv
    cell = dict(state_size=4, features=8, hidden_sizes=(8,), gamma=2.0, rate=0.8)
    extractor = dict(cell="r2dn", cell_kwargs=cell, features_dim=8)
    options = dict(net_arch=[16], features_extractor_class=WindowedExtractor, features_extractor_kwargs=extractor)
    model = SAC("MlpPolicy", env, batch_size=64, policy_kwargs=options, seed=0)
    model.learn(given.steps)
    print(certify_model(model).claim)
    mean, deviation = evaluate_policy(model, env, n_eval_episodes=10, warn=False)
    print(f"return {mean:.1f} +- {deviation:.1f} over 10 episodes")


if __name__ == "__main__":
    main()
