"""The arrays that run, as they are stored beside the parameters they come from: for `robust_policies.runtime`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

PREFIX = "runtime."
# What a base controller runs with.
BASE_ARRAYS = (
    *("A", "B", "C", "K", "L", "M", "u0", "y0", "low", "high", "idle"),
    *("innovation_scale", "input_scale", "angle", "measured", "exogenous", "youla_high"),
)


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
