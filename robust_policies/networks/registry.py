"""Cells by name: what recipes, policy keyword arguments and stored policies use."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.networks.baselines import GRUCell, LSTMCell, MLPCell
from robust_policies.networks.cell import Cell
from robust_policies.networks.convex import ConvexCell
from robust_policies.networks.l2ru import L2RU
from robust_policies.networks.lbdn import LBDNCell
from robust_policies.networks.nemon import NemonCell
from robust_policies.networks.r2dn import R2DN
from robust_policies.networks.ren import REN

CELLS: dict[str, type[Cell]] = {
    cell.name: cell for cell in (R2DN, REN, NemonCell, L2RU, ConvexCell, LSTMCell, GRUCell, MLPCell, LBDNCell)
}


def make_cell(name: str, input_size: int, output_size: int, **kwargs: Any) -> Cell:
    """Return a new cell; `kwargs` are its constructor's, or `gamma=` in place of its `guarantee` with that bound.

    Raises:
        UnknownNameError: an unknown cell, or an option this cell does not have.
        InvalidValueError: an option missing or out of range.
    """
    cell_type = _cell_type(name)
    options = dict(kwargs)
    known = set(inspect.signature(cell_type).parameters)
    if "guarantee" in known and "gamma" in options:
        gamma = options.pop("gamma")
        if options.get("guarantee") is not None:
            raise InvalidValueError(f"Both gamma={gamma!r} and a guarantee were given; pass one of them.")
        options["guarantee"] = cell_type.designed(gamma)
    return _build(cell_type, {"input_size": input_size, "output_size": output_size, **options})


def cell_from_config(config: Mapping[str, Any]) -> Cell:
    """Return a new cell from `cell.config()`; the weights are not part of a config.

    Raises:
        UnknownNameError: the type is not one of `CELLS`, or an option is unknown.
    """
    if not isinstance(config, Mapping) or "type" not in config:
        raise InvalidValueError(f"A cell's config is {config!r}; expected a mapping with the key 'type'.")
    options = dict(config)
    return _build(_cell_type(options.pop("type")), options)


def _cell_type(name: Any) -> type[Cell]:
    if name not in CELLS:
        raise UnknownNameError.among("cell", str(name), CELLS)
    return CELLS[name]


def _build(cell_type: type[Cell], options: dict[str, Any]) -> Cell:
    parameters = inspect.signature(cell_type).parameters
    for option in options:
        if option not in parameters:
            shorthand = {"gamma"} if "guarantee" in parameters else set()
            raise UnknownNameError.among(f"option of the cell {cell_type.name!r}", option, {*parameters, *shorthand})
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise InvalidValueError(f"The cell {cell_type.name!r} needs {', '.join(missing)}; add it to the options.")
    return cell_type(**options)
