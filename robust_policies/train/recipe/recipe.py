"""A recipe: task + policy + algorithm + evaluation, one YAML file, checked key by key before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from robust_policies.errors import InvalidValueError, SchemaError, UnknownNameError
from robust_policies.files.assets import recipe_path
from robust_policies.files.settings import Strict, one_line
from robust_policies.files.yaml_text import dump_yaml, parse_yaml, read_yaml
from robust_policies.train.recipe.apg import ApgSection
from robust_policies.train.recipe.imitation import ImitationCheckpoints, ImitationSection
from robust_policies.train.recipe.ppo import AlgorithmSection
from robust_policies.train.recipe.sections import (
    CheckpointSection,
    EvaluationSection,
    PolicySection,
    TargetSection,
    TaskSection,
    refuse_settings_of_ppo,
)
from robust_policies.train.recipe.youla import YoulaSection

RECIPE_SCHEMA = 1
ALGORITHMS = ("recurrent_ppo", "tensor_ppo", "apg", "imitation")


class Recipe(Strict):
    """A whole experiment."""

    schema_: int = Field(default=RECIPE_SCHEMA, alias="schema", ge=1)
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**31)
    deterministic: bool = Field(default=False, description="deterministic algorithms only, where there is a choice")
    task: TaskSection
    policy: PolicySection = Field(default_factory=PolicySection)
    youla: YoulaSection | None = None
    algorithm: AlgorithmSection
    checkpoints: CheckpointSection = Field(default_factory=CheckpointSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    target: TargetSection | None = None

    @model_validator(mode="after")
    def _batch_fits(self) -> Recipe:
        if not isinstance(self.algorithm, AlgorithmSection):
            return self
        rollout = self.task.num_envs * self.algorithm.n_steps
        if self.algorithm.batch_size > rollout:
            raise ValueError(
                f"algorithm.batch_size is {self.algorithm.batch_size}; expected at most task.num_envs * "
                f"algorithm.n_steps = {rollout}, the samples of one update"
            )
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
    kind = _recipe_class(data, source)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise one_line(error, kind, source) from error


def _recipe_class(data: dict[str, Any], source: str) -> type[Recipe]:
    """Return the class of recipes whose algorithm `data` names: each algorithm has settings of its own."""
    section = data.get("algorithm")
    name = section.get("name", ALGORITHMS[0]) if isinstance(section, dict) else ALGORITHMS[0]
    if isinstance(name, str) and name not in ALGORITHMS:
        raise UnknownNameError(f"{source}: {UnknownNameError.among('algorithm.name', name, ALGORITHMS)}")
    if name == "apg":
        return ApgRecipe
    if name == "imitation":
        return ImitationRecipe
    return Recipe


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


class ApgRecipe(Recipe):
    """A whole experiment with the analytic policy gradient."""

    algorithm: ApgSection  # pyright: ignore[reportIncompatibleVariableOverride]

    @model_validator(mode="after")
    def _nothing_of_ppo(self) -> ApgRecipe:
        # The section's keys are made of `YoulaOptions`, which a type checker does not see.
        if quantum := getattr(self.youla, "quantum", 0.0):
            raise ValueError(
                f"youla.quantum is {quantum:g} with algorithm.name apg, whose gradients do not pass rounded inputs; "
                "expected 0, or recurrent_ppo or tensor_ppo"
            )
        refuse_settings_of_ppo(self.policy, "with apg, whose value is set by algorithm.critic_sizes")
        return self


class ImitationRecipe(Recipe):
    """A whole experiment with imitation."""

    algorithm: ImitationSection  # pyright: ignore[reportIncompatibleVariableOverride]
    checkpoints: ImitationCheckpoints = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default_factory=ImitationCheckpoints
    )

    @model_validator(mode="after")
    def _nothing_of_ppo(self) -> ImitationRecipe:
        if self.youla is not None:
            raise ValueError("youla is given with algorithm.name imitation, which learns actions and no Youla "
                             "parameter; expected recurrent_ppo or tensor_ppo")  # fmt: skip
        refuse_settings_of_ppo(self.policy, "with imitation, which learns no value")
        return self
