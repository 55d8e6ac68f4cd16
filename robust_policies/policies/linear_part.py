"""The linear part of a policy at the equilibrium of its loop, and what is measured and proven of the loop around it.

The loop is that of the plant's linear model: plant x+ = A x + B u, y = C x, in deviations from (x0, u0, y0), and the
policy with the arrays that run, in float64 and with nothing clipped. At its equilibrium (x, s) the policy's
derivative is a linear controller s+ = As s + Bs y, u = Cs s + Ds y; that and the plant are the linear part of the loop.
Margins of the linear part say what happens near the equilibrium, and prove nothing of the loop with the policy itself.
Those of the policy itself are proven neuron by neuron, where that succeeds: for the linear plant, with nothing
clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from robust_policies.certificates.trajectory import balanced, gain_of
from robust_policies.control import lqg
from robust_policies.control.feedback import compensator, feedback_matrices
from robust_policies.control.gain_bounds import linear_loop
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.margins import (
    LinearLoop,
    ProvenMargins,
    delay_loop,
    disk_loop,
    proven_delay,
    proven_disk,
    proven_margins,
)
from robust_policies.control.norms import Array, StateSpace
from robust_policies.control.youla import Performance
from robust_policies.errors import InvalidValueError, NotCertifiableError, ShapeError
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.running import RunningPolicy
from robust_policies.policies.youla.certify import loop_parts
from robust_policies.policies.youla.policy import YoulaPolicy

_NEWTON, _SETTLING, _TOLERANCE = 50, 2000, 1e-9
# How far from the equilibrium the derivative is taken again, to see whether it is one.
_NEAR, _ALIKE = 1e-7, 1e-4


@dataclass(frozen=True, eq=False)
class PolicyLoop:
    """A policy in feedback with the linear model of its plant, and both their linear parts.

    Attributes:
        model: the plant's, an actuator's delay that a Youla policy knows included.
        loop: plant and linear part of the policy.
        base: plant and LQG: a Youla policy's base controller, else the design with the model's default weights.
        state, input: the plant's states (n,) and inputs (m,) at the equilibrium, deviations from the model's.
        hidden: the policy's state (1, nx) there.
        smooth: whether the policy has a derivative there; else a neuron has its kink there, and the linear part is that
            of one side.
        within: whether the inputs at the equilibrium are within the actuators' limits.
        running: the policy as it runs.
        positions: of the model's outputs in an observation; the others (a reference) are held at zero.
    """

    model: LinearModel
    loop: LinearLoop
    base: LinearLoop
    state: Array
    input: Array
    hidden: Tensor
    smooth: bool
    within: bool
    running: RunningPolicy
    positions: tuple[int, ...]
    observations: int

    def policy_proven(self) -> ProvenMargins:
        """Return what is proven of the loop with the policy itself, neuron by neuron."""
        m = self.model.m
        try:
            whole = balanced(self.running.loop(self.model, _inputs(self.model)))
        except NotCertifiableError:
            return ProvenMargins(None, None)
        own = whole.mapped(lambda matrices: matrices.then(np.eye(m, matrices.sizes[3])))
        gains = [gain_of(own.mapped(change)) for change in (disk_loop, delay_loop)]
        norms = [None if one is None else one.gain for one in gains]
        return ProvenMargins(proven_disk(norms[0]), proven_delay(norms[1]))

    def linear_proven(self) -> ProvenMargins:
        """Return what is proven of the linear part."""
        return proven_margins(feedback_matrices(self.model, linear_loop(self.loop.controller), _inputs(self.model)))

    def step(self, output: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (input (batch, m), next state) for outputs (batch, p); both signals are deviations."""
        return _step(self.running, self.model, self.positions, self.observations, output, state)


def policy_loop(policy: DeployedPolicy, model: LinearModel | None = None) -> PolicyLoop:
    """Return a policy in feedback with the linear model of its plant, and its linear part at their equilibrium.

    Args:
        policy: reads the model's outputs and gives its inputs.
        model: of the plant; None: a Youla policy's own.

    Raises:
        ShapeError, InvalidValueError: the policy does not fit the model, or no equilibrium is found.
    """
    if isinstance(policy, YoulaPolicy):
        parts = loop_parts(policy)
        loop_model, design = parts.model, parts.design
        known = policy.controller.measured.tolist()
    elif model is None:
        raise InvalidValueError("model is missing; expected the linear model of the plant, as this is no Youla policy.")
    else:
        loop_model, design, known = model, lqg.design(model), list(range(model.p))
    size = policy.observation_space.shape or ()
    if len(size) != 1 or (not isinstance(policy, YoulaPolicy) and size != (loop_model.p,)):
        raise ShapeError(f"The policy reads observations of shape {size}; the model has {loop_model.p} output(s).")
    running, positions = policy.running(), tuple(known)
    with torch.no_grad():
        hidden = running.begin(1)

    def advance(whole: Tensor) -> Tensor:
        x, s = whole[: loop_model.n], whole[loop_model.n :]
        y = x @ torch.as_tensor(loop_model.C.T)
        u, s = _step(running, loop_model, positions, size[0], y[None], s[None])
        x = x @ torch.as_tensor(loop_model.A.T) + u[0] @ torch.as_tensor(loop_model.B.T)
        return torch.cat((x, s[0]))

    place = _equilibrium(advance, torch.cat((torch.zeros(loop_model.n, dtype=torch.float64), hidden[0])))
    x, s = place[: loop_model.n], place[loop_model.n :]
    y = x @ torch.as_tensor(loop_model.C.T)

    def controller(both: Tensor) -> Tensor:
        u, following = _step(
            running, loop_model, positions, size[0], both[None, : loop_model.p], both[None, loop_model.p :]
        )
        return torch.cat((u[0], following[0]))

    at = torch.cat((y, s))
    slopes = _jacobian(controller, at)
    generator = torch.Generator().manual_seed(0)
    smooth = True
    for _ in range(4):
        near = at + _NEAR * (1.0 + at.abs()) * torch.randn(len(at), generator=generator, dtype=torch.float64)
        other = _jacobian(controller, near)
        smooth = smooth and bool(np.abs(other - slopes).max() <= _ALIKE * max(1.0, float(np.abs(slopes).max())))
    m, p = loop_model.m, loop_model.p
    part = StateSpace(slopes[m:, p:], slopes[m:, :p], slopes[:m, p:], slopes[:m, :p])
    with torch.no_grad():
        u = controller(at)[:m].numpy()
    applied = loop_model.u0 + u
    plant = StateSpace(loop_model.A, loop_model.B, loop_model.C, loop_model.D)
    return PolicyLoop(
        loop_model,
        LinearLoop(plant, part),
        LinearLoop(plant, compensator(loop_model, design)),
        x.numpy(),
        u,
        s.detach()[None],
        smooth,
        bool(((loop_model.action_low < applied) & (applied < loop_model.action_high)).all()),
        running,
        positions,
        size[0],
    )


def _step(
    running: RunningPolicy, model: LinearModel, positions: tuple[int, ...], size: int, output: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    observation = output.new_zeros((len(output), size))
    observation = observation.index_copy(1, torch.tensor(positions), output + torch.as_tensor(model.y0))
    action, _, follow = running.step(observation, state)
    return action - torch.as_tensor(model.u0), follow(action)


def _equilibrium(advance: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Return where a loop stands still: where it settles, or what Newton's method finds from there or the start."""
    settled = start
    with torch.no_grad():
        for _ in range(_SETTLING):
            following = advance(settled)
            if not bool(torch.isfinite(following).all()) or float(following.abs().max()) > 1e6:
                settled = start
                break
            done = float((following - settled).abs().max()) <= 1e-13 * (1.0 + float(settled.abs().max()))
            settled = following
            if done:
                break
    for begin in (settled, start):
        place = begin
        for _ in range(_NEWTON):
            with torch.no_grad():
                rest = (advance(place) - place).numpy()
            if not np.isfinite(rest).all():
                break
            if np.abs(rest).max(initial=0.0) <= _TOLERANCE * (1.0 + float(place.abs().max())):
                return place
            slopes = _jacobian(advance, place) - np.eye(len(place))
            place = place - torch.as_tensor(np.linalg.lstsq(slopes, rest, rcond=None)[0])
    raise InvalidValueError(
        "No equilibrium of the policy and its plant's linear model was found, so their loop has no linear part there."
    )


def _jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Array:
    found = jacobian(function, at)
    assert isinstance(found, Tensor)
    return found.detach().numpy()


def _inputs(model: LinearModel) -> Performance:
    """Return what is added at the plant's inputs as d, and what the controller answers there as z."""
    m = model.m
    return Performance(np.zeros((m, model.n)), np.eye(m), model.B, np.zeros((model.p, 0)))
