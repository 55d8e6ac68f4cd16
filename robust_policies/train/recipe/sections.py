"""The sections of a recipe that all algorithms share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from robust_policies.checks import SEEDS
from robust_policies.envs.perturb import describe, parse
from robust_policies.files.settings import Strict
from robust_policies.train.recipe.youla import YoulaSection

_CELL_KEYS = ("state_size", "features", "hidden_sizes", "activation", "gamma", "rate", "init")


class TaskSection(Strict):
    """What to control."""

    id: str = Field(description="Gymnasium id, ours (robust_policies/Pendulum-v0) or any other, or module:id")
    num_envs: int = Field(default=32, ge=1, description="environments stepped side by side")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="passed on to the environment")
    perturbations: list[Any] = Field(default_factory=list, description="wrappers, such as ObservationDelay: 2")

    @field_validator("perturbations")
    @classmethod
    def _known_perturbations(cls, value: list[Any]) -> list[Any]:
        return checked_perturbations(value)


class BoundedCritic(Strict):
    """A value of bounded gain: an LBDN of the scaled observation.

    Of apg: of its features; of sac, td3 and recurrent_sac: of the action too, and of the last one's cell's output.
    """

    cell: Literal["lbdn"]
    gamma: float = Field(gt=0, description="bound of the value's gain from what it reads, scaled, Euclidean norm")
    hidden_sizes: list[Annotated[int, Field(ge=1)]] = Field(default_factory=lambda: [64, 64])
    activation: str = "relu"


class PolicySection(Strict):
    """The network between observation and action; fields left out (null) keep the cell's own default."""

    cell: str = Field(default="r2dn", description="one of networks.CELLS, or one of your own as module:name")
    state_size: int | None = Field(default=None, ge=1)
    features: int | None = Field(default=None, ge=1, description="width of the nonlinear part (r2dn, ren)")
    hidden_sizes: list[int] | None = None
    activation: str | None = None
    gamma: float | None = Field(
        default=None,
        gt=0,
        description="bound of the cell between scaled signals: incremental l2 gain, nemon: step by step; null: none",
    )
    rate: float | None = Field(default=None, gt=0, le=1, description="upper bound on the contraction rate")
    init: Literal["random", "long_memory", "timescales"] | None = None
    cell_options: dict[str, Any] = Field(default_factory=dict, description="the cell's other options, by name")
    critic: Annotated[
        Annotated[Literal["own", "shared", "mlp"], Tag("Literal")] | Annotated[BoundedCritic, Tag("BoundedCritic")],
        Discriminator(lambda value: "BoundedCritic" if isinstance(value, dict | BoundedCritic) else "Literal"),
    ] = "own"
    critic_kwargs: dict[str, Any] = Field(default_factory=dict)
    observation_scale: list[float] | None = Field(default=None, description="observations are divided by it")
    observation_offset: list[float] | None = Field(default=None, description="and this is subtracted before")
    action_scale: float | list[float] | None = Field(
        default=None, description="multiplies the mean action; null: 1, half of the range of one-sided actuators"
    )
    action_offset: float | list[float] | None = Field(
        default=None, description="then added to it; null: 0, where action_scale is null too the actuators' middle"
    )
    cell_output_size: int | None = Field(default=None, ge=1, description="null: the cell's output is the mean action")
    window: int | None = Field(
        default=None, ge=1, description="sac, td3, ppo: observations over which a cell with a memory runs; null: 16"
    )
    log_std_init: float = 0.0

    def cell_kwargs(self) -> dict[str, Any]:
        """Return the cell's options that the recipe sets."""
        own = {name: getattr(self, name) for name in _CELL_KEYS if getattr(self, name) is not None}
        return own | self.cell_options

    @field_validator("cell_options")
    @classmethod
    def _other_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in _CELL_KEYS:
            if name in value:
                raise ValueError(f"{name} has a key of its own; expected policy.{name}, not policy.cell_options.{name}")
        return value

    @field_validator("cell_options", "critic_kwargs")
    @classmethod
    def _of_a_cell(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        given = {"input_size"} if info.field_name == "critic_kwargs" else {"input_size", "output_size"}
        if found := sorted(given & value.keys()):
            raise ValueError(f"{found[0]} follows from the task; expected no policy.{info.field_name}.{found[0]}")
        if not isinstance(value.get("cell", ""), str):
            raise ValueError(f"its cell is {value['cell']!r}; expected a name such as gru")
        return value


class CheckpointSection(Strict):
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


class Algorithm(Strict):
    """Settings of an algorithm, whose `name` tells which; they say themselves what else of a recipe fits them.

    Attributes:
        counted: what of `Progress` total_steps counts.
        task, checkpoints: defaults of these sections of the recipe that differ from those of other algorithms.
        windowed: a cell with a memory runs over windows of past observations.
    """

    counted: ClassVar[Literal["num_timesteps", "n_updates"]] = "num_timesteps"
    task: ClassVar[Mapping[str, Any]] = {}
    checkpoints: ClassVar[Mapping[str, Any]] = {}
    windowed: ClassVar[bool] = False

    @property
    def on_device(self) -> bool:
        """Whether PPO's rollouts stay tensors on the device."""
        return False

    def check_fit(self, task: TaskSection, policy: PolicySection, youla: YoulaSection | None) -> None:
        """Raise `ValueError` where another section asks for what this algorithm does not do."""

    def in_small(self, num_envs: int) -> dict[str, Any]:
        """Return the settings, by name, with which a training of `num_envs` environments is a single update."""
        return {"total_steps": 1}


class TargetSection(Strict):
    """What training is expected to reach: `robust-policies train` says at its end whether it did."""

    return_: float = Field(alias="return", description="mean return of an evaluation while training")
    steps: int = Field(ge=1, description="environment steps within which it is reached")


class EvaluationSection(Strict):
    """What `robust-policies evaluate` does with the trained policy when not told otherwise."""

    tasks: list[str] = Field(default_factory=list, description="Gymnasium ids; empty: the training task")
    suite: str = "quick"
    episodes: int = Field(default=50, ge=1)
    sizes: list[Annotated[float, Field(ge=0)]] | None = Field(
        default=None, description="perturbation sizes; null: the suite's own"
    )
    seeds: list[Annotated[int, Field(ge=0, lt=SEEDS)]] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    perturbations: list[Any] | None = Field(default=None, description="in place of the task's; null: those")

    @field_validator("suite")
    @classmethod
    def _renamed(cls, value: str) -> str:
        # What the suite was called in the recipes of earlier run folders.
        return "quick" if value == "default" else value

    @field_validator("perturbations")
    @classmethod
    def _known_perturbations(cls, value: list[Any] | None) -> list[Any] | None:
        return None if value is None else checked_perturbations(value)


def checked_perturbations(value: list[Any]) -> list[Any]:
    """Return a list of perturbation wrappers in its short form; raise a `UserError` that names the wrong item."""
    return describe(parse(value))


def refuse_settings_of_ppo(policy: PolicySection, where: str) -> None:
    """Raise `ValueError` if a policy is given what only PPO uses."""
    for name in ("critic", "critic_kwargs", "log_std_init"):
        field = type(policy).model_fields[name]
        if getattr(policy, name) != field.get_default(call_default_factory=True):
            raise ValueError(
                f"policy.{name} is {getattr(policy, name)!r}, which is of recurrent_ppo; expected none {where}"
            )
