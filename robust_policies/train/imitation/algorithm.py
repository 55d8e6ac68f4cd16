"""Behaviour cloning and DAgger: a student learns to do what its teacher would have done.

In every round some episodes are played, the teacher says what it would have done in each of their situations, and the
student is fitted to all that has been collected. Behaviour cloning lets the teacher act, so the student never sees
where its own errors lead. DAgger lets the student act, step by step with chance 1 - mixing^round.

Source: S. Ross, G. Gordon and J. A. Bagnell, "A Reduction of Imitation Learning and Structured Prediction to No-Regret
Online Learning" (AISTATS 2011).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robust_policies.errors import InvalidValueError
from robust_policies.files.tensors import load_optimizer, optimizer_tensors, under
from robust_policies.policies.actor import Actor
from robust_policies.policies.adam import FusedAdam, forget_gradients, gradient_norm, take_step
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.train.actor import InwardClip
from robust_policies.train.imitation.margin import ClosedLoopMargin
from robust_policies.train.imitation.rollout import Demonstrations, Played, Stage
from robust_policies.train.imitation.teacher import Teacher
from robust_policies.train.recipe.imitation import ImitationSection
from robust_policies.train.recipe.rates import rate_at
from robust_policies.train.run.guard import LinAlgError, diverged, in_rollout, in_weights, too_large

_DATA = ("observations", "labels", "starts")
# Seeds of the rounds lie apart from one another by more than a round has environments.
_APART = 10_007
_SEEDS = 2**31


class Imitation:
    """Fits a student to its teacher.

    Args:
        stage: environments in which the demonstrations are played.
        teacher: what is imitated.
        student: its parameters are trained in place.
        settings: see `ImitationSection`.
        seed: of the environments, of who acts, and of the minibatches.
        margin: the penalty of `closed_loop_weight`, None without it.

    Attributes:
        data: all demonstrations so far, on the device; None before the first round.
        scale: (na,) what errors are divided by in the loss: the deviation of the teacher's first actions.
        rounds: rounds done.

    Raises:
        InvalidValueError: the task has no time limit, and the settings none either.
    """

    def __init__(
        self,
        stage: Stage,
        teacher: Teacher,
        student: Actor,
        settings: ImitationSection,
        seed: int,
        margin: ClosedLoopMargin | None = None,
    ) -> None:
        self.margin = margin
        self.stage, self.teacher, self.student, self.settings, self.seed = stage, teacher, student, settings, seed
        if settings.horizon is None and stage.limit is None:
            raise InvalidValueError("algorithm.horizon is null and the task has no time limit; expected a number.")
        self.horizon: int = settings.horizon or stage.limit or 0
        self.optimizer = FusedAdam(student.parameters())
        self.data: Demonstrations | None = None
        self.scale: Tensor | None = None
        self.rounds = 0

    def round(self) -> dict[str, float]:
        """Return the scalars of one round: demonstrations, then `updates` gradient steps on all of them.

        Raises:
            DivergedError: an action, a loss, a gradient or a weight is NaN or infinite.
        """
        settings, chance = self.settings, self.settings.chance(self.rounds)
        played = self.stage.play(self._seed(), self.horizon, self.teacher, self.student, chance)
        self._check(played)
        new = played.demonstrations
        if self.scale is None:
            spread = new.labels.flatten(0, 1).std(0, unbiased=False)
            # An action that the teacher hardly uses is not worth more than a thousandth of the others.
            self.scale = spread.clamp(min=max(1e-3 * float(spread.max()), 1e-9))
        self.data = new if self.data is None else self.data + new
        loss, norm = self._fit(self.data)
        self.rounds += 1
        found = {} if self.margin is None else self._margins(self.margin)
        return found | {
            "train/loss": loss,
            "train/gradient_norm": norm,
            "imitation/round": self.rounds,
            "imitation/teacher_acts": chance,
            "imitation/demonstrations": self.data.count,
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/n_updates": self.rounds * settings.updates,
        }

    def error(self, demonstrations: Demonstrations) -> Tensor:
        """Return the mean squared difference (na,) between the student's and the teacher's actions there.

        Both within their limits, in the actions' own units squared; the student remembers its own past.
        """
        with torch.no_grad():
            means, _ = self.student(demonstrations.observations, None, demonstrations.starts)
            means = means.clamp(self.stage.low, self.stage.high)
            return (means - demonstrations.labels).double().square().mean((0, 1))

    def deployed(self, weights: Mapping[str, Tensor] | None = None) -> DeployedPolicy:
        """Return a copy of the student on the CPU as a policy, with other weights if they are given."""
        actor = copy.deepcopy(self.student)
        if weights is not None:
            actor.load_state_dict(weights)
        return DeployedPolicy(actor.cpu(), self.stage.observation_space, self.stage.action_space, raw=True)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that decides what comes next, by name."""
        found = {f"student.{name}": value for name, value in self.student.state_dict().items()}
        found |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        if self.data is not None and self.scale is not None:
            found |= {f"data.{name}": value for name, value in self.data._asdict().items()} | {"scale": self.scale}
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor], rounds: int) -> None:
        """Go on from what `tensors` returned after so many rounds."""
        self.student.load_state_dict(under("student", tensors))
        load_optimizer(self.optimizer, under("optimizer", tensors))
        data, device = under("data", tensors), self.stage.device
        self.data = Demonstrations(*(data[name].to(device) for name in _DATA))
        self.scale = tensors["scale"].to(device)
        self.rounds = rounds

    def _fit(self, data: Demonstrations) -> tuple[float, float]:
        """Return the mean loss and gradient norm of this round's gradient steps."""
        settings, done = self.settings, 0
        generator = torch.Generator().manual_seed(self._seed())
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        try:
            while done < settings.updates:
                rows = torch.randperm(data.count, generator=generator)[: settings.batch_size].to(self.stage.device)
                state = self.student.cell.initial_state(len(rows))
                for first in range(0, self.horizon, settings.segment):
                    if done == settings.updates:
                        break
                    part = Demonstrations(*(value[first : first + settings.segment, rows] for value in data))
                    self._set_rate(1.0 - (self.rounds * settings.updates + done) / settings.total_steps)
                    loss, norm, state = self._step(part, state)
                    losses.append(loss)
                    norms.append(norm)
                    done += 1
        except LinAlgError as error:
            raise self._diverged(too_large(self.student)) from error
        values = torch.stack(losses), torch.stack(norms)
        spoilt = in_weights(self.student.state_dict())
        for name, value in zip(("loss", "gradient"), values, strict=True):
            if not bool(torch.isfinite(value).all()):
                spoilt = f"the {name} was {float(value[~torch.isfinite(value)][0])}"
        if spoilt:
            raise self._diverged(spoilt)
        return float(values[0].mean()), float(values[1].mean())

    def _margins(self, margin: ClosedLoopMargin) -> dict[str, float]:
        with torch.no_grad():
            radius, gain = margin.numbers(self.student)
        return {"closed_loop/radius": float(radius), "closed_loop/gain_around_neurons": float(gain)}

    def _step(self, part: Demonstrations, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, gradient norm and the memory after a segment, cut off from its past."""
        means, state = self.student(part.observations, state, part.starts)
        applied = InwardClip.apply(means, self.stage.low, self.stage.high)
        loss = ((applied - part.labels) / self.scale).square().mean()
        total = loss
        if self.margin is not None:
            total = loss + self.settings.closed_loop_weight * self.margin(self.student)
        parameters = list(self.student.parameters())
        forget_gradients(parameters)
        total.backward()
        norm = gradient_norm(parameters)
        take_step(self.optimizer, parameters, norm, self.settings.max_grad_norm)
        return loss.detach(), norm, state.detach()

    def _set_rate(self, remaining: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.settings.learning_rate, remaining)

    def _seed(self) -> int:
        """Return this round's seed: what it draws does not depend on how the rounds before it ended."""
        return (self.seed + _APART * (self.rounds + 1) * max(1, math.ceil(self.stage.count / _APART))) % _SEEDS

    def _check(self, played: Played) -> None:
        data = played.demonstrations
        spoilt = in_rollout(observation=data.observations, label=data.labels, action=played.actions)
        if spoilt:
            raise self._diverged(spoilt)

    def _diverged(self, what: str) -> Any:
        return diverged(what, self.rounds + 1, self.rounds * self.horizon * self.stage.count)
