"""What a recipe says of the analytic policy gradient: `algorithm: {name: apg, ...}`."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from robust_policies.train.apg_adversary import AdversarySection
from robust_policies.train.recipe import PolicySection, Recipe, _Section

_DECAYS = ("lin", "cos", "drop")
_WHERE_DROPPED = 0.25


class ApgSection(_Section):
    """Settings of the analytic policy gradient; one update follows every `horizon` steps of all environments."""

    name: Literal["apg"] = "apg"
    total_steps: int = Field(ge=1, description="environment steps, all environments together")
    horizon: int = Field(default=32, ge=1, description="steps through which gradients are propagated back")
    discount: float = Field(default=0.99, gt=0, le=1)
    value_tail: bool = Field(default=True, description="a learned value stands for what follows the horizon")
    learning_rate: float | str = Field(default=1e-3, description="a number; lin_, cos_ or drop_NUMBER to let it fall")
    max_grad_norm: float = Field(default=1.0, gt=0)
    betas: list[float] = Field(default_factory=lambda: [0.9, 0.999], description="of Adam: what its two averages keep")
    action_noise: float = Field(default=0.0, ge=0, description="deviation while training, in units of the action limit")
    zero_init: bool = Field(default=True, description="the first policy does nothing; false: the cell's random start")
    critic_sizes: list[int] = Field(default_factory=lambda: [64, 64], description="hidden layers of the value")
    critic_learning_rate: float | str = 1e-3
    critic_updates: int = Field(default=8, ge=1, description="gradient steps of the value an update")
    critic_lambda: float = Field(default=0.95, ge=0, le=1, description="of the TD(lambda) targets of the value")
    adversary: AdversarySection | None = Field(default=None, description="perturbs the observations while training")
    target_rate: float = Field(default=0.2, gt=0, le=1, description="share of the way the target value goes an update")

    @field_validator("learning_rate", "critic_learning_rate")
    @classmethod
    def _falls(cls, value: float | str) -> float | str:
        rate_at(value, 1.0)
        return value

    @field_validator("betas")
    @classmethod
    def _kept(cls, value: list[float]) -> list[float]:
        if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
            raise ValueError("expected two numbers from 0 to below 1, such as [0.9, 0.999]")
        return value

    @field_validator("critic_sizes")
    @classmethod
    def _widths(cls, value: list[int]) -> list[int]:
        if not value or min(value) < 1:
            raise ValueError("expected widths of at least 1, such as [64, 64]")
        return value


class ApgRecipe(Recipe):
    """A whole experiment with the analytic policy gradient."""

    algorithm: ApgSection  # pyright: ignore[reportIncompatibleVariableOverride]

    @model_validator(mode="after")
    def _nothing_of_ppo(self) -> ApgRecipe:
        if self.youla is not None and self.youla.quantum:
            raise ValueError(f"youla.quantum is {self.youla.quantum:g} with algorithm.name apg, whose gradients do not "
                             "pass rounded inputs; expected 0, or recurrent_ppo or tensor_ppo")  # fmt: skip
        refuse_settings_of_ppo(self.policy, "with apg, whose value is set by algorithm.critic_sizes")
        return self


def refuse_settings_of_ppo(policy: PolicySection, where: str) -> None:
    """Raise `ValueError` if a policy is given what only PPO uses."""
    for name in ("critic", "critic_kwargs", "log_std_init"):
        field = type(policy).model_fields[name]
        if getattr(policy, name) != field.get_default(call_default_factory=True):
            raise ValueError(
                f"policy.{name} is {getattr(policy, name)!r}, which is of recurrent_ppo; expected none {where}"
            )


def rate_at(value: float | str, remaining: float) -> float:
    """Return a learning rate when the share `remaining` (1 to 0) of the training is left.

    A number is kept; lin_NUMBER falls linearly to 0, cos_NUMBER along half a cosine, and drop_NUMBER is a tenth of
    NUMBER in the last quarter. Raises `ValueError` for anything else.
    """
    kind, text = "", value
    if isinstance(value, str):
        kind, _, text = value.partition("_")
    try:
        start = float(text)
    except ValueError:
        start = -1.0
    if not 0 < start < float("inf") or (isinstance(value, str) and kind not in _DECAYS):
        raise ValueError("expected a number > 0, or lin_NUMBER, cos_NUMBER or drop_NUMBER (such as drop_5e-3)")
    if kind == "lin":
        return start * remaining
    if kind == "cos":
        return start * 0.5 * (1.0 - math.cos(math.pi * remaining))
    # A last update that begins exactly at the quarter must not depend on rounding.
    return start * (0.1 if kind == "drop" and remaining <= _WHERE_DROPPED + 1e-9 else 1.0)
