"""What a recipe says of Stable-Baselines3's own SAC, TD3 and PPO: `algorithm: {name: sac, ...}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from robust_policies.errors import UnknownNameError
from robust_policies.train.recipe.ppo import ClippedSection
from robust_policies.train.recipe.rates import schedule
from robust_policies.train.recipe.sections import Algorithm, PolicySection, TaskSection
from robust_policies.train.recipe.youla import YoulaSection


class NamedSection(Algorithm):
    """What takes Stable-Baselines3's name for `discount` too, and acts within the actuators' range by itself."""

    bounded: ClassVar[bool] = False
    """Whether a critic of bounded gain is known."""

    @model_validator(mode="before")
    @classmethod
    def _gamma(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "gamma" not in data:
            return data
        if "discount" in data:
            raise ValueError("algorithm.gamma and algorithm.discount are the same; expected one of them")
        return {("discount" if key == "gamma" else key): value for key, value in data.items()}

    def check_fit(self, task: TaskSection, policy: PolicySection, youla: YoulaSection | None) -> None:
        """Raise `ValueError` for a Youla parameter, a range of the actions, which is the environment's, and others."""
        name = f"algorithm.name {getattr(self, 'name', '')}"
        if not (self.bounded or isinstance(policy.critic, str)):
            raise ValueError(
                f"policy.critic is a bounded value with {name}; expected sac, td3, recurrent_sac, recurrent_ppo or "
                "tensor_ppo"
            )
        if youla is not None:
            raise ValueError(f"youla is given with {name}; expected recurrent_ppo, tensor_ppo or apg")
        for key in ("action_scale", "action_offset"):
            if (value := getattr(policy, key)) is not None:
                raise ValueError(
                    f"policy.{key} is {value} with {name}, which knows the actuators' range; expected null"
                )


class _Sb3Section(NamedSection):
    """What Stable-Baselines3's own policies have and have not; one environment where a recipe has no number."""

    task: ClassVar[Mapping[str, Any]] = {"num_envs": 1}
    windowed: ClassVar[bool] = True

    def check_fit(self, task: TaskSection, policy: PolicySection, youla: YoulaSection | None) -> None:
        """Raise `ValueError` for what Stable-Baselines3's policies do not have."""
        super().check_fit(task, policy, youla)
        name = f"algorithm.name {getattr(self, 'name', '')}"
        if policy.cell == "mlp" and policy.cell_output_size is not None:
            raise ValueError(
                f"policy.cell_output_size is {policy.cell_output_size} with policy.cell mlp, which ends in a linear "
                "layer; expected null"
            )
        if policy.cell == "mlp" and policy.activation not in (None, "relu", "tanh"):
            raise ValueError(f"policy.activation is {policy.activation!r} with {name}; expected relu or tanh")
        for key, value in policy.critic_kwargs.items():
            if key != "hidden_sizes":
                raise UnknownNameError.among(f"key of policy.critic_kwargs with {name}:", key, ["hidden_sizes"])
            check_widths(f"policy.critic_kwargs.{key}", value)


def check_widths(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a list of the widths of layers."""
    if not isinstance(value, list) or not all(isinstance(width, int) and width > 0 for width in value):
        raise ValueError(f"{name} is {value!r}; expected widths such as [256, 256]")


def entropy_weight(value: float | str) -> tuple[float, bool]:
    """Return what the entropy is weighed with at first, and whether it is learnt: of a number, auto or auto_NUMBER.

    Raises `ValueError` for anything else.
    """
    learnt = isinstance(value, str) and value.startswith("auto")
    start = str(value).removeprefix("auto").removeprefix("_") or "1"
    try:
        number = float(start) if learnt or not isinstance(value, str) else -1.0
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ValueError("expected a number > 0, or auto or auto_NUMBER (such as auto_0.1) to learn it")
    return number, learnt


class _OffPolicySection(_Sb3Section):
    """What SAC and TD3 share."""

    bounded: ClassVar[bool] = True
    checkpoints: ClassVar[Mapping[str, Any]] = {"certify_every": 10_000}

    total_steps: int = Field(ge=1, description="environment steps, all environments together")
    learning_rate: float | str = Field(default=3e-4, description="a number, or lin_NUMBER to fall linearly to 0")
    buffer_size: int = Field(default=1_000_000, ge=1, description="steps that the replay buffer holds")
    learning_starts: int = Field(default=100, ge=0, description="steps of random actions before the first update")
    batch_size: int = Field(default=256, ge=1)
    tau: float = Field(default=0.005, gt=0, le=1, description="share of the way the target networks go an update")
    discount: float = Field(default=0.99, gt=0, le=1)
    train_freq: int | list[int | str] = Field(default=1, description="a number of steps, or [1, episode]")
    gradient_steps: int = Field(default=1, ge=-1, description="after every train_freq; -1: as many as steps were made")
    action_noise: float | None = Field(
        default=None, gt=0, description="deviation of noise on actions scaled to -1 to 1; null: none"
    )
    normalize_observation: bool = Field(default=False, description="VecNormalize; frozen into the policy at the end")
    normalize_reward: bool = Field(default=False, description="divide rewards by the running deviation of the return")

    @field_validator("learning_rate")
    @classmethod
    def _falls(cls, value: float | str) -> float | str:
        schedule(value)
        return value

    @field_validator("train_freq")
    @classmethod
    def _frequency(cls, value: int | list[int | str]) -> int | list[int | str]:
        number, unit = (value, "step") if isinstance(value, int) else (*value, None, None)[:2]
        if not isinstance(number, int) or number < 1 or unit not in ("step", "episode"):
            raise ValueError("expected a whole number of steps of at least 1, or such as [1, episode]")
        return value

    @field_validator("gradient_steps")
    @classmethod
    def _some(cls, value: int) -> int:
        if value == 0:
            raise ValueError("expected at least 1, or -1")
        return value

    @property
    def frequency(self) -> tuple[int, str]:
        """How long a rollout is, and in which unit."""
        return (self.train_freq, "step") if isinstance(self.train_freq, int) else tuple(self.train_freq)  # pyright: ignore[reportReturnType]

    def in_small(self, num_envs: int) -> dict[str, Any]:
        """Return the settings with which a training is a single update."""
        return {"total_steps": 1, "learning_starts": 0, "batch_size": 2, "train_freq": 1, "gradient_steps": 1}

    def check_fit(self, task: TaskSection, policy: PolicySection, youla: YoulaSection | None) -> None:
        """Raise `ValueError` for what Stable-Baselines3's off-policy algorithms do not do."""
        super().check_fit(task, policy, youla)
        if self.frequency[1] == "episode" and task.num_envs > 1:
            raise ValueError(
                f"algorithm.train_freq is {self.train_freq} with task.num_envs {task.num_envs}; expected steps, or one "
                "environment"
            )
        if policy.critic_kwargs and not isinstance(policy.critic, str):
            raise ValueError(
                f"policy.critic_kwargs is {policy.critic_kwargs} with a bounded policy.critic, which has hidden_sizes "
                "of its own; expected {}"
            )
        default = type(policy).model_fields["log_std_init"].default
        if policy.log_std_init != default:
            raise ValueError(f"policy.log_std_init is {policy.log_std_init:g}, which is of PPO; expected {default:g}")


class SacSection(_OffPolicySection):
    """Settings of SAC, defaults as Stable-Baselines3's."""

    name: Literal["sac"] = "sac"
    ent_coef: float | str = Field(default="auto", description="a number, or auto or auto_NUMBER: learnt")
    target_update_interval: int = Field(default=1, ge=1)
    target_entropy: float | Literal["auto"] = Field(default="auto", description="auto: minus the number of actions")

    @field_validator("ent_coef")
    @classmethod
    def _entropy(cls, value: float | str) -> float | str:
        entropy_weight(value)
        return value


class Td3Section(_OffPolicySection):
    """Settings of TD3, defaults as Stable-Baselines3's; without `action_noise` it does not explore."""

    name: Literal["td3"] = "td3"
    learning_rate: float | str = Field(default=1e-3, description="a number, or lin_NUMBER to fall linearly to 0")
    policy_delay: int = Field(default=2, ge=1, description="updates of the critics for one of the policy")
    target_policy_noise: float = Field(default=0.2, ge=0)
    target_noise_clip: float = Field(default=0.5, ge=0)


class PlainPpoSection(_Sb3Section, ClippedSection):
    """Settings of PPO, defaults as Stable-Baselines3's."""

    name: Literal["ppo"] = "ppo"
    n_steps: int = Field(default=2048, ge=2, description="steps of each environment between two updates")
    batch_size: int = Field(default=64, ge=2)
    clip_range_vf: float | str | None = Field(default=None, description="a number, or lin_NUMBER; null: not clipped")
    normalize_reward: bool = Field(default=False, description="divide rewards by the running deviation of the return")
    normalize_observation: bool = Field(default=False, description="VecNormalize; frozen into the policy at the end")

    @field_validator("clip_range_vf")
    @classmethod
    def _clipped(cls, value: float | str | None) -> float | str | None:
        if value is not None:
            schedule(value)
        return value

    def check_fit(self, task: TaskSection, policy: PolicySection, youla: YoulaSection | None) -> None:
        """Raise `ValueError` for what Stable-Baselines3's PPO does not do."""
        _Sb3Section.check_fit(self, task, policy, youla)
        ClippedSection.check_fit(self, task, policy, youla)
        if policy.critic == "mlp" and policy.cell != "mlp":
            raise ValueError("policy.critic is mlp with algorithm.name ppo; expected own or shared")
