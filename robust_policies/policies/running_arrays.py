"""The arrays that run, as they are stored beside the parameters they come from: for `robust_policies.runtime`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robust_policies.errors import CorruptFileError

PREFIX = "runtime."
# What a base controller runs with.
BASE_ARRAYS = (
    *("A", "B", "C", "K", "L", "M", "u0", "y0", "low", "high", "idle"),
    *("innovation_scale", "input_scale", "angle", "measured", "exogenous", "youla_high"),
)


def check_arrays(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], names: Any, given: Any, source: Any
) -> None:
    """Raise CorruptFileError unless stored arrays have the names and shapes of those that a policy runs.

    Args:
        expected: its own, of any shapes, by name.
        tensors: all that are stored.
        names: what of the description says which array is which, as it should be.
        given: the same as it is stored.
        source: the file, for the message.
    """
    stored = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}
    same = stored.keys() == expected.keys() and all(
        stored[name].shape == value.shape and stored[name].dtype == value.dtype for name, value in expected.items()
    )
    if not same or names != given:
        raise CorruptFileError(f"{source} holds arrays to run that are not those of its policy; save the policy again.")


def named_arrays(
    explicit: Any, stored: Mapping[str, Tensor], shared: Mapping[int, str]
) -> tuple[Any, dict[str, Tensor]]:
    """Return explicit arrays as names of tensors, nested as they are, and the tensors that are not stored already.

    Args:
        explicit: what a cell's `explicit` returns, such as A (nx, nx), B1 (nx, nv).
        stored: the tensors of any shapes, by name, that are stored in any case.
        shared: the name of each of them by the address of the memory that it is in.
    """
    found: dict[str, Tensor] = {}

    def named(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            name = shared.get(value.data_ptr(), "")
            if name and stored[name].shape == value.shape and stored[name].dtype == value.dtype:
                return name
            found[f"{PREFIX}{path}"] = value.detach().cpu().contiguous().clone()
            return f"{PREFIX}{path}"
        if hasattr(value, "_asdict"):
            return {key: named(entry, f"{path}.{key}".lstrip(".")) for key, entry in value._asdict().items()}
        if isinstance(value, tuple | list):
            return [named(entry, f"{path}.{index}".lstrip(".")) for index, entry in enumerate(value)]
        return None

    return named(explicit, ""), found
