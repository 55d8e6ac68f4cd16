"""A minibatch's loss and gradient without a graph, where the compiled kernels can do all of it.

That is on a CPU in float32, of Gaussian actions, an actor that is an R2DN, a REN or an MLP of small widths, and a
memoryless critic. The graph that is left leads from the actor's arrays to its parameters; everything else is one call
of `fused_kernels`. `TensorPolicy.loss` says what is computed, and does so elsewhere.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_policies.networks import compiled, perceptron
from robust_policies.networks.baselines import MLPCell
from robust_policies.networks.program import Back, pulled
from robust_policies.networks.robust_cell import RobustCell
from robust_policies.train.ppo.buffer import Pieces, TensorRolloutBuffer
from robust_policies.train.ppo.losses import Terms
from robust_policies.train.ppo.policy import TensorPolicy

_RAN: set[str] = set()
"""The kernels that have run in this process: their compiled form does not depend on sizes."""


@cache
def _kernels() -> Any:
    """Return the module of the kernels, None where numba is not there."""
    try:
        return importlib.import_module("robust_policies.train.ppo.fused_kernels")
    except Exception:  # whatever ails the compiler: PyTorch needs none
        return None


def fused(tensors: TensorPolicy, buffer: TensorRolloutBuffer, batch: int) -> Fused | None:
    """Return what differentiates minibatches of `batch` environments of a rollout, None where PyTorch has to."""
    policy, cell, head = tensors.policy, tensors.actor.cell, tensors.policy.action_net
    plain = tensors.gaussian and tensors.critic is None and head.linear is None and not head.squash
    if not plain or buffer.device.type != "cpu" or any(one.dtype != torch.float32 for one in policy.parameters()):
        return None
    critic = perceptron.shape_of((*policy.mlp_extractor.value_net, policy.value_net))
    if critic is None or _kernels() is None:
        return None
    actor: Any = None
    if isinstance(cell, MLPCell):
        actor = perceptron.shape_of_layers(cell.activation.name, cell.explicit().weights)
    elif isinstance(cell, RobustCell):
        step = getattr(cell.explicit(), "collapsed", None)
        like = buffer.observations[..., :1].expand(-1, -1, cell.input_size)[:, :batch].float()
        if step is not None and compiled.applies(cell.activation.name, like, buffer.actor_state[:batch], step):
            actor = cell.activation.name
    if actor is None:
        return None
    found = Fused(tensors, buffer, critic, actor)
    return found if found.works() else None


class Fused:
    """Differentiates minibatches of the rollout in a buffer."""

    def __init__(self, tensors: TensorPolicy, buffer: TensorRolloutBuffer, critic: Any, actor: Any) -> None:
        self.tensors, self.buffer, self.kinds, self.actor = tensors, buffer, critic, actor
        policy = tensors.policy
        with torch.no_grad():
            self.seen = _array(tensors.actor.scaling(buffer.observations))
            # There is a critic where actor and critic share nothing.
            self.judged = self.seen if tensors.shared else _array(policy.critic(buffer.observations))  # pyright: ignore[reportOptionalCall]
        self.starts, self.states = _array(buffer.starts), _array(buffer.actor_state)
        self.layers = [one for one in (*policy.mlp_extractor.value_net, policy.value_net) if hasattr(one, "weight")]
        na, head = policy.log_std.shape[0], policy.action_net
        scale = np.ones(na, np.float32) if head.scale is None else _array(head.scale)
        self.head = scale, (np.zeros(na, np.float32) if head.offset is None else _array(head.offset))
        grids = (buffer.actions, buffer.log_probs, buffer.advantages, buffer.values, buffer.returns)
        self.data = [_array(one) for one in grids]

    def works(self) -> bool:
        """Return whether the kernels run, which compiles them where that was not done before; asked once a process."""
        kind = "recurrent" if isinstance(self.actor, str) else "memoryless"
        if kind in _RAN:
            return True
        try:
            self._call(np.arange(1), self._arrays()[0], Terms(0.2, None, 0.5, 0.0))
        except Exception:  # whatever ails the compiler: PyTorch needs none
            return False
        _RAN.add(kind)
        return True

    def differentiate(self, pieces: Pieces, terms: Terms) -> tuple[Tensor, ...]:
        """Leave the gradient of a minibatch's loss in the parameters.

        Returns loss, policy loss, clip fraction, value loss, entropy loss and approximate divergence.
        """
        arrays, back = self._arrays()
        self.data[2] = _array(self.buffer.counted)
        sums: list[np.ndarray] | None = None
        for rows, share in pieces.places():
            rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.numpy()
            found = self._call(rows, arrays, terms)
            if share != 1.0:
                found = [np.asarray(share * one, one.dtype) for one in found]
            sums = list(found) if sums is None else [before + one for before, one in zip(sums, found, strict=True)]
        assert sums is not None
        parts, by_log_std, gW, gb, *slopes = sums
        self._hand_over(arrays, back, by_log_std, gW, gb, slopes)
        loss, policy_loss, fraction, value_loss, divergence, entropy = torch.from_numpy(parts).float().unbind()
        return loss, policy_loss, fraction, value_loss, -entropy, divergence

    def _arrays(self) -> tuple[Any, Back]:
        """Return the actor's arrays as the kernels take them, and what hands gradients on to what they are made of."""
        cell: Any = self.tensors.actor.cell
        known = None if isinstance(cell, MLPCell) else pulled(cell, cell._with_collapsed)
        if known is not None:
            return known[0][1], known[1]
        with torch.enable_grad():
            explicit = cell.explicit()
        return getattr(explicit, "collapsed", explicit), _backward

    def _call(self, rows: np.ndarray, arrays: Any, terms: Terms) -> Any:
        kernels = _kernels()
        limit = math.inf if terms.clip_values is None else terms.clip_values
        numbers = (float(terms.clip), float(limit), float(terms.weight), float(terms.entropy))
        head = (*self.head, self.tensors.policy.log_std.detach().numpy())
        critic = (*self.kinds, *perceptron.flat([value for one in self.layers for value in (one.weight, one.bias)]))
        data = tuple(self.data)
        if not isinstance(self.actor, str):
            parameters = [value for pair in zip(arrays.weights, arrays.biases, strict=True) for value in pair]
            actor = (*self.actor, *perceptron.flat(parameters))
            return kernels.memoryless(
                rows, self.seen, self.judged, self.tensors.shared, actor, head, critic, data, numbers
            )
        step = arrays
        one = compiled.packed((*step[:6], *step.weights, *step.biases), len(step.biases), self.states.shape[1])
        kind = compiled.kernels_of().kind_of(self.actor, one.P.dtype)
        return kernels.recurrent(
            rows, self.seen, self.judged, self.starts, self.states, self.tensors.shared, kind, tuple(one[:-1]),
            tuple(one.turned()), one.neurons, head, critic, data, numbers,
        )  # fmt: skip

    def _hand_over(
        self, arrays: Any, back: Back, by_log_std: np.ndarray, gW: np.ndarray, gb: np.ndarray, slopes: Any
    ) -> None:
        """Put gradients into the parameters; those of the actor's arrays go back to what these are made of."""
        direct = [(self.tensors.policy.log_std, torch.from_numpy(by_log_std))]
        direct += _pairs([one.weight for one in self.layers], gW) + _pairs([one.bias for one in self.layers], gb)
        if isinstance(self.actor, str):
            *found, gw, gbias = slopes
            reached = list(zip(arrays[:6], map(torch.from_numpy, found), strict=True))
            back(reached + _pairs(arrays.weights, gw) + _pairs(arrays.biases, gbias))
        else:
            direct += _pairs(arrays.weights, slopes[0]) + _pairs(arrays.biases, slopes[1])
        for parameter, slope in direct:
            if parameter.requires_grad:
                parameter.grad = slope if parameter.grad is None else parameter.grad + slope


def _backward(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Hand gradients on by the graph."""
    reached = [(one, slope) for one, slope in pairs if one.requires_grad]
    if reached:
        torch.autograd.backward([one for one, _ in reached], [slope for _, slope in reached])


def _pairs(like: Any, flat: np.ndarray) -> list[tuple[Tensor, Tensor]]:
    """Return tensors beside the parts of a flat array that belong to them."""
    pieces = torch.from_numpy(flat).split([one.numel() for one in like])
    return [(one, piece.view(one.shape)) for one, piece in zip(like, pieces, strict=True)]


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy())
