"""What a recipe says of the analytic policy gradient: `algorithm: {name: apg, ...}`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from robust_policies.files.settings import Strict
from robust_policies.train.recipe.rates import rate_at
from robust_policies.train.recipe.sections import (
    Algorithm,
    BoundedCritic,
    PolicySection,
    TaskSection,
    refuse_settings_of_ppo,
)
from robust_policies.train.recipe.youla import YoulaSection


class AdversarySection(Strict):
    """Settings of the adversary: `algorithm: {name: apg, adversary: {size: 0.3}}`."""

    size: float = Field(gt=0, allow_inf_nan=False, description="largest l2 norm of a step's perturbation, raw units")
    steps: int = Field(default=2, ge=1, description="gradient steps of the adversary an update")
    share: float = Field(default=0.7, gt=0, le=1, description="share of the environments that are attacked")
    begin: float = Field(default=0.35, ge=0, lt=1, description="share of the training that passes before it begins")
    ramp: float = Field(default=0.35, ge=0, le=1, description="share of the training over which its size grows")

    def size_at(self, remaining: float) -> float:
        """Return the largest size when the share `remaining` (1 to 0) of the training is left."""
        passed = 1.0 - remaining - self.begin
        return self.size * min(1.0, max(0.0, passed / self.ramp if self.ramp else float(passed >= 0)))


class ApgSection(Algorithm):
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
    critic: BoundedCritic | None = Field(
        default=None, description="in place of an MLP an LBDN {cell: lbdn, gamma: ...} of the normalised features"
    )
    critic_learning_rate: float | str = 1e-3
    critic_updates: int = Field(default=8, ge=1, description="gradient steps of the value an update")
    critic_lambda: float = Field(default=0.95, ge=0, le=1, description="of the TD(lambda) targets of the value")
    adversary: AdversarySection | None = Field(default=None, description="perturbs the observations while training")
    start: str | None = Field(
        default=None, description="lqg: imitation of the task's design; or a run folder, or a policy.json; null: none"
    )
    start_rounds: int = Field(default=10, ge=1, description="rounds of that imitation")
    certified_size: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="train for the return under every perturbation of each step's observation of this l2 norm",
    )
    certified_ramp: float = Field(default=0.3, ge=0, le=1, description="share of the training over which it grows")
    certified_every: int = Field(default=8, ge=1, description="updates between two proofs of the gain")
    target_rate: float = Field(default=0.2, gt=0, le=1, description="share of the way the target value goes an update")

    def certified_size_at(self, remaining: float) -> float:
        """Return the size when the share `remaining` (1 to 0) of the training is left; it grows from a tenth."""
        passed = (1.0 - remaining) / self.certified_ramp if self.certified_ramp else 1.0
        return (self.certified_size or 0.0) * min(1.0, 0.1 + 0.9 * passed)

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

    def in_small(self, num_envs: int) -> dict[str, Any]:
        """Return the settings with which a training is a single update."""
        return {"total_steps": 1, "horizon": min(self.horizon, 2), "start_rounds": 1}

    def check_fit(self, task: TaskSection, policy: PolicySection, youla: YoulaSection | None) -> None:
        """Raise `ValueError` for inputs that gradients do not pass, and for what only PPO uses."""
        # The section's keys are made of `YoulaOptions`, which a type checker does not see.
        if quantum := getattr(youla, "quantum", 0.0):
            raise ValueError(
                f"youla.quantum is {quantum:g} with algorithm.name apg, whose gradients do not pass rounded "
                "inputs; expected 0, or recurrent_ppo or tensor_ppo"
            )
        if self.start is not None and youla is not None:
            raise ValueError(
                f"algorithm.start is {self.start!r} with a youla section, whose controller is the start; expected null"
            )
        if self.certified_size is not None:
            self._check_certified()
        refuse_settings_of_ppo(policy, "with apg, whose value is set by algorithm.critic_sizes or algorithm.critic")

    def _check_certified(self) -> None:
        """Raise `ValueError` where the objective is not the plain cost that the certified one is made of."""
        for name, expected in (("discount", 1.0), ("value_tail", False), ("adversary", None), ("action_noise", 0.0)):
            if getattr(self, name) != expected:
                given = getattr(self, name)
                raise ValueError(
                    f"algorithm.certified_size is {self.certified_size:g} and algorithm.{name} is {given!r}; expected "
                    f"{'null' if expected is None else str(expected).lower()}, as the bound is of the plain cost"
                )
