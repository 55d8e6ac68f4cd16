"""Trained policies where they act: NumPy and safetensors alone, no PyTorch.

    from robust_policies.runtime import load
    policy = load("results/demo")
    action, state = policy.predict(observation, state, episode_start)

The numbers are those of `robust_policies.policies.load_policy` up to the rounding of its number type.
"""

from robust_policies.runtime.cells import RunningCell, register_step
from robust_policies.runtime.load import load
from robust_policies.runtime.policy import RuntimePolicy

__all__ = ["RunningCell", "RuntimePolicy", "load", "register_step"]
