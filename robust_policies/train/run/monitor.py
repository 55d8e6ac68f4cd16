"""What is proven of the policy while it trains, and what a short search finds."""

from __future__ import annotations

from robust_policies.certificates import empirical_gain
from robust_policies.errors import NotCertifiableError
from robust_policies.policies.deployed import DeployedPolicy


def certified(policy: DeployedPolicy) -> dict[str, float]:
    """Return the scalars `certificate/*` of a deployed copy of a policy, from what the copy reads to raw mean action.

    A normalizer that still learns is in the copy as it is at this moment, and so is part of the gain.
    gamma: the proven gain. margin: how far its matrix inequality is from being violated. found_gain: the largest gain
    that a short search finds, which costs about as much as some hundred steps of the policy; a policy without a
    provable gain has this alone. Of choices the gains are those to the logits.
    """
    found: dict[str, float | None] = {}
    try:
        certificate = policy.certificate()
        found = {"gamma": certificate.gamma_raw, "margin": certificate.margin}
    except NotCertifiableError:
        pass
    found["found_gain"] = empirical_gain(policy, 20, batch=8, power_iterations=5, adam_iterations=10).gain
    return {f"certificate/{name}": value for name, value in found.items() if value is not None}
