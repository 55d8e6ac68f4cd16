"""Perturbations as a short list: read from YAML, written back, shown as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from robust_policies.envs.perturb.specs import SPECS, Spec
from robust_policies.errors import InvalidValueError, UnknownNameError, UserError
from robust_policies.files.settings import units
from robust_policies.files.yaml_text import parse_yaml

NAMES = tuple(SPECS)
_EXAMPLE = "[{ObservationNoise: {size: 0.1}}, {ObservationDelay: 2}]"


class Row(NamedTuple):
    """One parameter of one perturbation, for a table."""

    perturbation: str
    acts_on: str
    summary: str
    parameter: str
    default: str
    unit: str
    meaning: str


def parse(given: Any) -> list[Spec]:
    """Return the perturbations that a list, or a string holding it as YAML, describes, in its order.

    An item is a name (`ObservationDelay`), a name with its first parameter (`ObservationDelay: 2`), a name with a
    mapping of parameters, or a specification itself; a mapping of several names is read as a list of them.

    Raises:
        UnknownNameError: a name or a parameter that does not exist (with the known ones). InvalidValueError: anything
            else; the message names the item.
    """
    if isinstance(given, str):
        given = parse_yaml(given, f"perturbations, a list such as {_EXAMPLE},")
    if given is None:
        return []
    if isinstance(given, (str, Spec)):
        given = [given]
    if isinstance(given, Mapping):
        given = [{name: value} for name, value in given.items()]
    if not isinstance(given, Iterable):
        raise InvalidValueError(f"perturbations are {given!r}; expected a list such as {_EXAMPLE}.")
    return [_item(number, item) for number, item in enumerate(given, start=1)]


def _item(number: int, item: Any) -> Spec:
    if isinstance(item, Spec):
        return item
    value: Any = None
    if isinstance(item, Mapping) and len(item) == 1:
        item, value = next(iter(item.items()))
    elif not isinstance(item, str):
        raise InvalidValueError(
            f"perturbation {number} is {item!r}; expected a name, or one name with its parameters, as in {_EXAMPLE}."
        )
    if item not in SPECS:
        raise UnknownNameError(f"perturbation {number}: {UnknownNameError.among('perturbation', str(item), NAMES)}")
    model = SPECS[item]
    try:
        if value is None:
            return model.given()
        if isinstance(value, Mapping):
            return model.given((), {str(name): one for name, one in value.items()})
        return model.given((value,))
    except UserError as error:
        raise type(error)(f"perturbation {number}: {error}") from error


def describe(specs: Iterable[Spec]) -> list[Any]:
    """Return the shortest list that `parse` reads as `specs`: plain data, to be written as YAML or JSON."""
    return [_short(spec) for spec in specs]


def _short(spec: Spec) -> Any:
    fields = type(spec).model_fields
    values = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in spec.model_dump().items()
        if fields[name].is_required() or value != fields[name].default
    }
    if not values:
        return spec.name
    if list(values) == [next(iter(fields))]:
        return {spec.name: next(iter(values.values()))}
    return {spec.name: values}


def table() -> list[Row]:
    """Return every parameter of every perturbation with its default, unit and meaning."""
    return [
        Row(
            name,
            model.acts_on,
            (model.__doc__ or "").splitlines()[0],
            parameter,
            "required" if field.is_required() else str(field.default),
            units(model)[parameter],
            field.description or "",
        )
        for name, model in SPECS.items()
        for parameter, field in model.model_fields.items()
    ]
