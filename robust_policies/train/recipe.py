"""A recipe: task + policy + algorithm + evaluation, one YAML file, checked key by key before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from robust_policies.assets import recipe_path
from robust_policies.errors import InvalidValueError, SchemaError, UnknownNameError
from robust_policies.train.messages import one_line
from robust_policies.train.yaml_file import dump_yaml, parse_scalar, read_yaml
from robust_policies.train.youla_recipe import YoulaSection

RECIPE_SCHEMA = 1
ALGORITHMS = ("recurrent_ppo", "tensor_ppo", "apg", "imitation")


class _Section(BaseModel):
    """Strict types, no unknown keys: a recipe that parses means what it says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TaskSection(_Section):
    """What to control."""

    id: str = Field(description="Gymnasium id, ours (robust_policies/Pendulum-v0) or any other")
    num_envs: int = Field(default=32, ge=1, description="environments stepped side by side")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="passed on to the environment")
    perturbations: list[Any] = Field(default_factory=list, description="wrappers, such as ObservationDelay: 2")

    @field_validator("perturbations")
    @classmethod
    def _known_perturbations(cls, value: list[Any]) -> list[Any]:
        return checked_perturbations(value)


class PolicySection(_Section):
    """The network between observation and action; fields left out (null) keep the cell's own default."""

    cell: str = Field(default="r2dn", description="r2dn, ren, lstm, gru, mlp or lbdn")
    state_size: int | None = Field(default=None, ge=1)
    features: int | None = Field(default=None, ge=1, description="width of the nonlinear part (r2dn, ren)")
    hidden_sizes: list[int] | None = None
    activation: str | None = None
    gamma: float | None = Field(default=None, gt=0, description="certified incremental l2 gain; null: contraction only")
    rate: float | None = Field(default=None, gt=0, le=1, description="upper bound on the contraction rate")
    init: Literal["random", "long_memory", "timescales"] | None = None
    critic: Literal["own", "shared", "mlp"] = "own"
    critic_kwargs: dict[str, Any] = Field(default_factory=dict)
    observation_scale: list[float] | None = Field(default=None, description="observations are divided by it")
    observation_offset: list[float] | None = Field(default=None, description="and this is subtracted before")
    action_scale: float | list[float] | None = Field(default=None, description="multiplies the mean action")
    cell_output_size: int | None = Field(default=None, ge=1, description="null: the cell's output is the mean action")
    log_std_init: float = 0.0

    def cell_kwargs(self) -> dict[str, Any]:
        """Return the cell's options that the recipe sets."""
        names = ("state_size", "features", "hidden_sizes", "activation", "gamma", "rate", "init")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class AlgorithmSection(_Section):
    """PPO's settings under Stable-Baselines3's names, except `discount`, which it calls gamma."""

    name: Literal["recurrent_ppo", "tensor_ppo"] = Field(
        default="recurrent_ppo", description="tensor_ppo: the same on the device, for environments of this package"
    )
    total_steps: int = Field(ge=1, description="environment steps, all environments together")
    n_steps: int = Field(default=128, ge=2, description="steps of each environment between two updates")
    batch_size: int = Field(default=128, ge=2)
    n_epochs: int = Field(default=10, ge=1)
    discount: float = Field(default=0.99, gt=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    learning_rate: float | str = Field(default=3e-4, description="a number, or lin_NUMBER to fall linearly to 0")
    clip_range: float | str = Field(default=0.2, description="a number, or lin_NUMBER")
    ent_coef: float = Field(default=0.0, ge=0)
    vf_coef: float = Field(default=0.5, ge=0)
    max_grad_norm: float = Field(default=0.5, gt=0)
    target_kl: float | None = Field(default=None, gt=0)
    normalize_advantage: bool = True
    normalize_reward: bool = Field(default=True, description="divide rewards by the running deviation of the return")
    normalize_observation: bool = Field(
        default=False, description="tensor_ppo: learn policy.observation_scale and observation_offset while training"
    )

    spread_episodes: bool = Field(
        default=False,
        description="tensor_ppo: the first episodes end at different times, for rollouts shorter than one",
    )

    @model_validator(mode="after")
    def _fits_its_name(self) -> AlgorithmSection:
        for option in ("normalize_observation", "spread_episodes"):
            if getattr(self, option) and self.name != "tensor_ppo":
                raise ValueError(f"algorithm.{option} is true and algorithm.name {self.name}; expected name tensor_ppo")
        return self

    @field_validator("learning_rate", "clip_range")
    @classmethod
    def _schedule(cls, value: float | str) -> float | str:
        schedule(value)
        return value


class CheckpointSection(_Section):
    """What is saved while training, and which policy is kept."""

    every: int = Field(default=50_000, ge=1, description="environment steps between two checkpoints to resume from")
    evaluate_every: int = Field(default=50_000, ge=1, description="environment steps between two evaluations")
    evaluate_episodes: int = Field(default=20, ge=1)
    certify_every: int = Field(default=20, ge=0, description="updates between two certificates in the logs; 0: none")
    stop_at_reward: float | None = Field(
        default=None, description="end when an evaluation's mean return is at least this; null: after total_steps"
    )
    keep: Literal["best", "last"] = Field(default="best", description="best: highest mean return of the evaluations")
    policies: bool = Field(
        default=False, description="true: the policy of every evaluation is kept, in checkpoints/policies"
    )


class TargetSection(_Section):
    """What training is expected to reach: `robust-policies train` says at its end whether it did."""

    return_: float = Field(alias="return", description="mean return of an evaluation while training")
    steps: int = Field(ge=1, description="environment steps within which it is reached")


class EvaluationSection(_Section):
    """What `robust-policies evaluate` does with the trained policy when not told otherwise."""

    tasks: list[str] = Field(default_factory=list, description="Gymnasium ids; empty: the training task")
    suite: str = "default"
    episodes: int = Field(default=50, ge=1)
    sizes: list[float] | None = Field(default=None, description="perturbation sizes; null: the suite's own")
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    perturbations: list[Any] | None = Field(default=None, description="in place of the task's; null: those")

    @field_validator("perturbations")
    @classmethod
    def _known_perturbations(cls, value: list[Any] | None) -> list[Any] | None:
        return None if value is None else checked_perturbations(value)


class Recipe(_Section):
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


def checked_perturbations(value: list[Any]) -> list[Any]:
    """Return a list of perturbation wrappers in its short form; raise a `UserError` that names the wrong item."""
    from robust_policies.envs.perturb import describe, parse

    return describe(parse(value))


def schedule(value: float | str) -> Any:
    """Return what Stable-Baselines3 takes for a positive number or `lin_NUMBER` (falling linearly to 0).

    Raises `ValueError` for anything else.
    """
    text = value.removeprefix("lin_") if isinstance(value, str) else value
    try:
        start = float(text)
    except ValueError:
        start = -1.0
    if not 0 < start < float("inf") or (isinstance(value, str) and not value.startswith("lin_")):
        raise ValueError("expected a number > 0, or lin_NUMBER (such as lin_1e-3) to fall linearly to 0")
    if isinstance(value, str):
        return lambda remaining: remaining * start
    return start


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
        from robust_policies.train.apg_recipe import ApgRecipe

        return ApgRecipe
    if name == "imitation":
        from robust_policies.train.imitation_recipe import ImitationRecipe

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
    at[keys[-1]] = parse_scalar(text, f"--set {path}")


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
