"""Linear models with more states: inputs that arrive late, and integrators of outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy

from robust_policies import checks
from robust_policies.control.linear_model import Array, LinearModel
from robust_policies.errors import InvalidValueError


def with_input_delay(model: LinearModel, steps: int = 1) -> LinearModel:
    """Return the model whose inputs act `steps` time steps later; D becomes zero, which is how feedthrough is removed.

    The state (x, u(t-1), ..., u(t-steps)) keeps the inputs under way, with all their modes at 0:
    x+ = A x + B u(t-steps), y = C x + D u(t-steps).

    Raises:
        InvalidValueError: `steps` is not a whole number of at least 1.
    """
    steps = checks.positive_int("steps", steps)
    n, m, under_way = model.n, model.m, model.m * steps
    A = np.zeros((n + under_way, n + under_way))
    A[:n, :n] = model.A
    A[:n, -m:] = model.B
    A[n + m :, n:-m] = np.eye(under_way - m)
    B = np.zeros((n + under_way, m))
    B[n : n + m] = np.eye(m)
    C = np.hstack((model.C, np.zeros((model.p, under_way))))
    C[:, -m:] += model.D
    late = tuple(f"{name}, {step} step(s) ago" for step in range(1, steps + 1) for name in model.input_names)
    return replace(
        model,
        A=A,
        B=B,
        C=C,
        D=np.zeros((model.p, model.m)),
        Bw=None if model.Bw is None else np.vstack((model.Bw, np.zeros((under_way, model.Bw.shape[1])))),
        x0=np.concatenate((model.x0, np.tile(model.u0, steps))),
        W=_padded(model.W, under_way),
        Q=_padded(model.Q, under_way),
        state_names=(*model.state_names, *late),
        state_range=None if model.state_range is None else np.concatenate((model.state_range, np.ones(under_way))),
        origin=f"{model.origin}; the input {steps} step(s) late",
    )


def with_integral_action(model: LinearModel, outputs: tuple[int, ...] | list[int]) -> LinearModel:
    """Return the model with an integrator of each of `outputs` (indices) as a further state and output.

    s+ = s + time_step y_i, and s is measured, as the controller computes it itself from what it measures. A regulator
    that weighs s brings y_i to its equilibrium value against any constant disturbance. The task's own cost says nothing
    of s, so the default weights add what sees it.

    Raises:
        InvalidValueError: an index is no output or named twice, or the model has D != 0, see `with_input_delay`.
    """
    chosen = list(outputs)
    if (
        not chosen
        or len(set(chosen)) != len(chosen)
        or not all(isinstance(index, int | np.integer) and 0 <= index < model.p for index in chosen)
    ):
        raise InvalidValueError(
            f"outputs is {outputs!r}; expected different indices of the {model.p} output(s), from 0."
        )
    if np.any(model.D):
        raise InvalidValueError(
            "The model has D != 0; expected D = 0 before integral action: use with_input_delay first."
        )
    n, k = model.n, len(chosen)
    A = np.asarray(scipy.linalg.block_diag(model.A, np.eye(k)))
    A[n:, :n] = model.time_step * model.C[chosen]
    C = scipy.linalg.block_diag(model.C, np.eye(k))
    noise = None if model.V is None else model.time_step**2 * model.V[np.ix_(chosen, chosen)]
    names = [model.output_names[i] for i in chosen]
    integrals = tuple(f"integral of {name}" for name in names)
    return replace(
        model,
        A=A,
        B=np.vstack((model.B, np.zeros((k, model.m)))),
        C=C,
        D=np.zeros((model.p + k, model.m)),
        Bw=None if model.Bw is None else np.vstack((model.Bw, np.zeros((k, model.Bw.shape[1])))),
        x0=np.concatenate((model.x0, np.zeros(k))),
        y0=np.concatenate((model.y0, np.zeros(k))),
        W=None if model.W is None else scipy.linalg.block_diag(model.W, np.zeros((k, k)) if noise is None else noise),
        V=None if noise is None else scipy.linalg.block_diag(model.V, noise),
        Q=_padded(model.Q, k),
        state_names=(*model.state_names, *integrals),
        output_names=(*model.output_names, *integrals),
        state_range=None if model.state_range is None else np.concatenate((model.state_range, np.ones(k))),
        origin=f"{model.origin}; with the integral(s) of {', '.join(names)}",
    )


def _padded(weight: Array | None, size: int) -> Array | None:
    return None if weight is None else np.asarray(scipy.linalg.block_diag(weight, np.zeros((size, size))))
