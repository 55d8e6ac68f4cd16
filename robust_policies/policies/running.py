"""A policy in float64, with the arrays that run, beside the system around its neurons that it and a plant make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.neurons import Neurons
from robust_policies.control.bounded import between
from robust_policies.control.feedback import feedback_matrices
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.youla import Performance
from robust_policies.policies.actor import Actor

Follow = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class RunningPolicy:
    """What a policy does in exact arithmetic, but for float64's rounding; differentiable in the observation.

    Attributes:
        begin: the number of episodes -> the state at their start (episodes, nx).
        step: (observation (episodes, p), state) -> (action (episodes, m) before it is clipped, signals inside
            (episodes, k), what gives the next state for the action that was applied).
        neurons: () -> the cell around its single neurons; it raises NotCertifiableError where they are not known, or
            something beside the cell is in the way.
        close: (model, performance, a system in the cell's place) -> the loop d -> (z, then the signals inside) around
            that system's neurons.
        sizes: (nu, ny) of the cell.
        limits: (k,) where the policy itself clips the signals inside, at plus and minus.
        entering: (m, k), through which the clipped signals inside enter the action.
    """

    begin: Callable[[int], Tensor]
    step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Follow]]
    neurons: Callable[[], Neurons]
    close: Callable[[LinearModel, Performance, Matrices], Matrices]
    sizes: tuple[int, int]
    limits: Array
    entering: Array

    def loop(self, model: LinearModel, performance: Performance) -> Neurons:
        """Return the loop d -> (z, then the signals inside) around single neurons; raises as `neurons`."""
        return self.neurons().mapped(lambda system: self.close(model, performance, system))


def exact_actor(actor: Actor) -> tuple[Actor, Any]:
    """Return a float64 copy of an actor, and the explicit arrays that run, as float64."""
    with torch.no_grad():
        explicit = actor.cell.explicit()
    double = copy.deepcopy(actor).double().requires_grad_(False)
    return double, tree_map(lambda leaf: _double(leaf), explicit)


def running_actor(actor: Actor, neurons: Callable[[], Neurons]) -> RunningPolicy:
    """Return a policy that is an actor alone; `neurons` gives its cell around single neurons, or says why it cannot."""
    double, explicit = exact_actor(actor)
    folded = actor.folded()

    def step(observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Follow]:
        output, following = double.cell.step(explicit, double.body.scaling(double.normalized(observation)), state)
        action = double.head(output)
        return action, action[..., :0], lambda applied: following

    def close(model: LinearModel, performance: Performance, system: Matrices) -> Matrices:
        return feedback_matrices(model, between(system, folded.inward, folded.outward), performance)

    def begin(count: int) -> Tensor:
        return double.cell.initial_state(count).double()

    sizes = actor.cell.input_size, actor.cell.output_size
    entering = np.zeros((actor.head.output_size, 0))
    return RunningPolicy(begin, step, neurons, close, sizes, np.zeros(0), entering)


def _double(leaf: Any) -> Any:
    return leaf.detach().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
