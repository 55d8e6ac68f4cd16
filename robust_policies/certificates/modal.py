"""A stack of linear systems and sandwich layers (the cell `l2ru`) written as one system around its neurons.

With a signal h = Hx x + Hw w + Hu u, unit i adds x_i+ = A_i x_i + B_i h and y_i = C_i x_i + D_i h; the layer after it
reads v_i = in_i y_i and gives h = out_i w_i. What holds of each unit, |x+|^2 + |y|^2 <= |x|^2 + |h|^2, and of each
layer with the multipliers psi^2 (`neurons`), holds of the whole with the metric P = I.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from robust_policies.certificates.layers import exactly
from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.neurons import Neurons, Rounded


def is_stack(explicit: Any) -> bool:
    """Return whether explicit arrays are those of linear systems with layers between."""
    return all(hasattr(explicit, name) for name in ("inward", "linear", "layers", "outward", "size"))


def stack(explicit: Any) -> Neurons:
    """Return the stack as a system around its neurons, with what rounding did to its products."""
    size, inward, outward = (exactly(part) for part in (explicit.size, explicit.inward.B, explicit.outward.B))
    nx = sum(2 * len(unit.poles) for unit in explicit.linear)
    nv, nu = sum(len(layer.b) for layer in explicit.layers), inward.shape[1]
    p, ny = len(inward), len(outward)
    none = np.zeros
    hx, hw = Rounded.exact(none((p, nx))), Rounded.exact(none((p, nv)))
    hu = Rounded.exact(inward).after(Rounded.exact(size * np.eye(nu)))
    rows: dict[str, list[Rounded]] = {name: [] for name in ("A", "B1", "B2", "C1", "D11", "D12")}
    theta, at, neuron = [], 0, 0
    for unit, layer in zip(explicit.linear, explicit.layers, strict=True):
        B, C, D = (Rounded.exact(exactly(part)) for part in (unit.B, unit.C, unit.D))
        A = Rounded.exact(_turning(exactly(unit.poles)))
        states, width = len(A.value), len(layer.b)
        rows["A"].append(B.after(hx).plus(A.placed((states, nx), 0, at)))
        rows["B1"].append(B.after(hw))
        rows["B2"].append(B.after(hu))
        reads = Rounded.exact(exactly(layer.in_map()))
        rows["C1"].append(reads.after(D.after(hx).plus(C.placed((p, nx), 0, at))))
        rows["D11"].append(reads.after(D.after(hw)))
        rows["D12"].append(reads.after(D.after(hu)))
        gives = Rounded.exact(exactly(layer.out_map()))
        hx, hu = Rounded.exact(none((p, nx))), Rounded.exact(none((p, nu)))
        hw = gives.placed((p, nv), 0, neuron)
        theta.append(np.square(exactly(layer.psi)))
        at, neuron = at + states, neuron + width
    last = Rounded.exact(size * np.eye(ny)).after(Rounded.exact(outward))
    ends = {"C2": last.after(hx), "D21": last.after(hw), "D22": last.after(hu)}
    made = {name: Rounded(*(np.vstack(part) for part in zip(*found, strict=True))) for name, found in rows.items()}
    made |= ends
    values: dict[str, Any] = {name: part.value for name, part in made.items()}
    bounds: dict[str, Any] = {name: part.error for name, part in made.items()}
    return Neurons(Matrices(**values, error=Matrices(**bounds)), np.concatenate(theta))


def _turning(poles: Array) -> Array:
    """Return the matrix (n, n) of blocks [[c, -s], [s, c]] for poles (n / 2, 2)."""
    A = np.zeros((2 * len(poles), 2 * len(poles)))
    even = np.arange(0, len(A), 2)
    A[even, even] = A[even + 1, even + 1] = poles[:, 0]
    A[even + 1, even], A[even, even + 1] = poles[:, 1], -poles[:, 1]
    return A
