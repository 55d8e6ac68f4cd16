"""What a recipe says of learning from demonstrations: `algorithm: {name: imitation, ...}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from robust_policies.train.recipe.rates import rate_at
from robust_policies.train.recipe.sections import Algorithm, PolicySection, TaskSection, refuse_settings_of_ppo
from robust_policies.train.recipe.youla import YoulaSection

GIVEN = "given"
LQG = "lqg"


class ImitationSection(Algorithm):
    """Settings of imitation; in a round every environment of the task adds `horizon` demonstrated steps.

    Every round is evaluated and kept where the recipe does not say otherwise.
    """

    counted: ClassVar[Literal["num_timesteps", "n_updates"]] = "n_updates"
    checkpoints: ClassVar[Mapping[str, Any]] = {"every": 1, "evaluate_every": 1}

    name: Literal["imitation"] = "imitation"
    teacher: str = Field(default=LQG, description="lqg: the task's own design; or a run folder, or a policy.json")
    method: Literal["dagger", "bc"] = Field(default="dagger", description="bc: the teacher acts in every round")
    rounds: int = Field(default=10, ge=1)
    mixing: float = Field(default=0.5, ge=0, lt=1, description="of dagger: the teacher acts with chance mixing^round")
    horizon: int | None = Field(default=None, ge=1, description="steps a round; null: the task's time limit")
    updates: int = Field(default=200, ge=1, description="gradient steps a round")
    batch_size: int = Field(default=32, ge=1, description="demonstrations of a gradient step")
    segment: int = Field(default=64, ge=1, description="steps through which gradients are propagated back")
    learning_rate: float | str = Field(default="cos_5e-3", description="a number; lin_, cos_ or drop_NUMBER")
    max_grad_norm: float = Field(default=1.0, gt=0)
    closed_loop_weight: float = Field(
        default=0.0, ge=0, description="of a penalty that lets a bound of the linear closed loop follow (r2dn)"
    )
    held_out: int = Field(default=16, ge=1, description="episodes of the teacher on which the error is measured")

    @property
    def total_steps(self) -> int:
        """Gradient steps of all rounds."""
        return self.rounds * self.updates

    def chance(self, round: int) -> float:
        """Return the chance that the teacher acts in a step of a round (from 0)."""
        return 1.0 if self.method == "bc" else self.mixing**round

    @field_validator("learning_rate")
    @classmethod
    def _falls(cls, value: float | str) -> float | str:
        rate_at(value, 1.0)
        return value

    def in_small(self, num_envs: int) -> dict[str, Any]:
        """Return the settings with which a training is a single round."""
        return {"rounds": 1, "updates": 1, "held_out": 1, "horizon": min(self.horizon or 2, 2)}

    def check_fit(self, task: TaskSection, policy: PolicySection, youla: YoulaSection | None) -> None:
        """Raise `ValueError` for a Youla parameter, and for what only PPO uses."""
        if youla is not None:
            raise ValueError(
                "youla is given with algorithm.name imitation, which learns actions and no Youla parameter; expected "
                "recurrent_ppo or tensor_ppo"
            )
        refuse_settings_of_ppo(policy, "with imitation, which learns no value")
