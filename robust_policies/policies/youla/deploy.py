"""From a model trained in a Youla wrapper, or without one, to a deployed policy."""

from __future__ import annotations

from typing import Any

from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.sb3.deploy import deploy
from robust_policies.policies.youla.policy import YoulaPolicy
from robust_policies.policies.youla.wrapper import worn


def deploy_trained(model: Any) -> DeployedPolicy:
    """Return a deployed copy of a model's policy: a YoulaPolicy if the environment wears a Youla wrapper.

    Raises as `deploy`.
    """
    env = model.get_env()
    return deploy(model) if worn(env) is None else YoulaPolicy.of(env, model)
