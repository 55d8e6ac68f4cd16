"""Training for the certified return: the loss is the bound of the cost under every perturbation of a size.

With c the mean cost of a step and g the proven gain from a step's perturbation to the root of its cost, perturbations
of at most `size` at every step make the mean cost at most (sqrt(c) + size g)^2, the triangle bound of
`certificates.trajectory`. Its gain is the sampled one of `loop_gain`, with the multipliers of the last proof; every few
updates, and where they no longer give a gain, the proof is made anew. A policy of which nothing is proven any more goes
back to the last one with a proof, and its steps are half as long from then on, until proofs succeed again.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from robust_policies.certificates.layers import is_r2dn
from robust_policies.certificates.trajectory import Gain
from robust_policies.control.linear_model import LinearModel
from robust_policies.envs import arguments
from robust_policies.envs.plants.linear import LinearPlant
from robust_policies.errors import DivergedError, InvalidValueError, NotCertifiableError
from robust_policies.files.tensors import load_optimizer, optimizer_tensors, under
from robust_policies.policies.actor import Actor
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.return_loop import around_cell, proven_loop
from robust_policies.policies.return_task import fitting_model
from robust_policies.policies.youla.policy import YoulaCell
from robust_policies.train.apg.loop_gain import LoopGain
from robust_policies.train.recipe.apg import ApgSection

# After so many halvings of its steps in a row a training does not get away from where nothing is proven.
_SMALLEST_PACE = 2.0**-10
_FASTER = 1.25


class UnprovenStartError(NotCertifiableError):
    """Nothing is proven of the policy that a recipe's own imitation gave, so training cannot lower it."""


class CertifiedCost:
    """The loss of a training for the certified return, and what is proven of the policy as it is trained.

    Args:
        plant: of the task.
        actor: trained by `optimizer`.
        optimizer: of the actor's parameters.
        settings: with a certified_size.

    Attributes:
        gain: of the last proof, None before the first.
        pace: what learning rates are multiplied by, 1 or less.

    Raises:
        InvalidValueError: the policy is none whose gain can be differentiated. NotCertifiableError: its loop is not
        linear around its neurons. ShapeError: it does not fit the plant.
    """

    def __init__(
        self, plant: LinearPlant, actor: Actor, optimizer: torch.optim.Optimizer, settings: ApgSection
    ) -> None:
        self.plant, self.actor, self.optimizer, self.settings = plant, actor, optimizer, settings
        inner = actor.cell.actor if isinstance(actor.cell, YoulaCell) else actor
        with torch.no_grad():
            explicit = actor.cell.explicit()
        if not is_r2dn(explicit) or inner.head.linear is not None:
            raise InvalidValueError(
                f"algorithm.certified_size is {settings.certified_size:g} and policy.cell is {inner.cell.name!r}; "
                "expected 'r2dn' without policy.cell_output_size."
            )
        policy = self._deployed()
        self.model: LinearModel = fitting_model(policy, plant)
        running = policy.running()
        running.neurons()
        device = next(actor.parameters()).device
        self.surrogate = LoopGain(around_cell(running, self.model, plant), running.sizes, device)
        self.gain: Gain | None = None
        self.pace, self.undone = 1.0, 0
        self._kept: dict[str, Tensor] = {}

    def proven(self) -> Gain | str:
        """Return the gain that is proven of the policy as it is, with its multipliers, or why nothing is."""
        found = proven_loop(self._deployed().running(), self.model, self.plant)
        return found if isinstance(found, str) else found.gain

    def begin(self) -> None:
        """Prove a first gain; raises NotCertifiableError where there is none."""
        found = self.proven()
        if isinstance(found, str):
            raise NotCertifiableError(
                f"algorithm.certified_size needs a policy with a bound to start from, and {found}. Start from one: a "
                "youla section, algorithm.start=lqg, or the run folder of such a policy."
            )
        self._keep(found)
        if self._sampled() is None:
            raise NotCertifiableError(
                "algorithm.certified_size: a gain of the policy to start from is proven, but the multipliers "
                "of its proof give no gradient (a neuron has none); start from another policy."
            )

    def renew(self, number: int) -> None:
        """Prove the policy of before update `number` (from 0) if it is time, and go back where that fails.

        Raises:
            DivergedError: no step from the last policy with a proof leads to another, however short.
        """
        if self.gain is None:
            self.begin()
        elif number % self.settings.certified_every == 0 or self._sampled() is None:
            found = self.proven()
            if not isinstance(found, str):
                before, self.gain = self.gain, found
                if self._sampled() is not None:
                    self.pace = min(1.0, self.pace * _FASTER)
                    return self._keep(found)
                self.gain = before
                found = "the sampled gain is infinite with the multipliers of its proof"
            self._undo(found, number)

    def loss(self, cost: Tensor, remaining: float) -> tuple[Tensor, dict[str, float]]:
        """Return the loss for a mean cost of a step, and its scalars, with the share `remaining` of the training left.

        Follows `renew`.
        """
        gain = self._sampled(gradient=True)
        assert gain is not None and self.gain is not None
        size = self.settings.certified_size_at(remaining)
        root = cost.clamp(min=1e-12).sqrt()
        proven = self.gain.gain
        return (root + size * gain).square(), {
            "certified/gain": proven,
            "certified/sampled_gain": float(gain.detach()),
            "certified/size": size,
            "certified/cost": float((root.detach() + (self.settings.certified_size or 0.0) * proven).square()),
            "certified/undone": self.undone,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return what decides how training goes on, by name."""
        if self.gain is None:
            return {}
        found = {f"kept.{name}": value for name, value in self._kept.items()}
        found["theta"] = torch.as_tensor(self.gain.theta)
        found["numbers"] = torch.tensor([self.gain.gain, self.pace, self.undone], dtype=torch.float64)
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` returned, theta (size,) among it; raises KeyError elsewhere."""
        if not tensors:
            self.gain = None
            return
        gain, self.pace, undone = tensors["numbers"].tolist()
        self.gain, self.undone = Gain(gain, tensors["theta"].numpy().copy()), int(undone)
        self._kept = {name: value.clone() for name, value in under("kept", tensors).items()}

    def _sampled(self, gradient: bool = False) -> Tensor | None:
        """Return the sampled gain with the multipliers of the last proof, None where it is infinite."""
        assert self.gain is not None
        theta = torch.as_tensor(self.gain.theta, device=self.surrogate.circle.device)
        with torch.set_grad_enabled(gradient):
            return self.surrogate(self.actor.cell.explicit(), theta)

    def _keep(self, gain: Gain) -> None:
        """Take a proof of the policy as it is, and remember the policy."""
        self.gain = gain
        kept = {f"actor.{name}": value for name, value in self.actor.state_dict().items()}
        kept |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        self._kept = {name: value.detach().cpu().clone() for name, value in kept.items()}

    def _undo(self, why: str, number: int) -> None:
        self.pace, self.undone = 0.5 * self.pace, self.undone + 1
        if self.pace < _SMALLEST_PACE:
            raise DivergedError(
                f"The bound of the closed loop was lost again and again before update {number + 1}: {why}. Lower "
                "algorithm.learning_rate or algorithm.certified_every."
            )
        warnings.warn(
            f"Before update {number + 1} the bound of the closed loop was lost ({why}): training goes on from the last "
            f"policy with a bound, at {self.pace:g} of its learning rate.",
            stacklevel=2,
        )
        self.actor.load_state_dict(under("actor", self._kept))
        load_optimizer(self.optimizer, under("optimizer", self._kept))

    def _deployed(self) -> DeployedPolicy:
        return copy.deepcopy(self.actor).cpu().deployed(*arguments.spaces(self.plant, torch.float32))
