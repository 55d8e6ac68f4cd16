"""A Youla policy in float64, and the loop that it closes with its plant, neuron by neuron."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from robust_policies.certificates.lmi import Matrices
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.verify import running_neurons
from robust_policies.control.bounded import assembled, between, block
from robust_policies.control.bounded import parts as bounded_parts
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.youla import Performance, closed_loop_matrices, scaled_parameter
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.policies.running import Follow, RunningPolicy, exact_actor
from robust_policies.policies.youla.certify import Judged, around, loop_parts


def running_youla(policy: Judged) -> RunningPolicy:
    """Return a Youla policy as it runs; its signals inside are the normalised Youla inputs."""
    base = copy.deepcopy(policy.controller)
    base.numbers = base.inputs = torch.float64
    actor, explicit = exact_actor(policy.policy.actor)

    def begin(count: int) -> Tensor:
        return torch.cat((base.initial_state(count), actor.cell.initial_state(count).double()), -1)

    def step(observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Follow]:
        own, hidden = state[..., : base.state_size], state[..., base.state_size :]
        innovation = base.innovation(observation, own)
        inputs = actor.body.scaling(actor.normalized(base.seen(innovation, observation)))
        output, hidden = actor.cell.step(explicit, inputs, hidden)
        youla = actor.head(output)

        def after(applied: Tensor) -> Tensor:
            return torch.cat((base.update(innovation, applied, own)[1], hidden), -1)

        inside = torch.minimum(torch.maximum(youla, -base.youla_high), base.youla_high)
        return base.unclipped(innovation, inside, own), youla, after

    def close(model: LinearModel, performance: Performance, system: Matrices) -> Matrices:
        return _closed(policy, performance, system)

    sizes = actor.cell.input_size, actor.cell.output_size
    limits, entering = base.youla_high.numpy(), base.input_scale.numpy()
    return RunningPolicy(begin, step, lambda: _neurons(policy), close, sizes, limits, entering)


def _neurons(policy: Judged) -> Neurons:
    """Return the Youla parameter's cell around single neurons, where the loop is linear around them."""
    options, actor = policy.controller.options, policy.policy.actor
    for what, there in (
        ("rounds its inputs to the quantum of an actuator", options.quantum),
        ("reads a reference", len(options.reference or ())),
        ("has an observation normalizer, which clips", actor.normalizer),
        ("has tanh beside its cell", actor.head.squash),
    ):
        if there:
            raise NotCertifiableError(f"The Youla policy {what}.")
    found = running_neurons(actor.cell)
    if found is None:
        raise NotCertifiableError(f"The neurons of {type(actor.cell).__name__} are not known one by one.")
    return found


def _closed(policy: Judged, performance: Performance, q: Matrices) -> Matrices:
    """Return the loop of the policy's own model with a cell q in it, its outputs z and then the Youla inputs."""
    parts = loop_parts(policy)
    normalised = between(q, *around(policy.policy.actor, parts.model.p))
    try:
        whole = closed_loop_matrices(
            parts.model, parts.design, scaled_parameter(normalised, *parts.scales), performance
        )
    except InvalidValueError as error:
        # A delay beyond the model may be more than the design bears.
        raise NotCertifiableError(f"The policy's own base loop is not stable: {error}") from error
    half = bounded_parts(scaled_parameter(normalised, parts.scales[0], np.eye(parts.model.m)))
    made, count = bounded_parts(whole), parts.model.m
    C, Dv, zero = parts.model.C, performance.Dv, np.zeros
    made["C2"] = block([[made["C2"]], [block([[zero((count, parts.model.n)), half["D22"] @ C, half["C2"]]])]])
    made["D21"] = block([[made["D21"]], [half["D21"]]])
    made["D22"] = block([[made["D22"]], [block([[zero((count, performance.Bw.shape[1])), half["D22"] @ Dv]])]])
    return assembled(made)
