"""The gain of a policy from raw observation to raw mean action, factor by factor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces

from robust_policies.certificates import Certificate, Factor, compose, verify
from robust_policies.certificates.lmi import spectral_bound
from robust_policies.errors import NotCertifiableError
from robust_policies.policies.actor import Actor
from robust_policies.policies.deployed import DeployedPolicy

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from robust_policies.policies.recurrent import RecurrentCellPolicy

_UP = 1 + 2e-15


def certify_policy(policy: RecurrentCellPolicy, env: VecEnv | None = None) -> Certificate:
    """Return the certificate of a policy inside Stable-Baselines3 that acts in `env`; raises NotCertifiableError."""
    from robust_policies.errors import InvalidValueError
    from robust_policies.policies.export import deploy, observation_normalizer

    wrapper = observation_normalizer(env)
    if wrapper is not None and wrapper.training:
        raise NotCertifiableError(
            "The environment's VecNormalize still updates its statistics, so the gain from raw observations changes "
            "with every step; set env.training = False first."
        )
    try:
        return certify_deployed(deploy(policy, env))
    except InvalidValueError as error:
        raise NotCertifiableError(f"No gain from raw observation to raw action can be stated: {error}") from error


def certify_deployed(policy: DeployedPolicy) -> Certificate:
    """Return the certificate of a deployed policy; raises NotCertifiableError."""
    cell = policy.cell
    if policy.state_dependent_noise:
        raise NotCertifiableError(
            "The policy explores with state-dependent noise (gSDE), which is a function of the observation with a gain "
            "of its own; train with use_sde=False."
        )
    if not isinstance(policy.action_space, spaces.Box):
        raise NotCertifiableError(
            f"The action space {policy.action_space} is discrete: the action jumps where two logits cross, so no "
            "gain bounds it; use a Box action space."
        )
    if cell.guarantee is None:
        raise NotCertifiableError(
            f"{type(cell).__name__} has no gain by construction; use the cell 'r2dn', 'ren' or 'lbdn' with gamma=..."
        )
    before, after = factors(policy.actor)
    return compose(verify(cell), before=before, after=after, arrays=running_arrays(policy.actor), cell_note=cell.name)


def factors(actor: Actor) -> tuple[list[Factor], list[Factor]]:
    """Return the factors before and after the cell, in the order the signal passes them."""
    before, after = [], []
    if actor.normalizer is not None:
        gain = float((1 / actor.normalizer.std.double()).max()) * _UP
        before.append(Factor("observation normalization", gain, "frozen VecNormalize: 1 / smallest deviation"))
        before.append(Factor("observation clip", 1.0, "clipping is 1-Lipschitz"))
    scale = actor.body.scaling.scale
    gain = 1.0 if scale is None else float((1 / scale.double()).max()) * _UP
    before.append(Factor("observation scale", gain, "1 / smallest observation_scale"))
    head = actor.head
    if head.linear is not None:
        weight = head.linear.weight.detach().cpu().numpy().astype(np.float64)
        after.append(Factor("head", spectral_bound(weight), "spectral norm of the linear head"))
    else:
        after.append(Factor("head", 1.0, "none: the cell's output is the mean action"))
    if head.squash:
        after.append(Factor("squash", 1.0, "tanh is 1-Lipschitz"))
    gain = 1.0 if head.scale is None else float(head.scale.double().abs().max())
    after.append(Factor("action scale", gain, "largest action_scale"))
    after.append(Factor("action clip", 1.0, "clipping to the action space is 1-Lipschitz"))
    return before, after


def running_arrays(actor: Actor) -> dict[str, Any]:
    """Return the arrays that run: the cell's explicit ones and those of the scalings and the head, by name."""
    with torch.no_grad():
        arrays = dict(_flat("cell", actor.cell.explicit()))
    return arrays | {k: v for k, v in actor.state_dict().items() if not k.startswith("body.cell.")}


def _flat(name: str, value: Any) -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    if hasattr(value, "_asdict"):
        parts = value._asdict().items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        return []
    return [pair for key, part in parts for pair in _flat(f"{name}.{key}", part)]
