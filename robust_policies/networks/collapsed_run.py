"""An R2DN or a REN with arrays that stay as they are: compiled runs, and the gradient of the inputs alone."""

from __future__ import annotations

import importlib
from functools import cache

import numpy as np
import torch
from torch import Tensor

from robust_policies.networks.compiled import Collapsed, _blocks, applies

# What is made for an attack takes more steps than this.
_MANY = 4096
Array = np.ndarray


class CollapsedRun:
    """The loop of `kernels` with fixed arrays, all of them (features, batch) with the batch last.

    Args:
        name: of the activation.
        step: the collapsed step of the cell.
    """

    def __init__(self, name: str, step: Collapsed) -> None:
        # They load numba.
        kernels = importlib.import_module("robust_policies.networks.kernels")
        self._forward = kernels.forward
        self._backward = importlib.import_module("robust_policies.networks.input_kernels").input_gradient
        P, c, B, Q, R, d, *others = (
            np.ascontiguousarray(one.detach().numpy()) for one in (*step[:6], *step.weights, *step.biases)
        )
        count = len(step.weights)
        weights, biases = (
            np.concatenate([one.ravel() for one in part]) if part else P[:0, 0]
            for part in (others[:count], others[count:])
        )
        self.nx, self.ny, self.dtype = B.shape[0], len(d), P.dtype
        self.nu, first = P.shape[1] - self.nx, len(P) - self.nx
        kind = kernels.kind_of(name, P.dtype)
        blocks = _blocks((first, *map(len, step.biases)), bool(step.biases) or not step.weights)
        self.neurons = first + len(biases)
        self._ahead = P, c, B, Q, R, d, weights, biases, blocks
        self._back = kind, self.nu, *(np.ascontiguousarray(one.T) for one in (P, B, Q, R)), weights, blocks
        self._kind = kind

    def forward(self, inputs: Array, state: Array) -> tuple[Array, Array]:
        """Return outputs (time, ny, batch) and what `input_gradient` needs, (time, neurons, batch).

        `state` (nx, batch) becomes the final one; inputs are (time, nu, batch), without gaps in memory.
        """
        time, _, batch = inputs.shape
        S = np.empty((time, self.nx + self.nu, batch), self.dtype)
        H = np.empty((time, self.neurons, batch), self.dtype)
        return self._forward(self._kind, np.empty((0, batch), self.dtype), inputs, state, *self._ahead, S, H), H

    def empty(self, time: int, batch: int) -> Array:
        """Return an array (time, neurons, batch) for what `step` keeps."""
        return np.empty((time, self.neurons, batch), self.dtype)

    def step(self, inputs: Array, state: Array, kept: Array) -> Array:
        """Return outputs (ny, batch) of inputs (nu, batch); `state` (nx, batch) becomes the next one.

        `kept` (neurons, batch) gets what `input_gradient` needs of this step.
        """
        S = np.empty((1, self.nx + self.nu, inputs.shape[1]), self.dtype)
        never = np.empty((0, inputs.shape[1]), self.dtype)
        return self._forward(self._kind, never, inputs[None], state, *self._ahead, S, kept[None])[0]

    def input_gradient(
        self, hidden: Array, outputs: Array, moved: Array | None = None, sensor: Array | None = None
    ) -> Array:
        """Return the gradient (time, nu, batch) of the inputs.

        Args:
            hidden: what `forward` returned, of all steps.
            outputs: (time, ny, batch), the objective's slopes in the outputs; with a plant (time, m + ny, batch), in
                its states and the outputs.
            moved: (time, m, m + ny, batch), the plant's slopes as `input_kernels` has them; None: there is no plant.
            sensor: (time, nu, m, batch), of what the cell reads.
        """
        time, _, batch = hidden.shape
        if moved is None or sensor is None:
            moved = np.empty((time, 0, self.ny, batch), self.dtype)
            sensor = np.empty((time, self.nu, 0, batch), self.dtype)
        return self._backward(*self._back, hidden, outputs, moved, sensor, np.zeros((self.nx, batch), self.dtype))


def collapsed_run(name: str, step: Collapsed) -> CollapsedRun | None:
    """Return the compiled run of a step with the activation `name`, None where there is no compiler or it is too wide.

    The arrays of the step are as `Collapsed` says, on a CPU in float32 or float64 without gradients.
    """
    nx = step.B.shape[0]
    probe = step.P.new_empty((_MANY, 1, step.P.shape[1] - nx))
    if not applies(name, probe, step.P.new_empty((1, nx)), step):
        return None
    return CollapsedRun(name, step) if _works(name, step.P.dtype) else None


@cache
def _works(name: str, dtype: torch.dtype) -> bool:
    """Return whether the loops compile and run, here where nothing is lost yet."""
    one = torch.ones(1, 1, dtype=dtype)
    step = Collapsed(one.expand(2, 2), one[0].expand(2), one, one.expand(1, 2), one, one[0], (), ())
    try:
        run = CollapsedRun(name, step)
        outputs, hidden = run.forward(np.ones((2, 1, 1), run.dtype), np.ones((1, 1), run.dtype))
        run.input_gradient(hidden, outputs)
    except Exception:  # whatever ails the compiler: PyTorch needs none
        return False
    return True


def columns(values: Tensor) -> Array:
    """Return numbers (..., batch, n) as an array (..., n, batch) without gaps in memory."""
    return np.ascontiguousarray(values.detach().mT.numpy())


def rows(values: Array) -> Tensor:
    """Return an array (..., n, batch) as a tensor (..., batch, n), sharing memory."""
    return torch.from_numpy(values).mT
