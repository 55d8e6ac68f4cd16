"""Perturbations found on another policy: no gradient of the attacked one is used, so masking them does not help it.

Replayed, the sequence found in the other policy's own episodes is added as it is. Adapted, the search sees where the
attacked policy's episodes really go, but takes the other policy, fed the same observations, for the attacked one.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from robust_policies.errors import ShapeError
from robust_policies.evaluation.attacks.attack import Attack, Moment, Options, Scene, checked
from robust_policies.evaluation.attacks.closed_loop_pgd import ClosedLoopPGD
from robust_policies.evaluation.attacks.mad_pgd import MADPGD
from robust_policies.evaluation.attacks.sequence_pgd import SequencePGD
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.frozen import FrozenActor
from robust_policies.policies.spaces import different, short
from robust_policies.policies.storage import load_policy


class TransferOptions(Options):
    """Settings of `transfer`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    policy: str | DeployedPolicy = Field(description="the other policy: its run folder, or the policy itself")
    mode: Literal["replay", "adapt"] = Field("replay", description="how its perturbations are used")
    attack: Literal["mad_pgd", "sequence_pgd", "closed_loop_pgd"] = Field(
        "sequence_pgd", description="the attack on the other policy"
    )
    options: dict[str, Any] = Field({}, description="that attack's settings")


_INNER: dict[str, type[Attack]] = {
    "mad_pgd": MADPGD,
    "sequence_pgd": SequencePGD,
    "closed_loop_pgd": ClosedLoopPGD,
}


class Transfer(Attack):
    """An attack on another policy, used on this one."""

    Options = TransferOptions

    def begin(self, scene: Scene) -> None:
        """Play the other policy's episodes, or begin the attack that takes it for this one.

        Raises:
            ShapeError: the other policy does not fit the task.
        """
        super().begin(scene)
        given, here = self.options.policy, scene.actor.policy
        other = given if isinstance(given, DeployedPolicy) else load_policy(given)
        for name in ("observation_space", "action_space"):
            pair = [getattr(policy, name) for policy in (other, here)]
            if different(*pair):
                raise ShapeError(
                    f"The other policy of transfer has the {name.replace('_', ' ')} {short(pair[0])} and the attacked "
                    f"one {short(pair[1])}; expected a policy of the same task."
                )
        if other.device != here.device:
            other = other.to(here.device)
        kind = _INNER[self.options.attack]
        self.inner = kind(checked(kind.Options, self.options.attack, self.options.options))
        if self.options.mode == "replay":
            observations, perturbed, _ = scene.rehearse(other, self.inner)
            self.found = perturbed.double() - observations.double()
            return
        self.other = FrozenActor(other)
        self.hidden = self.other.initial_state(scene.batch)
        self.inner.begin(dataclasses.replace(scene, actor=self.other))

    def perturbation(self, moment: Moment) -> Tensor:
        """Return what was found on the other policy for this step."""
        if self.options.mode == "replay":
            return self.found[moment.t] if moment.t < len(self.found) else torch.zeros_like(moment.observation)
        delta = self.inner.perturbation(Moment(moment.t, moment.observation, self.hidden))
        with torch.no_grad():
            _, self.hidden = self.other.step(moment.observation + delta, self.hidden)
        return delta
