"""The interface all recurrent cells share: direct parameters -> explicit matrices -> run."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.errors import InvalidValueError, NotCertifiableError, ShapeError
from robust_policies.networks.compiled import Collapsed
from robust_policies.networks.guarantees import Contracting, Guarantee, Lipschitz
from robust_policies.networks.parallel import checked_mode, parallel_run
from robust_policies.networks.rows import Sizes

_ORDER = {"step": ("explicit", "input", "state"), "run": ("explicit", "inputs", "state", "starts")}


class FixedStep(ABC):
    """A cell's step whose arrays stay as they are, and its gradient without autograd's bookkeeping."""

    @abstractmethod
    def __call__(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output (batch, ny), next state (batch, nx)), differentiable in input (batch, nu) and state."""

    @abstractmethod
    def forward(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Return output, next state, what `backward` needs, without a graph; input (batch, nu), state (batch, nx)."""

    @abstractmethod
    def backward(self, kept: Any, output: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of input (batch, nu) and state (batch, nx) from those of output and next state."""


class Cell(nn.Module, ABC):
    """A recurrent model x+ = f(x, u), y = g(x, u) with one state tensor.

    A cell owns free ("direct") parameters. `explicit()` maps them to the arrays that run, differentiably and once per
    parameter value; `step` and `forward` use only those. `guarantee` is None where nothing is promised.

    Attributes:
        input_size, state_size, output_size: widths nu, nx, ny.
        guarantee: what holds by construction, or None.
        rate: upper bound of the contraction rate in (0, 1], or None.
    """

    name: ClassVar[str]
    guarantee: Guarantee | None = None
    rate: float | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a cell whose arguments are in another order: where nx = nu nothing else would notice."""
        super().__init_subclass__(**options)
        for name, wanted in _ORDER.items():
            found = tuple(inspect.signature(cls.__dict__[name]).parameters)[1:] if name in cls.__dict__ else wanted
            if found != wanted:
                raise InvalidValueError(
                    f"{cls.__name__}.{name} takes ({', '.join(found)}); expected ({', '.join(wanted)}), in this order."
                )

    def __init__(self, input_size: int, state_size: int, output_size: int, *, memoryless: bool = False) -> None:
        super().__init__()
        self.input_size = checks.positive_int("input_size", input_size)
        self.state_size = checks.positive_int("state_size", state_size, minimum=0 if memoryless else 1)
        self.output_size = checks.positive_int("output_size", output_size)

    @abstractmethod
    def explicit(self) -> Any:
        """Return the arrays that run, a NamedTuple; cacheable while the parameters do not change."""

    @abstractmethod
    def step(self, explicit: Any, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output (batch, ny), next state (batch, nx)) for an input (batch, nu) and state (batch, nx)."""

    @abstractmethod
    def run(self, explicit: Any, inputs: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (outputs (time, batch, ny), final state (batch, nx)) as `unroll` does, by the fastest way there is.

        The inputs are (time, batch, nu), the state (batch, nx), starts (time, batch) bool or None; all unchecked.
        """

    def run_now(self, inputs: Tensor, state: Tensor, starts: Tensor | None, way: Any = None) -> tuple[Tensor, Tensor]:
        """Return what `run` does with the arrays of the parameters as they are now; its other arguments, unchecked.

        The inputs are (time, batch, nu), the state (batch, nx), starts (time, batch) bool or None; `way` is what runs
        a cell that has `step_sizes`, None for the usual one.
        """
        return self.run(self.explicit(), inputs, state, starts)

    def fixed_step(self, explicit: Any) -> FixedStep | Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return `step` with arrays that stay as they are and have no gradient: (input, state) -> (output, state)."""
        return partial(self.step, explicit)

    def collapsed(self, explicit: Any) -> Collapsed | None:
        """Return the step with everything linear between two activations collapsed, None where it has no such form."""
        return None

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the constructor's keyword arguments, JSON-able."""

    @abstractmethod
    def zero_output_(self) -> Cell:
        """Set the parameters so that the output is zero whatever the input, the gradient not; return the cell."""

    @classmethod
    def designed(cls, gamma: float | None) -> Guarantee:
        """Return the guarantee that `make_cell(..., gamma=gamma)` asks of a new cell, contraction alone of None."""
        return Contracting() if gamma is None else Lipschitz(gamma)

    @property
    def gamma(self) -> float | None:
        """The certified incremental l2 gain, None where there is none."""
        return None

    def forward(
        self,
        inputs: Tensor,
        state: Tensor | None = None,
        starts: Tensor | None = None,
        *,
        parallel: str = "scan",
        tolerance: float = 1e-6,
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs (time, batch, ny) and the final state (batch, nx).

        Args:
            inputs: (time, batch, nu), time >= 1, of the parameters' dtype and device.
            state: (batch, nx); the initial state (zero) if None.
            starts: (time, batch) bool; where True the state is reset to the initial state before that step.
            parallel: "scan", one step after another; "chunks", pieces of time side by side (R2DN, REN); "auto",
                which measures both and takes the faster; or "picard", all steps at once in rounds (R2DN, any device;
                differentiable once).
            tolerance: by how much states of "chunks" and "picard" may differ from the scan's, relative to the largest.

        Raises:
            ShapeError: a shape, dtype or device does not fit.
            UnknownNameError, InvalidValueError: `parallel` or `tolerance`, or chunks that cannot be.
        """
        given = self._checked(inputs, state, starts)
        if checked_mode(parallel, tolerance) == "scan":
            return self.run_now(*given)
        return parallel_run(self, parallel, tolerance, *given)

    def step_sizes(self) -> Sizes | None:
        """Return the widths of the collapsed step, None where the cell has none that runs in parallel over time."""
        return None

    def trajectory(
        self, inputs: Tensor, state: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs (time, batch, ny) and all states (time, batch, nx): `states[t]` is the state after step t.

        The last of them is the final state of `forward`, whose arguments and errors these are. Differentiable too.
        """
        return self.run_states(self.explicit(), *self._checked(inputs, state, starts))

    def run_states(self, explicit: Any, inputs: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (outputs (time, batch, ny), states after each step (time, batch, nx)); unchecked, as `run`.

        The inputs are (time, batch, nu), the state (batch, nx), starts (time, batch) bool or None.
        """
        outputs, states = [], []
        for t in range(inputs.shape[0]):
            output, state = self.run(explicit, inputs[t : t + 1], state, None if starts is None else starts[t : t + 1])
            outputs.append(output)
            states.append(state)
        return torch.cat(outputs), torch.stack(states)

    def unroll(self, explicit: Any, inputs: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (outputs, final state) of `step` repeated: the plain path every faster one must equal; see `run`."""
        outputs = []
        for t in range(inputs.shape[0]):
            if starts is not None:
                state = torch.where(starts[t].unsqueeze(-1), torch.zeros_like(state), state)
            output, state = self.step(explicit, inputs[t], state)
            outputs.append(output)
        return torch.stack(outputs), state

    def _checked(
        self, inputs: Tensor, state: Tensor | None, starts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what `run` takes from what `forward` was given; raises ShapeError."""
        reference = self._reference()
        checks.shape("inputs", inputs, (None, None, self.input_size))
        time, batch = inputs.shape[:2]
        if time == 0:
            raise ShapeError("inputs holds no time step; expected (time, batch, nu) with time >= 1.")
        _same_kind("inputs", inputs, reference)
        if state is None:
            state = self.initial_state(batch)
        else:
            checks.shape("state", state, (batch, self.state_size))
            _same_kind("state", state, reference)
        if starts is not None:
            checks.shape("starts", starts, (time, batch))
            if starts.dtype != torch.bool or starts.device != reference.device:
                raise ShapeError(
                    f"starts is {starts.dtype} on {starts.device}; expected torch.bool on {reference.device}."
                )
        return inputs, state, starts

    def initial_state(self, batch_size: int) -> Tensor:
        """Return the initial state, zeros (batch, nx), in the parameters' dtype and device."""
        reference = self._reference()
        size = checks.positive_int("batch_size", batch_size)
        return torch.zeros(size, self.state_size, dtype=reference.dtype, device=reference.device)

    def metric(self) -> Tensor:
        """Return P (nx, nx) in float64 on the CPU: V(x) = x'P x is the storage function that proves the guarantee.

        Raises:
            NotCertifiableError: the cell has no guarantee.
        """
        raise NotCertifiableError(f"{type(self).__name__} has no contraction metric; use R2DN or REN.")

    def explicit64(self) -> Any:
        """Return `explicit()` computed in float64 on the CPU, without gradient: what a certificate is built from."""
        with torch.no_grad():
            return self.double_copy().explicit()

    def double_copy(self) -> Cell:
        """Return a copy of this cell in float64 on the CPU."""
        return copy.deepcopy(self).to(device="cpu", dtype=torch.float64)

    def config(self) -> dict[str, Any]:
        """Return the JSON-able description from which `cell_from_config` builds an equal cell, without its weights."""
        return {"type": self.name, **self.options()}

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return ", ".join(f"{key}={value!r}" for key, value in self.options().items())

    def _reference(self) -> Tensor:
        return next(self.parameters())


def _same_kind(name: str, value: Tensor, reference: Tensor) -> None:
    if value.dtype != reference.dtype or value.device != reference.device:
        raise ShapeError(
            f"{name} is {value.dtype} on {value.device}; expected {reference.dtype} on {reference.device}: "
            f"use {name}.to(...) or cell.to(...)."
        )


def hidden_widths(hidden_sizes: Any) -> tuple[int, ...]:
    """Return `hidden_sizes` as a tuple of positive ints; raise InvalidValueError otherwise."""
    if isinstance(hidden_sizes, str) or not hasattr(hidden_sizes, "__iter__"):
        raise InvalidValueError(f"hidden_sizes is {hidden_sizes!r}; expected a sequence of widths such as (32, 32).")
    return tuple(checks.positive_int("an entry of hidden_sizes", size) for size in hidden_sizes)
