"""Small cells of every kind, for the tests of the policies."""

import gymnasium
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env

from robust_policies.policies import RecurrentCellPolicy

SMALL = {
    "r2dn": {"state_size": 4, "features": 5, "hidden_sizes": (6,), "gamma": 5.0},
    "ren": {"state_size": 4, "features": 5, "gamma": 5.0},
    "nemon": {"state_size": 4, "features": 5, "gamma": 5.0},
    "lipschitz_rnn": {"state_size": 4},
    "l2ru": {"state_size": 4, "features": 5, "gamma": 5.0},
    "convex": {"state_size": 4, "gamma": 5.0},
    "lstm": {"state_size": 6},
    "gru": {"state_size": 3},
    "mlp": {"hidden_sizes": (8,)},
    "lbdn": {"hidden_sizes": (8,), "gamma": 3.0},
}


class ShortEpisodes(gymnasium.Env):
    """Episodes of 5, 6, 7, ... steps of a random walk, so that resets fall everywhere in a rollout."""

    def __init__(self, action_space=None):
        self.observation_space = gymnasium.spaces.Box(-10.0, 10.0, (3,))
        self.action_space = action_space or gymnasium.spaces.Box(-1.0, 1.0, (2,))
        self.length = 4

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length += 1
        self.left = self.length
        return self._observe(), {}

    def step(self, action):
        self.left -= 1
        ended = self.left == 0
        return self._observe(), float(self.np_random.normal()), ended and self.length % 2 == 0, ended, {}

    def _observe(self):
        return self.np_random.normal(size=3).astype("float32")


def short_model(cell="r2dn", env=None, n_envs=3, policy=RecurrentCellPolicy, **options):
    """Return a RecurrentPPO on short random episodes, its policy of the given cell."""
    env = env or make_vec_env(ShortEpisodes, n_envs, seed=0)
    settings = {"n_steps": 24, "batch_size": 24, "n_epochs": 2, "seed": 0, "device": "cpu"}
    settings |= options.pop("settings", {})
    policy_kwargs = {"cell": cell, "cell_kwargs": SMALL[cell], "net_arch": {"vf": [8]}, **options}
    return RecurrentPPO(policy, env, policy_kwargs=policy_kwargs, **settings)


def randomize(policy, scale=0.5, seed=0):
    """Shift every parameter of the policy a little, so that nothing is zero by initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return policy
