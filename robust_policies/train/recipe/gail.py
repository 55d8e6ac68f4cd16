"""What a recipe says of adversarial imitation: `algorithm: {name: gail, ...}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from robust_policies.files.settings import Strict
from robust_policies.train.recipe.imitation import LQG
from robust_policies.train.recipe.ppo import GRAPHS_TEXT, ClippedSection, Graphs
from robust_policies.train.recipe.sections import PolicySection, TaskSection
from robust_policies.train.recipe.youla import YoulaSection


class RewardSection(Strict):
    """The reward that tells the teacher from the student: of bounded gain (lbdn), or not (mlp)."""

    cell: Literal["lbdn", "mlp"] = "lbdn"
    gamma: float | None = Field(
        default=None, gt=0, description="lbdn: bound of its gain from observation and action in their units; null: 1"
    )
    hidden_sizes: list[Annotated[int, Field(ge=1)]] = Field(default_factory=lambda: [64, 64], min_length=1)
    activation: str = "tanh"
    loss: Literal["logistic", "wasserstein"] = Field(
        default="logistic", description="wasserstein: the difference of the means, which only a bound keeps finite"
    )
    updates: int = Field(default=10, ge=1, description="gradient steps for every rollout")
    batch_size: int = Field(default=256, ge=1, description="steps of the teacher in a gradient step, and the student's")
    learning_rate: float = Field(default=1e-3, gt=0)

    @model_validator(mode="after")
    def _bound_fits(self) -> RewardSection:
        if self.cell == "mlp" and self.gamma is not None:
            raise ValueError(
                f"algorithm.reward.gamma is {self.gamma:g} and cell mlp, which has no bound; expected cell lbdn"
            )
        if self.cell == "mlp" and self.loss == "wasserstein":
            raise ValueError(
                "algorithm.reward.loss is wasserstein and cell mlp, which has no bound; expected cell lbdn"
            )
        return self


class GailSection(ClippedSection):
    """Settings of adversarial imitation: PPO's on the device, and those of the reward that is learnt beside it.

    The last policy is kept where the recipe does not say otherwise: the task's own reward chooses none.
    """

    task: ClassVar[Mapping[str, Any]] = {"num_envs": 64}
    checkpoints: ClassVar[Mapping[str, Any]] = {"keep": "last"}

    name: Literal["gail"] = "gail"
    teacher: str = Field(
        default=LQG, description="lqg; a run folder, or a policy.json; or the folder of a Minari data set"
    )
    demonstrations: int = Field(default=16, ge=1, description="episodes of the teacher that are learnt from")
    horizon: int | None = Field(default=None, ge=1, description="steps of one; null: the task's time limit")
    reward: RewardSection = Field(default_factory=RewardSection)
    total_steps: int = Field(default=200_000, ge=1, description="environment steps, all environments together")
    n_steps: int = Field(default=64, ge=2, description="steps of each environment between two updates")
    batch_size: int = Field(default=1024, ge=2)
    n_epochs: int = Field(default=5, ge=1)
    learning_rate: float | str = Field(default="lin_1e-3", description="a number, or lin_NUMBER to fall linearly to 0")
    spread_episodes: bool = True
    graphs: Graphs = Field(default="auto", description=GRAPHS_TEXT)

    @property
    def on_device(self) -> bool:
        """True: the rollouts stay tensors."""
        return True

    def in_small(self, num_envs: int) -> dict[str, Any]:
        """Return the settings with which a training is a single update."""
        reward = self.reward.model_copy(update={"updates": 1})
        few = {"demonstrations": 1, "horizon": min(self.horizon or 2, 2), "reward": reward}
        return super().in_small(num_envs) | few

    def check_fit(self, task: TaskSection, policy: PolicySection, youla: YoulaSection | None) -> None:
        """Raise `ValueError` for a Youla parameter, or a minibatch larger than a rollout."""
        if youla is not None:
            raise ValueError(
                "youla is given with algorithm.name gail, whose reward reads actions and no Youla input; expected "
                "recurrent_ppo or tensor_ppo"
            )
        super().check_fit(task, policy, youla)
