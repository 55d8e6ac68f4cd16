"""The linear model beside every identified one: subspace identification by nfoursid, its order by the validation.

What the library does not say is asked here first: whether the input moves enough (the rank of its block Hankel matrix)
and the record is long enough. Its last singular value decomposition makes a matrix (samples, samples); the economy form
of the same is used.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robust_policies.control.norms import radius
from robust_policies.identification.model import Signals
from robust_policies.identification.records import Array, Experiment
from robust_policies.identification.residuals import mean_nrmse

MOST_STATES = 10
_BLOCK_ROWS = 12
# Samples a block row; fewer give models without a word of warning.
_SAMPLES = 6
_RANK = 1e-6


@dataclass(frozen=True, eq=False)
class LinearModel:
    """x+ = A x + B u, y = C x + D u between scaled signals, A (nx, nx), from zero."""

    A: Array
    B: Array
    C: Array
    D: Array
    signals: Signals

    def simulate(self, inputs: Array) -> Array:
        """Return the raw outputs (time, ny) for raw inputs (time, nu), from the state zero."""
        (u,) = self.signals.scaled(inputs)
        x, driven, states = np.zeros(len(self.A)), u @ self.B.T, np.empty((len(u), len(self.A)))
        for t, part in enumerate(driven):
            states[t] = x
            x = self.A @ x + part
        outputs = states @ self.C.T + u @ self.D.T
        return outputs * np.asarray(self.signals.output_scale) + np.asarray(self.signals.output_offset)


@dataclass(frozen=True, eq=False)
class Baseline:
    """The linear model, or why there is none."""

    model: LinearModel | None
    note: str


def linear_baseline(
    train: Sequence[Experiment], validation: Sequence[Experiment], signals: Signals, washout: int
) -> Baseline:
    """Return the linear model with the least error of simulation on the validation, of at most `MOST_STATES` states.

    It is made of the longest record of the training; the library takes one.
    """
    try:
        library = importlib.import_module("nfoursid.nfoursid")
        pandas = importlib.import_module("pandas")
    except ImportError:
        return Baseline(None, "No linear model: nfoursid is not installed; install robust-policies[identify].")
    longest = max(train, key=len)
    u, y = signals.scaled(longest.inputs, longest.outputs)
    rows = min(_BLOCK_ROWS, len(u) // (2 * _SAMPLES * (u.shape[1] + y.shape[1])))
    if rows < 2:
        return Baseline(None, f"No linear model: {longest.label} is too short for a subspace method.")
    rank, full = _input_rank(u, 2 * rows), 2 * rows * u.shape[1]
    if rank < full:
        return Baseline(
            None,
            f"No linear model: the input of {longest.label} moves too little (rank {rank} of {full} of its block "
            "Hankel matrix), and a subspace method would give a wrong one without a word.",
        )
    columns = [f"u{k}" for k in range(u.shape[1])], [f"y{k}" for k in range(y.shape[1])]
    frame = pandas.DataFrame(np.hstack((u, y)), columns=[*columns[0], *columns[1]])
    found = _economical(library.NFourSID)(frame, columns[1], columns[0], num_block_rows=rows)
    found.subspace_identification()
    best: tuple[float, LinearModel] | None = None
    for order in range(1, min(MOST_STATES, rows * y.shape[1] - 1) + 1):
        space, _ = found.system_identification(rank=order)
        A, B, C, D = (np.asarray(getattr(space, name), float) for name in "abcd")
        model = LinearModel(A, B, C, D, signals)
        if not all(np.isfinite(part).all() for part in (model.A, model.B, model.C, model.D)) or radius(model.A) >= 1:
            continue
        error = mean_nrmse([(one.outputs, model.simulate(one.inputs)) for one in validation], washout)
        if math.isfinite(error) and (best is None or error < best[0]):
            best = error, model
    if best is None:
        return Baseline(None, "No linear model: every one that the subspace method gave is unstable.")
    states = len(best[1].A)
    return Baseline(best[1], f"Linear model of {states} state(s) from {longest.label}, by nfoursid, {rows} block rows.")


def _input_rank(u: Array, rows: int) -> int:
    """Return the rank of the block Hankel matrix of an input (time, nu), by singular values above 1e-6 of the first."""
    windows = np.lib.stride_tricks.sliding_window_view(u, rows, axis=0)
    values = np.linalg.svd(windows.reshape(len(windows), -1) / math.sqrt(len(windows)), compute_uv=False)
    return int((values > _RANK * values[0]).sum()) if values[0] > 0 else 0


def _economical(kind: Any) -> Any:
    """Return the library's class with the economy form of its last decomposition, which is made once for all orders."""
    utils = importlib.import_module("nfoursid.utils")

    class Economical(kind):
        whole: Any = None

        def _get_observability_matrix_decomposition(self) -> Any:
            if self.whole is None:
                hankels = [
                    utils.Utils.block_hankel_matrix(part, self.num_block_rows) for part in (self.u_array, self.y_array)
                ]
                matrix = self.R32 @ np.linalg.pinv(self.R22) @ np.concatenate(hankels)
                left, values, right = np.linalg.svd(matrix, full_matrices=False)
                self.whole = utils.Decomposition(left, np.diag(values), right)
            return utils.Utils.reduce_decomposition(self.whole, self.x_dim)

    return Economical
