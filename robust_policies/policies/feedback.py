"""What is proven of a policy in feedback with the linear model of its plant."""

from __future__ import annotations

import numpy as np

from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.multipliers import Multiplier
from robust_policies.certificates.verify import running_model
from robust_policies.control.feedback import FeedbackBound, feedback_bound, policy_in_units
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.youla import Performance
from robust_policies.errors import NotCertifiableError, ShapeError
from robust_policies.policies.actor import Actor
from robust_policies.policies.certify import scales_of
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.youla.policy import YoulaPolicy


def closed_loop_bound(
    policy: DeployedPolicy, model: LinearModel, performance: Performance | None = None
) -> FeedbackBound:
    """Return what is proven of the mean action u = policy(y) in feedback with `model`.

    Args:
        policy: reads the model's outputs, in the plant's units and order, and gives its inputs.
        model: the plant, or its linear model.
        performance: d and z of the gain; None: in the weights a design of the model would have.

    Raises:
        ShapeError: the policy does not fit the model. InvalidValueError: D is not zero.
    """
    sizes = policy.cell.input_size, policy.cell.output_size
    if policy.actor.head.linear is not None:
        sizes = sizes[0], policy.actor.head.linear.out_features
    if sizes != (model.p, model.m):
        raise ShapeError(
            f"The policy reads {sizes[0]} number(s) and gives {sizes[1]}; the model has {model.p} output(s) and "
            f"{model.m} input(s)."
        )
    gain, matrices, family, theta, reason = None, None, None, None, ""
    try:
        gain = policy.certificate().gamma_raw
    except NotCertifiableError as error:
        reason = str(error).rstrip(".")
    try:
        matrices, family, theta = _matrices(policy)
    except NotCertifiableError as error:
        reason = str(error).rstrip(".")
    return feedback_bound(model, matrices, family, theta, gain=gain, performance=performance, reason=reason)


def _matrices(policy: DeployedPolicy) -> tuple[Matrices, Multiplier, Array]:
    """Return the explicit matrices from raw observation to raw mean action, and what is known of their neurons."""
    actor = policy.actor
    if isinstance(policy, YoulaPolicy):
        raise NotCertifiableError("A Youla policy holds an observer beside its cell; its own bound is that of `youla`.")
    for what, found in (("an observation normalizer, which clips", actor.normalizer), ("tanh", actor.head.squash)):
        if found:
            raise NotCertifiableError(f"The policy has {what}, beside its cell; train without it.")
    model, family, theta = running_model(policy)
    head, outputs = _out(actor)
    return policy_in_units(model, scales_of(actor).unit, head, outputs), family, theta


def _out(actor: Actor) -> tuple[Array, Array]:
    """Return the linear map after the cell and the action scale."""
    linear, scale = actor.head.linear, actor.head.scale
    weight = np.eye(actor.cell.output_size) if linear is None else linear.weight.detach().cpu().double().numpy()
    return weight, np.ones(len(weight)) if scale is None else scale.detach().cpu().double().numpy()
