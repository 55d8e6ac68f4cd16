"""Evaluation protocols: which perturbations, sizes, episodes and seeds; YAML files here, or a user's own by path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from robust_policies.envs.perturb import NAMES, SPECS, Spec
from robust_policies.errors import InvalidValueError, SchemaError, UnknownNameError
from robust_policies.evaluation.attacks import ATTACKS, NORMS
from robust_policies.evaluation.attacks.registry import checked_options
from robust_policies.evaluation.noise import PERTURBATIONS
from robust_policies.files.settings import Section, one_line, units
from robust_policies.files.yaml_text import read_yaml

SUITE_SCHEMA = 1
SUITES = ("quick", "standard", "paper")


def _sizes(value: Any) -> Any:
    """Return sizes in ascending order, each once, 0 among them."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, (int, float)) and v >= 0 for v in value):
        raise ValueError("expected a list of numbers >= 0, such as [0, 0.1, 0.3]")
    return tuple(sorted({0.0, *map(float, value)}))


Sizes = Annotated[tuple[float, ...], BeforeValidator(_sizes)]


class Tuning(Section):
    """The episodes on which attacks are tuned; no seed of theirs is reported."""

    episodes: int = Field(default=16, ge=1)
    seeds: tuple[int, ...] = Field(default=(1000,), min_length=1)


class AttackEntry(Section):
    """An attack, its budget's norm, and its options; several sets of options are compared on the tuning episodes."""

    model_config = ConfigDict(extra="allow")

    name: str
    norm: str = "per_step_l2"
    label: str = Field(default="", description="its name in tables; the attack's name if empty")
    sizes: Sizes | None = Field(default=None, description="in place of the suite's, such as those of a total budget")
    tune: tuple[dict[str, Any], ...] = Field(default=({},), min_length=1, description="options tried while tuning")

    @model_validator(mode="after")
    def _known(self) -> AttackEntry:
        if self.norm not in NORMS:
            raise UnknownNameError.among("norm", self.norm, NORMS)
        for variant in self.tune:
            checked_options(self.name, {**self.options, **variant})
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The attack's own options."""
        return dict(self.model_extra or {})

    @property
    def shown(self) -> str:
        """Its name in tables."""
        return self.label or self.name


class FaultEntry(Section):
    """One parameter of a perturbation wrapper at several values; other keys are the wrapper's other parameters."""

    model_config = ConfigDict(extra="allow")

    perturbation: str
    parameter: str
    values: tuple[Any, ...] = Field(min_length=1)
    label: str = Field(default="", description="its name in tables; the wrapper's name if empty")

    @model_validator(mode="after")
    def _known(self) -> FaultEntry:
        if self.perturbation not in NAMES:
            raise UnknownNameError.among("perturbation", self.perturbation, NAMES)
        fields = SPECS[self.perturbation].model_fields
        if self.parameter not in fields:
            raise UnknownNameError.among(f"parameter of {self.perturbation}", self.parameter, fields)
        for value in self.values:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"values of {self.perturbation}.{self.parameter} are numbers, not {value!r}")
            self.spec(value)
        return self

    def spec(self, value: Any) -> Spec:
        """Return the wrapper with the parameter at `value`."""
        return SPECS[self.perturbation].given((), {**(self.model_extra or {}), self.parameter: value})

    @property
    def unit(self) -> str:
        """Of the parameter."""
        return units(SPECS[self.perturbation])[self.parameter]

    @property
    def shown(self) -> str:
        """Its name in tables."""
        return self.label or self.perturbation


class GridEntry(Section):
    """All pairs of factors of two physical parameters; without names, of the task file's first two under randomize."""

    x: str | None = None
    y: str | None = None
    factors: tuple[float, ...] = Field(min_length=1)

    @field_validator("factors")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0:
            raise ValueError("expected factors above 0 of the nominal values")
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _both(self) -> GridEntry:
        if (self.x is None) != (self.y is None) or (self.x is not None and self.x == self.y):
            raise ValueError(f"x is {self.x!r} and y is {self.y!r}; expected two different parameters, or neither")
        return self


class Critical(Section):
    """The search for the size at which a share of the nominal return is left."""

    attacks: tuple[str, ...] = Field(default=(), description="of the suite, by their label or else their name")
    level: float = Field(default=0.8, gt=0, lt=1, description="what is left: nominal - (1 - level) |nominal|")
    tolerance: float = Field(default=0.03, gt=0, description="width of the final bracket, of the largest size")


class Suite(Section):
    """One evaluation protocol; sizes are in the observation's own units."""

    schema_: Literal[1] = Field(default=SUITE_SCHEMA, alias="schema")
    description: str = ""
    episodes: int = Field(default=50, ge=1, description="for each size and seed")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="of the reported episodes")
    tuning: Tuning = Field(default_factory=Tuning)
    sizes: Sizes = (0.0, 0.05, 0.1, 0.2, 0.3)
    noise: tuple[str, ...] = ()
    attacks: tuple[AttackEntry, ...] = ()
    faults: tuple[FaultEntry, ...] = ()
    parameters: tuple[GridEntry, ...] = ()
    disturbances: tuple[FaultEntry, ...] = ()
    critical: Critical = Field(default_factory=Critical)
    record: int = Field(default=3, ge=0, description="episodes of which trajectories are kept")

    @field_validator("noise")
    @classmethod
    def _known_noise(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PERTURBATIONS:
                raise UnknownNameError.among("noise", name, PERTURBATIONS)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        both = sorted(set(self.seeds) & set(self.tuning.seeds))
        if both:
            raise ValueError(f"seed {both[0]} is reported and tuned on; expected seeds that do not overlap")
        if min(*self.seeds, *self.tuning.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {list(self.seeds)}; expected different whole numbers of at least 0")
        for section in ("attacks", "faults", "disturbances"):
            keys = [(e.shown, getattr(e, "norm", "")) for e in getattr(self, section)]
            twice = next((name for name, norm in keys if keys.count((name, norm)) > 1), None)
            if twice is not None:
                raise ValueError(f"{section} has {twice} twice; give each a label of its own")
        names = {e.shown for e in self.attacks}
        for name in self.critical.attacks:
            if name not in names:
                raise UnknownNameError.among("attack under critical", name, names)
        return self

    def changed(self, **given: Any) -> Suite:
        """Return the suite with sections replaced and checked again; None leaves one as it is."""
        data = self.resolved() | {name: value for name, value in given.items() if value is not None}
        return parse_suite(data, "the evaluation")

    def only_attacks(self, names: list[str]) -> Suite:
        """Return the suite with these attacks alone: its own entries of the name, else the attack's defaults."""
        known = {*ATTACKS, *(entry.shown for entry in self.attacks)}
        entries: list[dict[str, Any]] = []
        for name in dict.fromkeys(names):
            if name not in known:
                raise UnknownNameError.among("attack", name, known)
            own = [entry.model_dump() for entry in self.attacks if name in (entry.name, entry.shown)]
            entries += own or [{"name": name}]
        kept = {name for entry in entries for name in (entry["name"], entry.get("label"))}
        critical = self.critical.model_dump()
        critical["attacks"] = [name for name in self.critical.attacks if name in kept]
        return self.changed(attacks=entries, critical=critical)

    def resolved(self) -> dict[str, Any]:
        """Return the suite as plain data, with every default written out."""
        return self.model_dump(by_alias=True, mode="json")


def parse_suite(data: Any, source: str) -> Suite:
    """Return the suite that `data` describes; raise a `UserError` of one line that names the key."""
    if not isinstance(data, Mapping):
        raise InvalidValueError(f"{source} holds {type(data).__name__}; expected keys such as sizes, noise, attacks.")
    version = data.get("schema", SUITE_SCHEMA)
    if isinstance(version, int) and version > SUITE_SCHEMA:
        raise SchemaError(
            f"{source} has schema {version} and this version reads up to {SUITE_SCHEMA}; update robust-policies."
        )
    try:
        return Suite.model_validate(data)
    except ValidationError as error:
        raise one_line(error, Suite, source) from error


def suite_named(name: str) -> Suite:
    """Return the suite `name` of this package, or of a YAML file at that path.

    Raises:
        UnknownNameError: neither; MissingFileError, CorruptFileError, UserError: the file is wrong, with the key.
    """
    name = str(name)
    if name.endswith((".yaml", ".yml")):
        return parse_suite(read_yaml(name), name)
    if name not in SUITES:
        raise UnknownNameError.among("suite", name, SUITES)
    return parse_suite(read_yaml(Path(__file__).parent / "suites" / f"{name}.yaml"), f"{name}.yaml")


def suite_lines() -> dict[str, str]:
    """Return {name: one line about it}."""
    return {name: suite_named(name).description for name in SUITES}
