"""The physical parameters of a batch of environments: one value for all or one each, prepared once, drawn at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch

from robust_policies import checks
from robust_policies.envs.plant import Params, Plant
from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError

Ranges = Mapping[str, tuple[float, float]]


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Make tensors without a graph that may be written or part of one later, even inside `torch.inference_mode()`."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class PhysicalParameters(MutableMapping[str, torch.Tensor]):
    """The physical parameters by name, checked when they are assigned.

        env.params["mass"] = 2.0                                   # all environments
        env.params["mass"] = torch.linspace(0.5, 2.0, num_envs)    # one value each

    A value has the nominal one's shape, or that with a leading dimension of `num_envs`. Assign a new value instead of
    changing one in place: what the plant computes from them, `prepared`, is kept until one is assigned.
    """

    def __init__(self, plant: Plant, num_envs: int, device: torch.device) -> None:
        self.plant, self.num_envs, self.device = plant, num_envs, device
        self.nominal = plant.nominal(device)
        self._values = dict(self.nominal)
        self._prepared: Params | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._values:
            raise self._unknown(name)
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = self.checked(name, value)
        self._prepared = None

    def __delitem__(self, name: str) -> None:
        """Return the parameter to its nominal value."""
        if name not in self.nominal:
            raise self._unknown(name)
        self._values[name] = self.nominal[name]
        self._prepared = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"PhysicalParameters({self._values})"

    @property
    def prepared(self) -> Params:
        """What the plant's functions take."""
        if self._prepared is None:
            with plain_tensors():
                self._prepared = self.plant.prepare(dict(self._values))
        return self._prepared

    def forget(self) -> None:
        """Compute `prepared` anew if it is more than tensors: the values have been set from outside."""
        if not isinstance(self._prepared, dict):
            self._prepared = None

    def of(self, row: int) -> dict[str, torch.Tensor]:
        """Return the physical parameters of one environment, of the nominal shapes."""
        nominal = self.nominal
        return {name: value[row] if value.ndim > nominal[name].ndim else value for name, value in self._values.items()}

    @plain_tensors()
    def checked(self, name: str, value: Any) -> torch.Tensor:
        """Return the value as a finite float64 tensor of the nominal shape or one for each environment."""
        if name not in self.nominal:
            raise self._unknown(name)
        try:
            # A copy: the caller's tensor may change later, and `prepared` would not know.
            tensor = torch.as_tensor(value, dtype=torch.float64, device=self.device).detach().clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ShapeError(f"parameter {name} is {value!r}; expected numbers ({error}).") from error
        shape = tuple(self.nominal[name].shape)
        if tuple(tensor.shape) not in {shape, (self.num_envs, *shape)}:
            raise ShapeError(
                f"parameter {name} has shape {tuple(tensor.shape)}; expected {shape} for all environments "
                f"or {(self.num_envs, *shape)}, one for each."
            )
        return checks.finite_tensor(f"parameter {name}", tensor)

    @plain_tensors()
    def assign_rows(self, values: Mapping[str, torch.Tensor], rows: torch.Tensor) -> None:
        """Set checked values for the environments `rows` only; those given densely are read at `rows`."""
        for name, value in values.items():
            each = self._each(name).clone()
            each[rows] = value[rows] if value.ndim > self.nominal[name].ndim else value
            self._values[name] = each
        self._prepared = None

    def _each(self, name: str) -> torch.Tensor:
        value, nominal = self._values[name], self.nominal[name]
        return value if value.ndim > nominal.ndim else value.expand(self.num_envs, *nominal.shape)

    @plain_tensors()
    def spread(self, names: Ranges) -> None:
        """Give each environment its own copy of the parameters `names`, so that `draw` can write rows."""
        for name in names:
            self._values[name] = self._each(name).clone()
        self._prepared = None

    @plain_tensors()
    def draw(self, ranges: Ranges, uniform: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Set parameters to their nominal value times a factor in its range, from uniform numbers (n, len(ranges))."""
        index = slice(None) if rows is None else rows
        prepared = self._prepared
        for column, (name, (low, high)) in enumerate(ranges.items()):
            nominal = self.nominal[name]
            factor = (low + (high - low) * uniform[:, column]).reshape(-1, *(1,) * nominal.ndim)
            self._values[name][index] = factor * nominal
        if rows is None or prepared is None:
            self._prepared = None
        else:
            part = {n: v[rows] if v.ndim > self.nominal[n].ndim else v for n, v in self._values.items()}
            self.plant.put(prepared, rows, self.plant.prepare(part))

    @plain_tensors()
    def draw_where(self, ranges: Ranges, uniform: torch.Tensor, mask: torch.Tensor) -> None:
        """Do what `draw` does where `mask` (num_envs,) bool is true; the uniform numbers (num_envs, k) are for all."""
        for column, (name, (low, high)) in enumerate(ranges.items()):
            nominal, value = self.nominal[name], self._values[name]
            shape = (-1, *(1,) * nominal.ndim)
            factor = (low + (high - low) * uniform[:, column]).reshape(shape)
            value.copy_(torch.where(mask.reshape(shape), factor * nominal, value))
        self.plant.put(self.prepared, slice(None), self.plant.prepare(dict(self._values)))

    def _unknown(self, name: str) -> UnknownNameError:
        units = self.plant.parameter_units
        known = ", ".join(f"{other} [{units.get(other, '')}]" for other in self.nominal)
        hint = str(UnknownNameError.among("parameter", str(name), list(self.nominal))).split(" Known:")[0]
        return UnknownNameError(f"{hint} Known: {known}.")


def checked_ranges(plant: Plant, given: bool | Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return the factors' ranges that `randomize` asks for: True those of the task file, False none, or a mapping."""
    if isinstance(given, bool):
        if given and not plant.task.randomize:
            raise InvalidValueError(
                "randomize is True, but the task file has no section 'randomize'; give a mapping "
                "such as {'mass': [0.8, 1.2]}, factors of the nominal value."
            )
        return dict(plant.task.randomize) if given else {}
    if not isinstance(given, Mapping):
        raise InvalidValueError(f"randomize is {given!r}; expected True, False or a mapping of names to [low, high].")
    known = list(plant.nominal())
    ranges = {}
    for name, pair in given.items():
        if name not in known:
            raise UnknownNameError(f"randomize: {UnknownNameError.among('parameter', str(name), known)}")
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise InvalidValueError(f"randomize: {name} is {pair!r}; expected [low, high], factors of its value.")
        low = checks.finite_float(f"randomize: {name}, the lowest factor", pair[0], above=0.0)
        ranges[str(name)] = (low, checks.finite_float(f"randomize: {name}, the highest", pair[1], at_least=low))
    return ranges
