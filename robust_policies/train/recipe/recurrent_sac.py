"""What a recipe says of SAC whose actor and critics have a memory: `algorithm: {name: recurrent_sac, ...}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from robust_policies.train.recipe.rates import rate_at
from robust_policies.train.recipe.sb3 import NamedSection, check_widths, entropy_weight
from robust_policies.train.recipe.sections import PolicySection, TaskSection
from robust_policies.train.recipe.youla import YoulaSection


class RecurrentSacSection(NamedSection):
    """Settings of recurrent SAC; SAC's have its names in Stable-Baselines3."""

    task: ClassVar[Mapping[str, Any]] = {"num_envs": 8}
    checkpoints: ClassVar[Mapping[str, Any]] = {"certify_every": 500}

    bounded: ClassVar[bool] = True

    name: Literal["recurrent_sac"] = "recurrent_sac"
    total_steps: int = Field(ge=1, description="environment steps, all environments together")
    learning_rate: float | str = Field(default=3e-4, description="a number; lin_, cos_ or drop_NUMBER to let it fall")
    buffer_size: int = Field(default=100_000, ge=1, description="steps that the replay buffer holds, with their states")
    learning_starts: int = Field(default=1000, ge=0, description="steps of random actions before the first update")
    batch_size: int = Field(default=32, ge=1, description="sequences of a gradient step")
    sequence_length: int = Field(default=32, ge=1, description="steps of a sequence that are learnt from")
    burn_in: int = Field(default=16, ge=0, description="steps before them that only bring the states up to date")
    tau: float = Field(default=0.005, gt=0, le=1, description="share of the way the target networks go a gradient step")
    discount: float = Field(default=0.99, gt=0, le=1)
    train_freq: int = Field(default=8, ge=1, description="steps of each environment between two updates")
    gradient_steps: int = Field(default=8, ge=1, description="of an update")
    ent_coef: float | str = Field(default="auto", description="a number, or auto or auto_NUMBER: learnt")
    target_entropy: float | Literal["auto"] = Field(default="auto", description="auto: minus the number of actions")
    max_grad_norm: float = Field(default=10.0, gt=0)

    @property
    def rows(self) -> int:
        """Steps of a sequence in the replay buffer: what is burnt in, what is learnt from, and the one after."""
        return self.burn_in + self.sequence_length + 1

    @field_validator("learning_rate")
    @classmethod
    def _falls(cls, value: float | str) -> float | str:
        rate_at(value, 1.0)
        return value

    @field_validator("ent_coef")
    @classmethod
    def _entropy(cls, value: float | str) -> float | str:
        entropy_weight(value)
        return value

    def in_small(self, num_envs: int) -> dict[str, Any]:
        """Return the settings with which a training of `num_envs` environments is a single update."""
        small = {"total_steps": 1, "learning_starts": 0, "batch_size": 2, "train_freq": 4, "gradient_steps": 1}
        return small | {"sequence_length": 2, "burn_in": 1, "buffer_size": 8 * num_envs}

    def check_fit(self, task: TaskSection, policy: PolicySection, youla: YoulaSection | None) -> None:
        """Raise `ValueError` for critics without a memory, and a buffer that holds no sequence."""
        super().check_fit(task, policy, youla)
        if policy.critic in ("shared", "mlp"):
            raise ValueError(
                f"policy.critic is {policy.critic} with algorithm.name recurrent_sac; expected own, or {{cell: lbdn, "
                "gamma: ...}"
            )
        if "net_arch" in policy.critic_kwargs:
            widths = policy.critic_kwargs["net_arch"]
            check_widths("policy.critic_kwargs.net_arch", widths)
            if policy.critic != "own":
                raise ValueError(
                    f"policy.critic_kwargs.net_arch is {widths} with a bounded policy.critic, which has hidden_sizes "
                    "of its own; expected none"
                )
        if self.buffer_size < self.rows * task.num_envs:
            raise ValueError(
                f"algorithm.buffer_size is {self.buffer_size}; expected at least {self.rows * task.num_envs}, one "
                "sequence with its burn-in of every environment"
            )
