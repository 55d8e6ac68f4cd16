"""Tensors and optimizers on disk, without pickle, so that a computation goes on with the same rounding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

_LAYOUT = "@"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any shape by name; see `packed`."""
    # As bytes: the library's own way to a file does not say which error of the system ended it.
    path.write_bytes(packed(tensors))


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of tensors of any shape by name, each with the order of its dimensions in memory.

    That order decides how the library sums and vectorizes, hence the last bit of what is computed next.
    """
    content: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        order = sorted(range(tensor.ndim), key=lambda dimension: -tensor.stride(dimension))
        if not tensor.is_contiguous() and tensor.permute(order).is_contiguous():
            name, tensor = f"{name}{_LAYOUT}{','.join(map(str, order))}", tensor.permute(order)
        content[name] = tensor.contiguous().clone()
    return safetensors.torch.save(content)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file of `write_tensors`; raises SafetensorError if it is none."""
    return unpacked(path.read_bytes())


def unpacked(data: bytes) -> dict[str, Tensor]:
    """Return the tensors in the bytes that `packed` returned; raises SafetensorError if they are none."""
    found: dict[str, Tensor] = {}
    for name, tensor in safetensors.torch.load(data).items():
        name, _, layout = name.partition(_LAYOUT)
        if layout:
            order = [int(dimension) for dimension in layout.split(",")]
            tensor = tensor.permute([order.index(dimension) for dimension in range(tensor.ndim)])
        found[name] = tensor
    return found


def under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries whose names begin with `prefix.`, by the rest of their names."""
    return {name.removeprefix(f"{prefix}."): v for name, v in tensors.items() if name.startswith(f"{prefix}.")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimizer remembers of its parameters, as `INDEX.NAME`."""
    return {
        f"{index}.{name}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Let an optimizer go on from what `optimizer_tensors` returned, of the same shapes; its rates stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
