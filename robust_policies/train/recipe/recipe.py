"""A recipe: task + policy + algorithm + evaluation, one YAML file, checked key by key before anything runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from robust_policies.errors import InvalidValueError, SchemaError, UnknownNameError
from robust_policies.files.assets import recipe_path
from robust_policies.files.settings import Strict, one_line
from robust_policies.files.yaml_text import dump_yaml, parse_yaml, read_yaml
from robust_policies.train.recipe.apg import ApgSection
from robust_policies.train.recipe.gail import GailSection
from robust_policies.train.recipe.imitation import ImitationSection
from robust_policies.train.recipe.ppo import PpoSection
from robust_policies.train.recipe.recurrent_sac import RecurrentSacSection
from robust_policies.train.recipe.sb3 import PlainPpoSection, SacSection, Td3Section
from robust_policies.train.recipe.sections import (
    Algorithm,
    CheckpointSection,
    EvaluationSection,
    PolicySection,
    TargetSection,
    TaskSection,
)
from robust_policies.train.recipe.youla import YoulaSection

RECIPE_SCHEMA = 1
ALGORITHMS: dict[str, type[Algorithm]] = {
    "recurrent_ppo": PpoSection,
    "tensor_ppo": PpoSection,
    "apg": ApgSection,
    "imitation": ImitationSection,
    "gail": GailSection,
    "sac": SacSection,
    "td3": Td3Section,
    "ppo": PlainPpoSection,
    "recurrent_sac": RecurrentSacSection,
}
"""The section of each algorithm; the first is that of a recipe that names none."""


A = TypeVar("A", bound=Algorithm)


class Recipe(Strict, Generic[A]):
    """A whole experiment; `Recipe[ApgSection]` is one with the analytic policy gradient."""

    schema_: int = Field(default=RECIPE_SCHEMA, alias="schema", ge=1)
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**31)
    deterministic: bool = Field(default=False, description="deterministic algorithms only, where there is a choice")
    task: TaskSection
    policy: PolicySection = Field(default_factory=PolicySection)
    youla: YoulaSection | None = None
    algorithm: A
    checkpoints: CheckpointSection = Field(default_factory=CheckpointSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    target: TargetSection | None = None

    @model_validator(mode="after")
    def _algorithm_fits(self) -> Self:
        if self.policy.window is not None and not self.algorithm.windowed:
            name = getattr(self.algorithm, "name", "")
            raise ValueError(
                f"policy.window is {self.policy.window} with algorithm.name {name}, whose policies keep a state; "
                "expected null, or sac, td3 or ppo"
            )
        self.algorithm.check_fit(self.task, self.policy, self.youla)
        return self

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain data, with every default written out."""
        return self.model_dump(by_alias=True)

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML text."""
        return dump_yaml(self.resolved())


def parse_recipe(data: Any, source: str) -> Recipe:
    """Return the recipe that `data` (nested dicts) describes; raise a `UserError` of one line that names the key."""
    if not isinstance(data, dict):
        raise InvalidValueError(f"{source} holds {type(data).__name__}; expected keys such as task, policy, algorithm.")
    version = data.get("schema", RECIPE_SCHEMA)
    if isinstance(version, int) and version > RECIPE_SCHEMA:
        raise SchemaError(
            f"{source} has schema {version} and this version reads up to {RECIPE_SCHEMA}; update robust-policies."
        )
    section = _algorithm_of(data, source)
    kind = _kind(section)
    for name, defaults in (("task", section.task), ("checkpoints", section.checkpoints)):
        if defaults and isinstance(given := data.get(name, {}), dict):
            data = {**data, name: {**defaults, **given}}
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise one_line(error, kind, source) from error


@cache
def _kind(section: type[Algorithm]) -> type[Recipe]:
    """Return the recipe with this section: made once, since pydantic forgets it when nobody holds it."""
    return Recipe[section]


def _algorithm_of(data: dict[str, Any], source: str) -> type[Algorithm]:
    """Return the section of the algorithm that `data` names: each has settings of its own."""
    section = data.get("algorithm")
    default = next(iter(ALGORITHMS))
    name = section.get("name", default) if isinstance(section, dict) else default
    if isinstance(name, str) and name not in ALGORITHMS:
        raise UnknownNameError(f"{source}: {UnknownNameError.among('algorithm.name', name, ALGORITHMS)}")
    return ALGORITHMS[name] if isinstance(name, str) else ALGORITHMS[default]


def set_value(data: dict[str, Any], assignment: str) -> None:
    """Write one `path.to.key=value` into the nested dict `data`; the value is read as YAML."""
    path, separator, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise InvalidValueError(f"--set was given {assignment!r}; expected KEY=VALUE, such as policy.gamma=4.")
    at = data
    for depth, key in enumerate(keys[:-1], 1):
        at = at.setdefault(key, {})
        if not isinstance(at, dict):
            raise InvalidValueError(
                f"--set was given {assignment!r}, but {'.'.join(keys[:depth])} is a value ({at!r}), not a section."
            )
    at[keys[-1]] = parse_yaml(text, f"--set {path}")


def load_recipe(name: str | Path, overrides: list[str] | None = None, seed: int | None = None) -> Recipe:
    """Return the recipe `name` (a file, or the name of one that comes with the package).

    Args:
        name: `train/pendulum_gru.yaml`, `pendulum_gru`, or the path of your own file.
        overrides: assignments such as `policy.gamma=4`, applied in order.
        seed: replaces the recipe's seed.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown or a value has the wrong type or range.
    """
    path = recipe_path(name)
    data = read_yaml(path)
    if isinstance(data, dict):
        for assignment in overrides or []:
            set_value(data, assignment)
        if seed is not None:
            data["seed"] = seed
    return parse_recipe(data, str(name))
