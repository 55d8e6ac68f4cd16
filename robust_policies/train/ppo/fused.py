"""A minibatch's loss and gradient without a graph, where the compiled kernels can do all of it.

That is on a CPU in float32, of Gaussian actions, an actor that is an R2DN, a REN, an LSTM, a GRU or an MLP of small
widths, and a memoryless critic. Between the parameters and the kernels' arrays there are `fused_parts`; everything else
is one call of `fused_kernels`. `TensorPolicy.loss` says what is computed, and does so elsewhere.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_policies.networks import compiled, gated, perceptron
from robust_policies.networks.baselines import GRUCell, LSTMCell, MLPCell
from robust_policies.networks.perceptron import Flat, array_of
from robust_policies.networks.robust_cell import RobustCell
from robust_policies.train.ppo.buffer import Pieces, TensorRolloutBuffer
from robust_policies.train.ppo.fused_parts import Collapsed, Gated, Network
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
    policy, head = tensors.policy, tensors.policy.action_net
    plain = tensors.gaussian and tensors.critic is None and head.linear is None and not head.squash
    # Actions are vectors: (time, env, na).
    plain = plain and buffer.actions.dim() == 3
    if not plain or buffer.device.type != "cpu" or any(one.dtype != torch.float32 for one in policy.parameters()):
        return None
    shape = perceptron.shape_of((*policy.mlp_extractor.value_net, policy.value_net))
    actor = None if shape is None or _kernels() is None else _actor(tensors.actor.cell, buffer, batch)
    if shape is None or actor is None:
        return None
    layers = [one for one in (*policy.mlp_extractor.value_net, policy.value_net) if hasattr(one, "weight")]
    critic = Flat(shape, [one.weight for one in layers], [one.bias for one in layers])
    found = Fused(tensors, buffer, critic, actor)
    return found if found.works() else None


def _actor(cell: Any, buffer: TensorRolloutBuffer, batch: int) -> Network | None:
    """Return a cell for the kernels, None where it is not one of theirs or too large for them."""
    state = buffer.actor_state[:batch]
    like = buffer.observations[..., :1].expand(-1, -1, cell.input_size)[:, :batch].float()
    if isinstance(cell, MLPCell):
        explicit = cell.explicit()
        shape = perceptron.shape_of_layers(cell.activation.name, explicit.weights)
        return None if shape is None else Flat(shape, *explicit)
    if isinstance(cell, (LSTMCell, GRUCell)):
        return Gated(cell) if gated.applies(like, state, cell.explicit()) else None
    step = getattr(cell.explicit(), "collapsed", None) if isinstance(cell, RobustCell) else None
    return Collapsed(cell, step) if step and compiled.applies(cell.activation.name, like, state, step) else None


class Fused:
    """Differentiates minibatches of the rollout in a buffer."""

    def __init__(self, tensors: TensorPolicy, buffer: TensorRolloutBuffer, critic: Flat, actor: Network) -> None:
        self.tensors, self.buffer, self.critic, self.actor = tensors, buffer, critic, actor
        policy = tensors.policy
        with torch.no_grad():
            seen = array_of(tensors.actor.scaling(buffer.observations))
            # There is a critic where actor and critic share nothing.
            judged = seen if tensors.shared else array_of(policy.critic(buffer.observations))  # pyright: ignore[reportOptionalCall]
        na, head = policy.log_std.shape[0], policy.action_net
        scale = np.ones(na, np.float32) if head.scale is None else array_of(head.scale)
        offset = np.zeros(na, np.float32) if head.offset is None else array_of(head.offset)
        self.parts, self.slopes = np.zeros(6), np.zeros(na + critic.size + actor.size, np.float32)
        self.log_std = policy.log_std, torch.from_numpy(self.slopes[:na])
        critic.listen(self.slopes[na : na + critic.size])
        actor.listen(self.slopes[na + critic.size :])
        self.given = seen, judged, array_of(buffer.starts), array_of(buffer.actor_state), tensors.shared
        self.head = scale, offset, array_of(policy.log_std)
        self.data = [array_of(one) for one in (buffer.actions, buffer.log_probs, buffer.values, buffer.returns)]
        self._room, self._work = critic.room + actor.room, np.empty(0, np.float32)
        self.name = {Flat: "perceptron", Gated: "gated", Collapsed: "collapsed"}[type(actor)]

    def works(self) -> bool:
        """Return whether the kernels run, which compiles them where that was not done before; asked once a process."""
        if self.name in _RAN:
            return True
        try:
            self.actor.renew()
            self._run([(np.arange(1), 1.0)], Terms(0.2, None, 0.5, 0.0))
        except Exception:  # whatever ails the compiler: PyTorch needs none
            return False
        _RAN.add(self.name)
        return True

    def differentiate(self, pieces: Pieces, terms: Terms) -> Tensor:
        """Leave the gradient of a minibatch's loss in the parameters, in place of what was there.

        Returns loss, policy loss, clip fraction, value loss, entropy loss and approximate divergence, (6,).
        """
        self.critic.renew()
        self.actor.renew()
        places = ((np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.numpy(), share)
                  for rows, share in pieces.places())  # fmt: skip
        self._run(places, terms)
        pairs = self.actor.back()
        for parameter, slope in (self.log_std, *self.critic.back(), *(pairs or ())):
            if parameter.requires_grad:
                parameter.grad = slope
        return torch.from_numpy(self.parts.astype(np.float32))

    def _run(self, places: Iterable[tuple[np.ndarray, float]], terms: Terms) -> None:
        """Fill parts and slopes with the sums over pieces: environments (b,) and their share each."""
        self.parts[:] = 0.0
        self.slopes[:] = 0.0
        limit = math.inf if terms.clip_values is None else terms.clip_values
        numbers = (float(terms.clip), float(limit), float(terms.weight), float(terms.entropy))
        kernel, data = getattr(_kernels(), self.name), (*self.data, array_of(self.buffer.counted))
        for rows, share in places:
            needed = len(rows) * self.buffer.buffer_size * self._room
            if len(self._work) < needed:
                # By PyTorch, which begins where a line of the cache does.
                self._work = torch.empty(needed).numpy()
            kernel(
                rows, self.given, self.actor.arguments, self.head, self.critic.arguments, data, numbers, share,
                self.parts, self.slopes, self._work,
            )  # fmt: skip
