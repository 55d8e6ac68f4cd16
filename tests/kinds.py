"""One environment of each kind of plant, and those that run the same code with other numbers."""

import pytest

KINDS = (
    "Pendulum",
    "CartPole",
    "CartPoleContinuous",
    "QubeServo",
    "MagLev",
    "QuadrotorPlanar",
    "Quadrotor",
    "Linear",
    "YoulaExample",
    "Hopper",
)
"""Two of the cart-pole, whose actions may be choices or forces."""


def of_each_kind(env_ids):
    """Return ids for `parametrize`, all but one of each kind marked for the soak."""
    every_time = {f"robust_policies/{name}-v0" for name in KINDS}
    return [one if one in every_time else pytest.param(one, marks=pytest.mark.soak) for one in env_ids]
