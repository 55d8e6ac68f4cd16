"""A chain of sandwich layers written out into its neurons, so that each of them is judged by its own slope.

phi is h -> out_K act(in_K .. out_1 act(in_1 h)) and may end in a linear layer. With all its neurons in v the system
around phi becomes one around neurons with slopes in [0, 1]:

    v_1 = in_1 (C1 x + D12 u),   v_{k+1} = in_{k+1} out_k w_k,   B1 <- B1 last,   D21 <- D21 last,

`last` from the last neurons to phi's output, so D11 is strictly block lower triangular. For a sandwich layer of
`networks.lbdn` the multiplier theta = psi^2 is known to do: |h|^2 - |out w|^2 - 2 sum theta w (v - w) =
|h - sqrt2 B' Psi w|^2 >= 0. What the norm of phi proves, with some metric, these multipliers prove with the same one.

Source: M. Fazlyab et al., "Efficient and accurate estimation of Lipschitz constants for deep neural networks" (LipSDP),
NeurIPS 2019, for one multiplier a neuron; the layers as in R. Wang and I. R. Manchester, ICML 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from robust_policies.certificates.layers import exactly
from robust_policies.certificates.lmi import Array, Matrices, product, zeros
from robust_policies.certificates.multipliers import SlopeMultiplier
from robust_policies.certificates.optimum import Candidate, small_enough
from robust_policies.certificates.search import Search

METHOD = "matrix inequality with a multiplier for each neuron, rounding-error bound"
MOST_NEURONS = 320
_NAMES = ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22")


class Neurons(NamedTuple):
    """A system around neurons with slopes in [0, 1], and a multiplier theta (nv,) to start a search from."""

    model: Matrices
    theta: Array

    @property
    def family(self) -> SlopeMultiplier:
        """What is known of the neurons."""
        return SlopeMultiplier(self.model.sizes[1])

    def mapped(self, change: Callable[[Matrices], Matrices]) -> Neurons:
        """Return what becomes of them where `change` folds the system into a larger one with the same neurons."""
        return self._replace(model=change(self.model))


class Rounded(NamedTuple):
    """A matrix (rows, columns) and how far the exact one may lie from it, entry by entry."""

    value: Array
    error: Array

    @classmethod
    def exact(cls, value: Array) -> Rounded:
        """Return a matrix that is what it stands for."""
        return cls(np.asarray(value, dtype=np.float64), np.zeros_like(value, dtype=np.float64))

    def after(self, other: Rounded) -> Rounded:
        """Return self @ other."""
        return Rounded(*product(self.value, other.value, left_error=self.error, right_error=other.error))

    def placed(self, shape: tuple[int, int], row: int, column: int) -> Rounded:
        """Return a matrix of zeros with this one at (row, column)."""
        rows, columns = self.value.shape
        made = Rounded.exact(np.zeros(shape))
        for target, part in zip(made, self, strict=True):
            target[row : row + rows, column : column + columns] = part
        return made

    def plus(self, other: Rounded) -> Rounded:
        """Return the sum of two matrices of which at each place at least one is zero."""
        return Rounded(self.value + other.value, self.error + other.error)


def written_out(model: Matrices, layers: Any) -> Neurons | None:
    """Return the system with the layers inside its nonlinearity written out, None where they have no neurons.

    Args:
        model: around phi as a whole; its D11 is zero.
        layers: explicit layers, first layer first, with `in_map()`, `out_map()` and `psi` (None: a linear layer).
    """
    error = model.error or zeros(model.sizes)
    return _written({name: Rounded(getattr(model, name), getattr(error, name)) for name in _NAMES}, layers)


def chain_of_layers(layers: Any, scale: float) -> Neurons | None:
    """Return u -> scale layers(scale u) as a system without a state around its neurons; arguments as `written_out`."""
    nu, ny, none = layers[0].in_map().shape[1], layers[-1].b.shape[0], np.zeros
    around = {
        "A": none((0, 0)),
        "B1": none((0, ny)),
        "B2": none((0, nu)),
        "C1": none((nu, 0)),
        "D12": scale * np.eye(nu),
        "C2": none((ny, 0)),
        "D21": scale * np.eye(ny),
        "D22": none((ny, nu)),
    }
    return _written({name: Rounded.exact(value) for name, value in around.items()}, layers)


def least_by_neurons(
    neurons: Neurons, P: Array | None, inputs: Array | None = None, outputs: Array | None = None
) -> float | None:
    """Return the least gain proven with a multiplier for each neuron, None without a proof.

    Args:
        neurons: the system, and multipliers with which P proves contraction.
        P: (nx, nx) a metric of that; None for a system without a state.
        inputs: (nu,) units as of `lmi.gain_supply`; None: ones.
        outputs: (ny,) likewise.
    """
    found = proven_by_neurons(neurons, P, inputs, outputs)
    return None if found is None else found.gamma


def proven_by_neurons(
    neurons: Neurons, P: Array | None, inputs: Array | None = None, outputs: Array | None = None
) -> Candidate | None:
    """Return what proves the least gain, as `Search.least_proven`: P (nx, nx), theta (nv,); else `least_by_neurons`."""
    if neurons.family.size > MOST_NEURONS or not small_enough(neurons.model, neurons.family):
        # Without a search the neurons prove what the norm of phi proves.
        return None
    nx = neurons.model.sizes[0]
    P = np.zeros((nx, nx)) if P is None and not nx else P
    if P is None or not (np.isfinite(P).all() and np.isfinite(neurons.theta).all()):
        return None
    search = Search(neurons.model, neurons.family, 1.0, inputs, outputs)
    # The path to the optimum keeps more of its digits where the metric to start from is the identity.
    balanced = search.balanced(P) if nx else None
    found = None if balanced is None else balanced.least_proven(np.eye(nx), neurons.theta)
    return search.least_proven(P, neurons.theta) if found is None else found


def _written(around: dict[str, Rounded], layers: Any) -> Neurons | None:
    """Return the system whose maps into phi (C1, D12) and out of it (B1, D21) pass its layers neuron by neuron."""
    reads: list[Rounded] = []
    theta: list[Array] = []
    pending: Rounded | None = None
    for layer in layers:
        inner = Rounded.exact(exactly(layer.in_map()))
        inner = inner if pending is None else inner.after(pending)
        if layer.psi is None:
            pending = inner
        else:
            reads.append(inner)
            theta.append(np.square(exactly(layer.psi)))
            pending = Rounded.exact(exactly(layer.out_map()))
    if not reads or pending is None:
        return None
    offsets = np.cumsum([0, *(len(read.value) for read in reads)])
    count, made = int(offsets[-1]), dict(around)
    for name in ("C1", "D12"):
        made[name] = reads[0].after(around[name]).placed((count, around[name].value.shape[1]), 0, 0)
    for name in ("B1", "D21"):
        made[name] = around[name].after(pending).placed((len(around[name].value), count), 0, offsets[-2])
    inside = Rounded.exact(np.zeros((count, count)))
    for read, row, column in zip(reads[1:], offsets[1:], offsets, strict=False):
        inside = inside.plus(read.placed((count, count), row, column))
    made["D11"] = inside
    values: dict[str, Any] = {name: part.value for name, part in made.items()}
    bounds: dict[str, Any] = {name: part.error for name, part in made.items()}
    return Neurons(Matrices(**values, error=Matrices(**bounds)), np.concatenate(theta))
