"""Action and observation spaces of a deployed policy: from numbers to actions, and to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robust_policies.errors import CorruptFileError, InvalidValueError, UnknownNameError

ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def parameter_count(space: spaces.Space) -> int:
    """Return how many numbers an actor gives for `space`: the mean of a Box, else all logits."""
    if not isinstance(space, ACTION_SPACES):
        names = ", ".join(kind.__name__ for kind in ACTION_SPACES)
        raise InvalidValueError(f"The action space is {space}; expected one of {names}.")
    return int(spaces.flatdim(space))


def action_range(space: spaces.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """Return half of the range (na,) of a finite Box and its middle (na,), in float64; None for another space."""
    if not isinstance(space, spaces.Box):
        return None
    low, high = (bound.astype(np.float64).flatten() for bound in (space.low, space.high))
    return ((high - low) / 2, (high + low) / 2) if np.isfinite((low, high)).all() else None


def choose(space: spaces.Space, numbers: Tensor, log_std: Tensor | None, deterministic: bool) -> np.ndarray:
    """Return actions (batch, *space.shape) for an actor's numbers (batch, n), as Stable-Baselines3 chooses them.

    `log_std` is (n,). Raises InvalidValueError where a sample is asked for and there is none.
    """
    if isinstance(space, spaces.Box):
        if not deterministic:
            if log_std is None:
                raise InvalidValueError("This policy has no stored exploration noise; use deterministic=True.")
            numbers = torch.distributions.Normal(numbers, log_std.exp().expand_as(numbers)).rsample()
        actions = numbers.cpu().numpy().reshape(-1, *space.shape)
        return np.clip(actions, space.low, space.high)
    if isinstance(space, spaces.MultiBinary):
        flips = torch.distributions.Bernoulli(logits=numbers)
        return (flips.probs.round() if deterministic else flips.sample()).cpu().numpy().reshape(-1, *space.shape)
    if isinstance(space, spaces.Discrete):
        widths = [int(space.n)]
    else:
        widths = [int(n) for n in cast(spaces.MultiDiscrete, space).nvec.flatten()]
    columns = []
    for logits in numbers.split(widths, dim=-1):
        chances = torch.distributions.Categorical(logits=logits)
        columns.append(chances.probs.argmax(-1) if deterministic else chances.sample())
    return torch.stack(columns, -1).cpu().numpy().reshape(-1, *(space.shape or ()))


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """Return a description of a Box, Discrete, MultiDiscrete or MultiBinary space that JSON can hold."""
    if isinstance(space, spaces.Box):
        bounds = {"low": _bounds(space.low), "high": _bounds(space.high)}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else [int(n) for n in space.n]}
    raise InvalidValueError(
        f"The space {space} cannot be stored; expected Box, Discrete, MultiDiscrete or MultiBinary."
    )


def space_from_json(content: Any) -> spaces.Space:
    """Return the space `space_to_json` described; raises UnknownNameError or CorruptFileError."""
    if not isinstance(content, Mapping) or "type" not in content:
        raise CorruptFileError(
            f"A space is stored as {content!r}; expected an object with a 'type'. Save the policy again."
        )
    known = {"Box", "Discrete", "MultiDiscrete", "MultiBinary"}
    kind = content["type"]
    if kind not in known:
        raise UnknownNameError.among("space", str(kind), known)
    try:
        if kind == "Box":
            shape = tuple(int(n) for n in content["shape"])
            low, high = (np.array([float(x) for x in content[key]]).reshape(shape) for key in ("low", "high"))
            dtype: Any = np.dtype(content["dtype"])
            return spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype)
        if kind == "Discrete":
            return spaces.Discrete(content["n"], start=content["start"])
        return spaces.MultiDiscrete(content["nvec"]) if kind == "MultiDiscrete" else spaces.MultiBinary(content["n"])
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise CorruptFileError(f"The stored {kind} space is not whole ({error!r}); save the policy again.") from error


def _bounds(values: np.ndarray) -> list[float | str]:
    """Return the entries in C order; JSON has no infinity, so those are the strings "inf" and "-inf"."""
    return [value if np.isfinite(value) else str(value) for value in map(float, values.flatten())]
