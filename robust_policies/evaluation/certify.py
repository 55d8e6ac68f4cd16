"""The certificate of a run folder: certificate.json, and the witness of the largest gain found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from robust_policies.certificates import Certificate, empirical_gain, secant_gain
from robust_policies.certificates.certificate import array_hashes, claim, versions
from robust_policies.errors import NotCertifiableError
from robust_policies.policies import load_policy


def certify_run(folder: str | Path, *, steps: int = 50, seed: int = 0) -> Certificate:
    """Return the certificate of the policy in a run folder, also written to certificate.json with witness.npz.

    The gain search runs whether or not something is proven, and its witness is evaluated again before it counts.
    """
    folder = Path(folder)
    policy = load_policy(folder)
    try:
        certificate = policy.certificate()
    except NotCertifiableError as error:
        reason = str(error).rstrip(".")
        certificate = Certificate(
            "NOT_CERTIFIED", claim("NOT_CERTIFIED", None, None, None, reason), reason=reason, versions=versions(),
            arrays_sha256=array_hashes(policy.actor.state_dict()),
        )  # fmt: skip
    scale = policy.actor.body.scaling.scale
    found = empirical_gain(policy.actor, steps, seed, input_scale=None if scale is None else scale.double().numpy())
    found = replace(found, gain=secant_gain(policy.actor, found.inputs_a, found.inputs_b))
    found.save(folder / "witness.npz")
    certificate = certificate.with_search(found.gain, "witness.npz")
    certificate.to_json(folder / "certificate.json")
    return certificate
