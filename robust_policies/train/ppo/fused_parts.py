"""The networks of a minibatch as `fused_kernels` takes them: arrays on memory that stays for an update, and gradients.

`renew` brings `arguments` up to date with the parameters, which stay where they are in memory. The kernels leave
`size` numbers, the gradients of the arrays one after the other, where `listen` was told, and `back` returns the
parameters with theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from robust_policies.networks import compiled, gated
from robust_policies.networks.compiled import parts_of
from robust_policies.networks.perceptron import array_of
from robust_policies.networks.program import pulled

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Parameters of any shapes with their gradients, which the next ones overwrite."""


class Network(Protocol):
    """What the kernels run: see above."""

    arguments: tuple[Any, ...]
    size: int
    room: int
    """How many numbers of memory the kernels need for a sample."""

    def renew(self) -> None:
        """Take the parameters as they are."""
        ...

    def listen(self, slopes: np.ndarray) -> None:
        """Take gradients from numbers (size,) from now on."""
        ...

    def back(self) -> Pairs | None:
        """Return the parameters' gradients, or leave them in the parameters where PyTorch has to, and return None."""
        ...


class Gated:
    """An LSTM or a GRU."""

    def __init__(self, cell: Any) -> None:
        self._parameters = cell.explicit()
        *self._matrices, C, d = map(array_of, self._parameters)
        (ny, n), nu = C.shape, cell.input_size
        self._gru = cell.state_size == n
        self._W, self._C = np.zeros((4 * n, n + 1 + nu), C.dtype), C
        self._turned = np.empty((n + 1 + nu, 4 * n), C.dtype), np.empty((n, ny), C.dtype)
        self.arguments = (self._gru, *gated.kinds(C.dtype), self._W, C, d, *self._turned)
        self.size = self._W.size + C.size + ny
        self.room = (n + 1 + nu) + 4 * n + (n if self._gru else 3 * n)

    def renew(self) -> None:
        """Take the parameters as they are."""
        gated.joined(self._W, self._matrices)
        for to, one in zip(self._turned, (self._W, self._C), strict=True):
            np.copyto(to, one.T)

    def listen(self, slopes: np.ndarray) -> None:
        """Take gradients from numbers (size,) from now on."""
        self._slopes, gC, gd = parts_of(slopes, [self._W.shape, self._C.shape, self._C.shape[:1]])
        self._found = [*gated.parted(self._gru, self._slopes), gC, gd]
        self._pairs = list(zip(self._parameters, map(torch.from_numpy, self._found), strict=True))

    def back(self) -> Pairs:
        """Return the parameters' gradients."""
        for to, one in zip(self._found, gated.parted(self._gru, self._slopes), strict=False):
            np.copyto(to, one)
        return self._pairs


class Collapsed:
    """An R2DN or a REN with its step: a tape makes the arrays of the parameters, or PyTorch where there is none."""

    def __init__(self, cell: Any, step: compiled.Collapsed) -> None:
        self._cell, self._tape = cell, pulled(cell, cell._with_collapsed)
        self._graph: list[Tensor] | None = None
        leaves, layers = _leaves(step), len(step.biases)
        one = compiled.packed(leaves, layers, cell.state_size)
        P, c, B, Q, R, d, weights, biases = (array.copy() for array in one[:8])
        self._shapes, last = [leaf.shape for leaf in leaves], len(leaves) - layers
        parts = parts_of(weights, self._shapes[6:last]) + parts_of(biases, self._shapes[last:])
        self._arrays = [P, c, B, Q, R, d, *parts]
        turned = tuple(np.ascontiguousarray(array.T) for array in (P, B, Q, R))
        self._turned = list(zip(turned, (P.T, B.T, Q.T, R.T), strict=True))
        kind = compiled.kernels_of().kind_of(cell.activation.name, P.dtype)
        self.arguments = (kind, (P, c, B, Q, R, d, weights, biases, one.blocks), turned, one.neurons)
        self.size = sum(array.size for array in self._arrays)
        self.room = P.shape[1] + one.neurons

    def renew(self) -> None:
        """Take the parameters as they are."""
        self._graph = None
        found = _leaves(self._tape.arrays[1]) if self._tape is not None and self._tape.renew() else self._by_graph()
        for to, one in (*zip(self._arrays, found, strict=True), *self._turned):
            np.copyto(to, one)

    def listen(self, slopes: np.ndarray) -> None:
        """Take gradients from numbers (size,) from now on."""
        self._slopes = parts_of(slopes, self._shapes)
        if self._tape is not None:
            self._tape.listen(list(zip(_leaves(self._tape.arrays[1]), self._slopes, strict=True)))

    def back(self) -> Pairs | None:
        """Return the parameters' gradients, or leave them there."""
        found = None if self._tape is None or self._graph is not None else self._tape.back()
        if found is not None:
            return found
        if self._graph is None:
            self._by_graph()
        assert self._graph is not None
        pairs = zip(self._graph, map(torch.from_numpy, self._slopes), strict=True)
        reached = [(one, slope) for one, slope in pairs if one.requires_grad]
        if reached:
            torch.autograd.backward([one for one, _ in reached], [slope for _, slope in reached])
        return None

    def _by_graph(self) -> list[np.ndarray]:
        """Return the arrays by PyTorch, and keep its graph."""
        with torch.enable_grad():
            self._graph = _leaves(self._cell.collapsed(self._cell.explicit()))
        return [array_of(one) for one in self._graph]


def _leaves(step: Any) -> list[Any]:
    return [*step[:6], *step.weights, *step.biases]
