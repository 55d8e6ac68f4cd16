"""Frozen dataclasses of numbers as JSON and tensors, and back: nothing is lost and nothing is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, cast, get_type_hints

import numpy as np
import torch
from torch import Tensor

from robust_policies.errors import CorruptFileError

Record = TypeVar("Record")


def to_parts(record: Any, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what JSON holds of a dataclass, and its arrays and floats as float64 tensors named `name.field`."""
    content: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for field in fields(record):
        value, key = getattr(record, field.name), f"{name}.{field.name}"
        if is_dataclass(value):
            content[field.name], inner = to_parts(value, key)
            tensors |= inner
        elif isinstance(value, (np.ndarray, float)):
            tensors[key] = torch.tensor(np.asarray(value, dtype=np.float64, order="C"))
        else:
            content[field.name] = list(value) if isinstance(value, tuple) else value
    return content, tensors


def from_parts(kind: type[Record], content: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> Record:
    """Return the record of which `to_parts` made the parts.

    `tensors` have the shapes that the record's arrays had, () for a number. Raises CorruptFileError where a field
    without a default lacks.
    """
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(cast(Any, kind)):
        key = f"{name}.{field.name}"
        if is_dataclass(hints[field.name]):
            inner: Any = hints[field.name]
            values[field.name] = from_parts(inner, content[field.name], tensors, key)
        elif key in tensors:
            array = tensors[key].numpy()
            values[field.name] = array if array.ndim else float(array)
        elif field.name in content:
            value = content[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
        elif field.default is not MISSING:
            values[field.name] = field.default
        else:
            raise CorruptFileError(f"{key} is missing in the policy's files; save the policy again.")
    return kind(**values)
