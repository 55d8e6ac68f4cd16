"""What a recipe says of PPO: `algorithm: {name: tensor_ppo, ...}`, or recurrent_ppo."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from robust_policies.train.recipe.rates import schedule
from robust_policies.train.recipe.sections import Algorithm, PolicySection, TaskSection
from robust_policies.train.recipe.youla import YoulaSection

Graphs = Literal["auto", "never"]
GRAPHS_TEXT = "auto: on a GPU a rollout, and an update, is one CUDA graph where that is possible; never: not"


class ClippedSection(Algorithm):
    """PPO's settings under Stable-Baselines3's names, except `discount`, which it calls gamma."""

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

    @field_validator("learning_rate", "clip_range")
    @classmethod
    def _schedule(cls, value: float | str) -> float | str:
        schedule(value)
        return value

    def in_small(self, num_envs: int) -> dict[str, Any]:
        """Return the settings with which a training of `num_envs` environments is a single update."""
        return {"total_steps": 1, "n_steps": 2, "batch_size": 2 * num_envs, "n_epochs": 1}

    def check_fit(self, task: TaskSection, policy: PolicySection, youla: YoulaSection | None) -> None:
        """Raise `ValueError` if a minibatch is larger than a rollout."""
        rollout = task.num_envs * self.n_steps
        if self.batch_size > rollout:
            raise ValueError(
                f"algorithm.batch_size is {self.batch_size}; expected at most task.num_envs * algorithm.n_steps = "
                f"{rollout}, the samples of one update"
            )


class PpoSection(ClippedSection):
    """Recurrent PPO's settings."""

    name: Literal["recurrent_ppo", "tensor_ppo"] = Field(
        default="recurrent_ppo", description="tensor_ppo: the same on the device, for environments of this package"
    )
    spread_episodes: bool = Field(
        default=False,
        description="tensor_ppo: the first episodes end at different times, for rollouts shorter than one",
    )
    graphs: Graphs = Field(default="auto", description=f"tensor_ppo: {GRAPHS_TEXT}")

    @property
    def on_device(self) -> bool:
        """Whether the rollouts stay tensors on the device."""
        return self.name == "tensor_ppo"

    @model_validator(mode="after")
    def _fits_its_name(self) -> PpoSection:
        for option in ("normalize_observation", "spread_episodes", "graphs"):
            value = getattr(self, option)
            if value != type(self).model_fields[option].default and self.name != "tensor_ppo":
                given = str(value).lower()
                raise ValueError(
                    f"algorithm.{option} is {given} and algorithm.name {self.name}; expected name tensor_ppo"
                )
        return self
