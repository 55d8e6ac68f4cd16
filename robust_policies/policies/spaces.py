"""Action and observation spaces of a deployed policy: from numbers to actions, and to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robust_policies.errors import CorruptFileError, InvalidValueError, UnknownNameError
from robust_policies.policies.observations import choices_of

ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def parameter_count(space: spaces.Space) -> int:
    """Return how many numbers an actor gives for `space`: the mean of a Box, else all logits."""
    if not isinstance(space, ACTION_SPACES):
        names = ", ".join(kind.__name__ for kind in ACTION_SPACES)
        raise InvalidValueError(f"The action space is a {type(space).__name__}; expected one of {names}.")
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
    if deterministic:
        return given(space, likeliest(space, numbers)).cpu().numpy()
    if isinstance(space, spaces.MultiBinary):
        return torch.distributions.Bernoulli(logits=numbers).sample().cpu().numpy().reshape(-1, *space.shape)
    firsts, widths = choices_of(space)
    columns = [torch.distributions.Categorical(logits=logits).sample() for logits in numbers.split(widths, dim=-1)]
    return given(space, torch.stack(columns, -1) + numbers.new_tensor(firsts)).cpu().numpy()


def likeliest(space: spaces.Space, numbers: Tensor) -> Tensor:
    """Return the most likely choices (batch, k) of logits (batch, n), in the numbers' dtype: what `given` takes.

    Ties are decided as Stable-Baselines3 decides them, on the probabilities.
    """
    if isinstance(space, spaces.MultiBinary):
        return numbers.sigmoid().round()
    firsts, widths = choices_of(space)
    # As torch's Categorical computes them from logits.
    columns = [
        torch.softmax(logits - logits.logsumexp(-1, keepdim=True), -1).argmax(-1)
        for logits in numbers.split(widths, dim=-1)
    ]
    return torch.stack(columns, -1) + numbers.new_tensor(firsts)


def given(space: spaces.Space, actions: Tensor) -> Tensor:
    """Return actions (batch, k) as an environment takes them, (batch, *space.shape): whole numbers for choices."""
    shaped = actions.reshape(len(actions), *(space.shape or ()))
    return shaped.long() if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else shaped


def one_hot(space: spaces.Space, numbers: Tensor) -> Tensor:
    """Return the most likely choices of logits (..., n) as vectors (..., n) of 0 and 1."""
    if isinstance(space, spaces.MultiBinary):
        return numbers.sigmoid().round()
    pieces = numbers.split(choices_of(space)[1], dim=-1)
    return torch.cat(
        [torch.nn.functional.one_hot(piece.argmax(-1), piece.shape[-1]).to(numbers.dtype) for piece in pieces], -1
    )


def limits(space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds (n,) of an actor's numbers: those of a Box; logits have none."""
    if isinstance(space, spaces.Box):
        return space.low.flatten(), space.high.flatten()
    free = np.full(parameter_count(space), np.inf)
    return -free, free


def gaps(space: spaces.Space, numbers: Tensor) -> Tensor:
    """Return how far the logits (..., n) are from another choice (...): the least over all choices.

    Of a choice it is the best logit minus the second, of a bit the logit's size.
    """
    if isinstance(space, spaces.MultiBinary):
        return numbers.abs().amin(-1)
    found = []
    for piece in numbers.split(choices_of(space)[1], dim=-1):
        if piece.shape[-1] == 1:
            found.append(torch.full_like(piece[..., 0], torch.inf))
            continue
        best = piece.topk(2, dim=-1).values
        found.append(best[..., 0] - best[..., 1])
    return torch.stack(found, -1).amin(-1)


def short(space: spaces.Space) -> str:
    """Return how messages call a space: without its bounds."""
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(f'{key}: {short(part)}' for key, part in space.spaces.items())})"
    return f"Box of shape {space.shape}" if isinstance(space, spaces.Box) else str(space)


def different(one: spaces.Space, other: spaces.Space) -> bool:
    """Return whether the numbers of two spaces differ in kind or shape; the bounds of a Box may differ."""
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        parts = one.spaces, other.spaces
        return set(parts[0]) != set(parts[1]) or any(different(parts[0][key], parts[1][key]) for key in parts[0])
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        return one.shape != other.shape
    return one != other


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """Return a description of a Box, Discrete, MultiDiscrete, MultiBinary, or Dict of these, that JSON can hold."""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "entries": [[key, space_to_json(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Box):
        bounds = {"low": _bounds(space.low), "high": _bounds(space.high)}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        shifted = {"start": space.start.tolist()} if np.any(space.start) else {}
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), **shifted}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else [int(n) for n in space.n]}
    raise InvalidValueError(
        f"A {type(space).__name__} cannot be stored; expected Box, Discrete, MultiDiscrete, MultiBinary or a Dict of "
        "these."
    )


def space_from_json(content: Any) -> spaces.Space:
    """Return the space `space_to_json` described; raises UnknownNameError or CorruptFileError."""
    if not isinstance(content, Mapping) or "type" not in content:
        raise CorruptFileError(
            f"A space is stored as {content!r}; expected an object with a 'type'. Save the policy again."
        )
    known = {"Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict"}
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
        if kind == "Dict":
            # A sequence keeps its order; a plain dict would be sorted.
            return spaces.Dict([(str(key), space_from_json(part)) for key, part in content["entries"]])
        if kind == "MultiDiscrete":
            return spaces.MultiDiscrete(content["nvec"], start=content.get("start"))
        return spaces.MultiBinary(content["n"])
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise CorruptFileError(f"The stored {kind} space is not whole ({error!r}); save the policy again.") from error


def _bounds(values: np.ndarray) -> list[float | str]:
    """Return the entries in C order; JSON has no infinity, so those are the strings "inf" and "-inf"."""
    return [value if np.isfinite(value) else str(value) for value in map(float, values.flatten())]
