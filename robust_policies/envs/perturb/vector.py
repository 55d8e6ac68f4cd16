"""The perturbations as wrappers of a vector environment: one class for each specification, of its name."""

from robust_policies.envs.perturb.vector_wrapper import Wrapper
from robust_policies.envs.perturb.wrapping import made

WRAPPERS: dict[str, type[Wrapper]] = made(Wrapper, __name__)
"""The wrappers by name."""
globals().update(WRAPPERS)
