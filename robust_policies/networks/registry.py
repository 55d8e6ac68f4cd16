"""Cells by name: what recipes, policy keyword arguments and stored policies use, and those of other packages."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.networks.baselines import GRUCell, LSTMCell, MLPCell
from robust_policies.networks.cell import Cell
from robust_policies.networks.convex import ConvexCell
from robust_policies.networks.l2ru import L2RU
from robust_policies.networks.lbdn import LBDNCell
from robust_policies.networks.lipschitz_rnn import LipschitzRNN
from robust_policies.networks.nemon import NemonCell
from robust_policies.networks.r2dn import R2DN
from robust_policies.networks.ren import REN

CELLS: dict[str, type[Cell]] = {
    cell.name: cell
    for cell in (R2DN, REN, NemonCell, L2RU, ConvexCell, LipschitzRNN, LSTMCell, GRUCell, MLPCell, LBDNCell)
}
ENTRY_POINTS = "robust_policies.cells"
"""The group of entry points in which other packages name their cells."""
_OURS = frozenset(CELLS)
_PROMISES = ("guarantee", "gamma")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
Own = TypeVar("Own", bound=type[Cell])


def register_cell(cell: Own) -> Own:
    """Return `cell`, a class, after making its `name` known to recipes, policies and stored files; also a decorator.

    Raises:
        InvalidValueError: it is no whole `Cell`, or its name is taken or not of lower-case letters, digits and `_`.
    """
    if not (isinstance(cell, type) and issubclass(cell, Cell)):
        raise InvalidValueError(f"{cell!r} is no class derived from robust_policies.networks.Cell; expected one.")
    if missing := sorted(cell.__abstractmethods__):
        raise InvalidValueError(f"{cell.__name__} lacks {', '.join(missing)}; a cell has all of them.")
    name = getattr(cell, "name", None)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise InvalidValueError(f"{cell.__name__}.name is {name!r}; expected lower-case letters, digits and '_'.")
    taken = CELLS.get(name)
    same = taken is not None and (taken.__module__, taken.__qualname__) == (cell.__module__, cell.__qualname__)
    if taken is not None and not (same and name not in _OURS):
        raise InvalidValueError(
            f"The name {name!r} is that of {taken.__module__}.{taken.__qualname__}; choose another for {cell.__name__}."
        )
    CELLS[name] = cell
    return cell


def known_cells() -> dict[str, type[Cell]]:
    """Return every cell by name, those that installed packages name as entry points too."""
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.name not in CELLS:
            _load(point)
    return dict(CELLS)


def make_cell(name: str, input_size: int, output_size: int, **kwargs: Any) -> Cell:
    """Return a new cell; `kwargs` are its constructor's, or `gamma=` in place of its `guarantee` with that bound.

    Args:
        name: one of `CELLS`, of an installed package's entry points, or `module:name`: the module, which registers the
            cell, is imported first.
        input_size: nu.
        output_size: ny.
        kwargs: the cell's options.

    Raises:
        UnknownNameError: an unknown cell, or an option this cell does not have.
        InvalidValueError: an option missing or out of range, or a module that cannot be imported.
    """
    module, colon, plain = name.partition(":") if isinstance(name, str) else ("", "", name)
    if colon:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # whatever a module of another package raises
            what = f"{type(error).__name__}: {error}"
            raise InvalidValueError(f"The module of the cell {name!r} cannot be imported ({what}).") from error
    cell_type = _cell_type(plain if colon else name)
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

    Nothing is imported because a file names it: a cell of another package is registered, or has an entry point.

    Raises:
        UnknownNameError: the type is no known cell, or an option is unknown.
    """
    if not isinstance(config, Mapping) or "type" not in config:
        raise InvalidValueError(f"A cell's config is {config!r}; expected a mapping with the key 'type'.")
    options = dict(config)
    return _build(_cell_type(options.pop("type")), options)


def _cell_type(name: Any) -> type[Cell]:
    if name not in CELLS:
        for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=str(name)):
            _load(point)
    if name not in CELLS:
        error = UnknownNameError.among("cell", str(name), CELLS)
        hint = "One of your own is known once its package is imported and calls register_cell, or by an entry point."
        raise UnknownNameError(f"{error} {hint}")
    return CELLS[name]


def _load(point: importlib.metadata.EntryPoint) -> None:
    """Register the cell of an entry point."""
    try:
        cell = point.load()
    except (Exception, SystemExit) as error:  # whatever a module of another package raises
        what = f"{type(error).__name__}: {error}"
        raise InvalidValueError(f"The entry point {point.name!r} = {point.value!r} fails ({what}).") from error
    register_cell(cell)
    if cell.name != point.name:
        raise InvalidValueError(
            f"The entry point {point.name!r} gives the cell {cell.name!r}; call both by the same name."
        )


def _who_promises() -> str:
    """Return which cells have a guarantee, or a gain alone."""
    having = {key: sorted(n for n in _OURS if key in inspect.signature(CELLS[n]).parameters) for key in _PROMISES}
    gain = ", ".join(repr(name) for name in having["gamma"] if name not in having["guarantee"])
    return f"This cell has no guarantee; {', '.join(map(repr, having['guarantee']))} have one, {gain} has a gamma."


def _build(cell_type: type[Cell], options: dict[str, Any]) -> Cell:
    parameters = inspect.signature(cell_type).parameters
    for option in options:
        if option not in parameters:
            shorthand = {"gamma"} if "guarantee" in parameters else set()
            error = UnknownNameError.among(f"option of the cell {cell_type.name!r}", option, {*parameters, *shorthand})
            raise UnknownNameError(f"{error} {_who_promises()}") if option in _PROMISES else error
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise InvalidValueError(f"The cell {cell_type.name!r} needs {', '.join(missing)}; add it to the options.")
    return cell_type(**options)
