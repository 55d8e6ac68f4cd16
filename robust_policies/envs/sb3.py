"""The bridge to Stable-Baselines3 by its earlier name; it stands in `robust_policies.envs.bridges`."""

from robust_policies.envs.bridges.sb3 import SB3VecEnv, make_sb3_vec_env

__all__ = ["SB3VecEnv", "make_sb3_vec_env"]
