"""Checks of input at the package's boundary. Each returns the checked value or raises a `UserError`."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch

from robust_policies.errors import DeviceError, InvalidValueError, NonFiniteError, ShapeError, UserError

SEEDS = 2**31
"""Seeds are whole numbers from 0 to below it."""
_MOST_SEEDS = 100_000

_LONGEST = 80


def positive_int(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an int of at least `minimum`; 1e5 is a whole number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise InvalidValueError(f"{name} is {value!r}; expected a whole number of at least {minimum}.")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is true or false, which what merely counts as one of them is not."""
    if not isinstance(value, bool):
        raise InvalidValueError(f"{name} is {value!r}; expected true or false.")
    return value


def finite_float(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> float:
    """Return `value` as a finite float with above < value, at_least <= value <= at_most."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    number = float(value) if real else math.nan
    if not math.isfinite(number) or not above < number or not at_least <= number <= at_most:
        wanted = [
            text
            for bound, text in ((above, f"> {above:g}"), (at_least, f">= {at_least:g}"), (at_most, f"<= {at_most:g}"))
            if math.isfinite(bound)
        ]
        raise InvalidValueError(f"{name} is {value!r}; expected a finite number {' and '.join(wanted)}".rstrip() + ".")
    return number


def finite_tensor(name: str, value: torch.Tensor) -> torch.Tensor:
    """Return `value` if all its entries are finite."""
    if not bool(torch.isfinite(value).all()):
        count = int((~torch.isfinite(value)).sum())
        raise NonFiniteError(
            f"{name} holds {count} NaN or infinite value(s) of {value.numel()}; expected finite numbers."
        )
    return value


def shape(name: str, value: Any, expected: tuple[int | None, ...]) -> None:
    """Raise unless `value.shape` matches `expected` (None matches any size)."""
    given = tuple(value.shape)
    if len(given) != len(expected) or any(e is not None and e != g for g, e in zip(given, expected, strict=True)):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise ShapeError(f"{name} has shape {given}; expected ({wanted}).")


def device(name: str | torch.device) -> torch.device:
    """Return the torch device `name`, or raise if this machine does not have it."""
    try:
        wanted = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"Device {name!r} is not one PyTorch knows; expected 'cpu', 'cuda' or 'cuda:N'.") from error
    if wanted.type not in ("cpu", "cuda", "mps") or (wanted.type == "mps" and not torch.backends.mps.is_available()):
        raise DeviceError(f"Device {str(name)!r} is not one that can be used here; expected 'cpu', 'cuda' or 'cuda:N'.")
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (wanted.index or 0) >= count:
            needed = f" (a driver for CUDA {torch.version.cuda} is needed)" if torch.version.cuda and not count else ""
            raise DeviceError(
                f"Device {str(name)!r} was asked for and PyTorch {torch.__version__} sees {count} CUDA device(s)"
                f"{needed}; use 'cpu'."
            )
    return wanted


def space_text(space: Any) -> str:
    """Return a Gymnasium space in a few words: bounds that differ would fill pages, so they are left out."""
    text = " ".join(str(space).split())
    if len(text) <= _LONGEST:
        return text
    keys = getattr(space, "spaces", None)
    inside = f"the keys {', '.join(map(str, keys))}" if keys else f"shape {space.shape} and dtype {space.dtype}"
    return f"{type(space).__name__} with {inside}"


def seed_list(name: str, text: str) -> list[int]:
    """Return the seeds that `text` lists, such as `0-4` or `0,3`."""
    expected = "expected such as 0-4 or 0,3"
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            begin, end = int(first), int(last if dash else first) + 1
            if end > SEEDS or end - begin > _MOST_SEEDS:
                raise InvalidValueError(f"{name} is {text!r}; {expected}, below 2^31, at most {_MOST_SEEDS}.")
            seeds += range(begin, end)
    except UserError:
        raise
    except ValueError as error:
        raise InvalidValueError(f"{name} is {text!r}; {expected}.") from error
    if not seeds:
        raise InvalidValueError(f"{name} is {text!r}, which names none; {expected}.")
    return seeds
