"""What is proven of a policy in feedback with the linear model of its plant."""

from __future__ import annotations

from robust_policies.control.feedback import FeedbackBound, feedback_bound
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.youla import Performance
from robust_policies.errors import NotCertifiableError, ShapeError
from robust_policies.policies.deployed import DeployedPolicy


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
    sizes = policy.cell.input_size, policy.actor.head.output_size
    if sizes != (model.p, model.m):
        raise ShapeError(
            f"The policy reads {sizes[0]} number(s) and gives {sizes[1]}; the model has {model.p} output(s) and "
            f"{model.m} input(s)."
        )
    gain, matrices, family, theta, neurons, reason = None, None, None, None, None, ""
    try:
        gain = policy.certificate().gamma_raw
    except NotCertifiableError as error:
        reason = str(error).rstrip(".")
    try:
        matrices, family, theta = policy.matrices()
        neurons = policy.neurons()
    except NotCertifiableError as error:
        reason = str(error).rstrip(".")
    return feedback_bound(
        model, matrices, family, theta, neurons=neurons, gain=gain, performance=performance, reason=reason
    )
