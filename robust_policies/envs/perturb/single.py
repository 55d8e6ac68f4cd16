"""The perturbations as wrappers of one Gymnasium environment: one class for each specification, of its name."""

from robust_policies.envs.perturb.wrapper import Wrapper
from robust_policies.envs.perturb.wrapping import made

WRAPPERS: dict[str, type[Wrapper]] = made(Wrapper, __name__)
"""The wrappers by name."""
globals().update(WRAPPERS)
