"""The deterministic part of a policy: observation -> scaling -> cell -> linear head -> mean action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from robust_policies import checks

# The lazy face: a policy is made of actors.
from robust_policies import policies as face
from robust_policies.errors import InvalidValueError
from robust_policies.networks import Cell
from robust_policies.policies.folded import Folded
from robust_policies.policies.spaces import action_range, parameter_count


class Scaling(nn.Module):
    """The fixed affine map (x - offset) / scale, and a cast to the module's dtype.

    The offset is subtracted in the wider number type of x and offset, before the cast: far from zero, differences that
    float64 observations show would be lost by casting first. An offset that the module's type would move by more than
    1e-5 of the scale is kept in float64.
    """

    offset: Tensor | None
    scale: Tensor | None
    kind: Tensor

    def __init__(self, size: int, scale: Any = None, offset: Any = None) -> None:
        super().__init__()
        self.register_buffer("scale", fixed_vector("observation_scale", scale, size, positive=True))
        self.register_buffer(
            "offset", self._kept(fixed_vector("observation_offset", offset, size, dtype=torch.float64))
        )
        self.register_buffer("kind", torch.empty(0), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scaled inputs (..., size)."""
        if self.offset is not None and inputs.is_floating_point():
            inputs = (inputs.to(torch.promote_types(inputs.dtype, self.offset.dtype)) - self.offset).to(self.kind.dtype)
        elif self.offset is not None:
            inputs = inputs.to(self.kind.dtype) - self.offset.to(self.kind.dtype)
        else:
            inputs = inputs.to(self.kind.dtype)
        return inputs if self.scale is None else inputs / self.scale

    @property
    def exact(self) -> bool:
        """Whether the offset is kept in float64 because the default type cannot hold it well enough."""
        return self.offset is not None and self.offset.dtype != self.kind.dtype

    def _kept(self, offset: Tensor | None) -> Tensor | None:
        if offset is None:
            return None
        rounded = offset.to(torch.get_default_dtype())
        unit = 1.0 if self.scale is None else self.scale.double()
        return offset if bool(((rounded.double() - offset).abs() > 1e-5 * unit).any()) else rounded


class ScaledCell(nn.Module):
    """A cell behind a `Scaling`.

    It has the attributes sb3-contrib reads of an LSTM (`input_size`, `num_layers`, `hidden_size`); `hidden_size` is the
    width of the state sb3-contrib stores, at least the cell's: actor and critic share one width there.
    `with_inputs` says that a shared critic reads the scaled inputs beside the cell's output.
    """

    num_layers = 1

    def __init__(self, cell: Cell, scaling: Scaling) -> None:
        super().__init__()
        self.cell = cell
        self.scaling = scaling
        self.input_size = cell.input_size
        self.hidden_size = cell.state_size
        self.with_inputs = False
        self._watched = tuple(cell.parameters())
        self._cached: tuple[Any, Any] | None = None
        self._fixed: tuple[Any, Any] | None = None
        self.register_load_state_dict_post_hook(_watch_again)

    def explicit(self) -> Any:
        """Return the cell's explicit arrays; without gradients they are computed once per parameter value.

        In-place updates raise a tensor's version counter and moves change its address. Writes through `.data` do
        neither, so switching to training mode forgets the arrays too.
        """
        if torch.is_grad_enabled():
            return self.cell.explicit()
        key = [(parameter._version, parameter.data_ptr()) for parameter in self._watched]
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, self.cell.explicit())
        return self._cached[1]

    def train(self, mode: bool = True) -> ScaledCell:
        """Return this module in training or evaluation mode; see `explicit` for what it forgets."""
        if mode:
            self._cached = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> ScaledCell:
        super()._apply(fn, recurse)
        _watch_again(self)
        return self

    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output (batch, ny), next state (batch, nx)) for raw inputs (batch, nu)."""
        explicit = self.explicit()
        if torch.is_grad_enabled():
            return self.cell.step(explicit, self.scaling(inputs), state)
        if self._fixed is None or self._fixed[0] is not explicit:
            self._fixed = (explicit, self.cell.fixed_step(explicit))
        return self._fixed[1](self.scaling(inputs), state)

    def run(self, inputs: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (outputs (time, batch, ny), final state) for raw inputs (time, batch, nu)."""
        return self.cell.run(self.explicit(), self.scaling(inputs), state, starts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None, "_fixed": None}


def _watch_again(module: ScaledCell, _: Any = None) -> None:
    """Look the cell's parameters up again: moving or loading a module may put other tensors in their place."""
    module._watched = tuple(module.cell.parameters())
    module._cached = None


class MeanHead(nn.Module):
    """From the cell's output to the mean action (or logits): a linear map or none, tanh if `squash`, scale and offset.

    The fixed scale multiplies, then the fixed offset is added. `output_size` is how many numbers it gives, na: as many
    as it reads where it has no linear map.
    """

    scale: Tensor | None
    offset: Tensor | None

    def __init__(
        self,
        input_size: int,
        output_size: int,
        linear: bool,
        scale: Any = None,
        offset: Any = None,
        *,
        squash: bool = False,
    ) -> None:
        super().__init__()
        self.squash = squash
        self.output_size = output_size if linear else input_size
        self.linear = nn.Linear(input_size, output_size) if linear else None
        self.register_buffer("scale", fixed_vector("action_scale", scale, output_size))
        self.register_buffer("offset", fixed_vector("action_offset", offset, output_size))
        if self.linear is not None:
            nn.init.orthogonal_(self.linear.weight, 0.01)
            nn.init.zeros_(self.linear.bias)

    def forward(self, outputs: Tensor) -> Tensor:
        """Return the mean action (..., na) of the cell's outputs (..., ny)."""
        if self.linear is not None:
            outputs = self.linear(outputs)
        if self.squash:
            outputs = outputs.tanh()
        outputs = outputs if self.scale is None else outputs * self.scale
        return outputs if self.offset is None else outputs + self.offset


def mean_head(space: spaces.Space, inputs: int, linear: bool, scale: Any = None, offset: Any = None) -> MeanHead:
    """Return the head of a policy that acts in `space`, reading `inputs` numbers.

    Where neither scale nor offset is given and the space is a finite Box that is not symmetric about 0 (a pump's 0 to
    5 V), they are half of its range and its middle, so that an output of size one reaches the limits; for a symmetric
    one they are 1 and 0. Where an offset alone is given, the scale is half of a finite Box's range; where a scale alone
    is given, the offset is 0. Weights that were stored without scale and offset are loaded as they were.
    """
    known, derived = action_range(space), scale is None
    if known is not None and derived and (offset is not None or known[1].any()):
        scale = known[0]
        offset = known[1] if offset is None else offset
    head = MeanHead(inputs, parameter_count(space), linear, scale, offset)
    if derived:
        head.register_load_state_dict_pre_hook(_without_range)
    return head


def _without_range(head: MeanHead, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Drop a scale and an offset that follow from the space where stored weights were trained without them."""
    if f"{prefix}scale" not in state and f"{prefix}offset" not in state:
        head.scale = head.offset = None


class FrozenNormalizer(nn.Module):
    """The statistics of a VecNormalize at one moment: clamp((observation - mean) / std, -clip, clip), in float64."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Any, std: Any, clip: float) -> None:
        super().__init__()
        self.clip = checks.finite_float("clip", clip, above=0.0)
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64).flatten().clone())
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float64).flatten().clone())

    def forward(self, observations: Tensor) -> Tensor:
        """Return normalised observations (..., nu)."""
        return ((observations.to(self.mean.dtype) - self.mean) / self.std).clamp(-self.clip, self.clip)


class Actor(nn.Module):
    """Raw observations -> mean actions: optional frozen normaliser, scaled cell, head. Differentiable throughout."""

    def __init__(self, body: ScaledCell, head: MeanHead, normalizer: FrozenNormalizer | None = None) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.normalizer = normalizer

    @property
    def cell(self) -> Cell:
        """The recurrent cell."""
        return self.body.cell

    def folded(self) -> Folded:
        """Return the maps directly around the cell, as certificates read them."""
        count, scaling, head = self.cell.input_size, self.body.scaling, self.head
        return Folded(
            np.ones(count) if scaling.scale is None else _double(scaling.scale),
            np.zeros(count) if scaling.offset is None else _double(scaling.offset),
            np.eye(self.cell.output_size) if head.linear is None else _double(head.linear.weight),
            None if head.scale is None else _double(head.scale),
            np.zeros(head.output_size) if head.offset is None else _double(head.offset),
        )

    def forward(
        self, observations: Tensor, state: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (mean actions (time, batch, na), final state (batch, nx)) for raw observations (time, batch, nu).

        `starts` (time, batch) bool resets the state to the initial state before that step. Raises ShapeError.
        """
        checks.shape("observations", observations, (None, None, self.cell.input_size))
        time, batch = observations.shape[:2]
        state = self.cell.initial_state(batch) if state is None else state
        checks.shape("state", state, (batch, self.cell.state_size))
        if starts is not None:
            checks.shape("starts", starts, (time, batch))
        outputs, state = self.body.run(self.normalized(observations), state, starts)
        return self.head(outputs), state

    def step(self, observations: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mean action (batch, na), next state (batch, nx)) for raw observations (batch, nu)."""
        outputs, state = self.body.step(self.normalized(observations), state)
        return self.head(outputs), state

    def deployed(self, observation_space: spaces.Space, action_space: spaces.Space) -> Any:
        """Return the `DeployedPolicy` that this actor is the whole of, for an environment with these spaces.

        What it reads is what the environment gives.
        """
        return face.DeployedPolicy(self, observation_space, action_space, raw=True)

    def normalized(self, observations: Tensor) -> Tensor:
        """Return the observations (..., nu) after the frozen normaliser, if there is one.

        What it gives is rounded to the cell's number type, as Stable-Baselines3 rounds it before the policy reads it.
        """
        if self.normalizer is None:
            return observations
        return self.normalizer(observations).to(self.body.scaling.kind.dtype)


def _double(value: Tensor) -> np.ndarray:
    return value.detach().cpu().double().numpy()


def fixed_vector(
    name: str, value: Any, size: int, *, positive: bool = False, dtype: torch.dtype | None = None
) -> Tensor | None:
    """Return a number or a list of `size` numbers as a vector of that size; None stays None."""
    if value is None:
        return None
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | Tensor | int | float):
        value = getattr(value, "tolist", lambda: value)()
    try:
        vector = torch.as_tensor(value, dtype=dtype or torch.get_default_dtype()).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidValueError(f"{name} is {value!r}; expected a number or a list of {size} numbers.") from error
    if vector.ndim == 0:
        vector = vector.expand(size).clone()
    checks.shape(name, vector, (size,))
    checks.finite_tensor(name, vector)
    if positive and bool((vector <= 0).any()):
        raise InvalidValueError(f"{name} is {vector.tolist()}; expected positive numbers.")
    return vector
