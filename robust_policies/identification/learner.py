"""Fitting a model to windows of records: errors of simulation and of one step, and what a checkpoint needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from robust_policies.errors import DivergedError, InvalidValueError
from robust_policies.files.tensors import load_optimizer, optimizer_tensors, under
from robust_policies.identification.batches import Batches
from robust_policies.identification.model import IdentifiedModel, load_model
from robust_policies.identification.records import Array, Experiment
from robust_policies.identification.residuals import mean_nrmse
from robust_policies.identification.settings import IdentificationSettings, TrainingSection
from robust_policies.networks import StateEncoder
from robust_policies.policies.adam import FusedAdam, forget_gradients, gradient_norm, take_step
from robust_policies.train.run.checkpoints import Progress
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.guard import LinAlgError, diverged, in_update, too_large
from robust_policies.train.run.loop import Updates

FIT = "validation/fit"
SHOWN = "train/fit"


def free_run_error(
    model: IdentifiedModel, inputs: Tensor, outputs: Tensor, state: Tensor | None, burn_in: int
) -> tuple[Tensor, Tensor]:
    """Return the mean squared error () of simulation over a batch of windows, and the final states (batch, nx).

    Args:
        model: simulates.
        inputs: scaled, (time, batch, nu).
        outputs: measured and scaled, (time, batch, ny).
        state: (batch, nx) at the beginning, carried over from the window before, which is judged from its first sample;
            None: where the model begins, and the first `burn_in` samples are not judged, unless it begins at a
            measurement.
        burn_in: samples.
    """
    begin, first, skipped = state, 0, 0
    if begin is None:
        begin, first = model.begin(inputs, outputs)
        skipped = 0 if model.measures_state else max(burn_in, first)
    found, final = model.cell(inputs[first:], begin)
    return (found[skipped - first :] - outputs[skipped:]).square().mean(), final


def one_step_error(model: IdentifiedModel, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return the mean squared error () one step from the measured state, or from the one an encoder reads.

    Scaled inputs (time, batch, nu) and measured outputs (time, batch, ny); for every place of the windows at which
    enough was measured before.
    """
    if model.measures_state:
        _, following = model.cell(inputs[:-1].flatten(0, 1)[None], outputs[:-1].flatten(0, 1))
        return (following - outputs[1:].flatten(0, 1)).square().mean()
    encoder = model.initial
    assert isinstance(encoder, StateEncoder)
    places = len(inputs) - encoder.window
    windows = [part.unfold(0, encoder.window, 1)[:places].flatten(0, 1).movedim(-1, 0) for part in (inputs, outputs)]
    found, _ = model.cell(inputs[encoder.window :].flatten(0, 1)[None], encoder(*windows))
    return (found[0] - outputs[encoder.window :].flatten(0, 1)).square().mean()


class Identification(Updates):
    """An identification; an update is a step of Adam on one batch, an evaluation a simulation of the validation.

    Args:
        model: what is fitted.
        settings: how.
        train: records to learn from.
        validation: records that choose which model is kept.
        report: writes what there is to say of the kept model into the run folder.

    Raises:
        InvalidValueError: one_step is asked for and there is no state to begin a step with.
    """

    score = FIT
    shown = SHOWN
    timed = False
    updates = 1

    def __init__(
        self,
        model: IdentifiedModel,
        settings: IdentificationSettings,
        train: Sequence[Experiment],
        validation: Sequence[Experiment],
        report: Callable[[IdentifiedModel, RunFolder], None],
        device: str = "cpu",
    ) -> None:
        self.model, self.settings, self.validation, self._report = model, settings, validation, report
        own = settings.algorithm
        if own.one_step and not (model.measures_state or isinstance(model.initial, StateEncoder)):
            raise InvalidValueError(
                f"algorithm.one_step is {own.one_step:g}, which needs a state that is measured or read: set "
                "algorithm.initial_state=encoded, or cell.output=state."
            )
        self.batches = Batches(train, model.signals, own, settings.seed, model.dtype, device)
        self.optimizer = FusedAdam(model.parameters(), lr=own.learning_rate)
        self.parameters = list(model.parameters())
        self.state: Tensor | None = None
        self.steps = self.batches.window * self.batches.size

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self.model

    def deployed(self) -> NoReturn:
        """Refuse: a model is no policy."""
        raise InvalidValueError("An identified model was asked for as a policy; use its `simulate`.")

    def save(self, folder: Path) -> None:
        """Write the model into a folder."""
        self.model.save(folder)

    def load(self, folder: Path) -> None:
        """Read the model in a folder; raises where it cannot be read."""
        load_model(folder)

    def update(self, progress: Progress) -> dict[str, Any]:
        """Return the scalars of one update made at `progress`; raises `DivergedError`."""
        own, number = self.settings.algorithm, progress.n_updates
        rate = _rate_at(own, number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        forget_gradients(self.parameters)
        try:
            found, loss = self._loss(number)
        except LinAlgError as error:
            raise self._diverged(too_large(self.model), progress) from error
        loss.backward()
        norm = gradient_norm(self.parameters)
        wrong = in_update([loss.detach()], [norm])
        if wrong is not None:
            raise self._diverged(wrong, progress)
        take_step(self.optimizer, self.parameters, norm, own.max_grad_norm)
        error = found.get("train/free_run_mse", found.get("train/one_step_mse", 0.0))
        # Scaled outputs have deviation 1, so that this is a fit as that of the validation.
        found[SHOWN] = 100.0 * (1.0 - math.sqrt(error))
        return {
            "train/loss": float(loss.detach()),
            "train/gradient_norm": float(norm),
            "train/learning_rate": rate,
            **found,
        }

    def _loss(self, number: int) -> tuple[dict[str, float], Tensor]:
        own = self.settings.algorithm
        inputs, outputs = self.batches.batch(number)
        loss, found = inputs.new_zeros(()), {}
        if own.free_run:
            state = None if self.batches.begins(number) else self.state
            error, final = free_run_error(self.model, inputs, outputs, state, self.settings.burn_in)
            self.state = final.detach()
            loss, found["train/free_run_mse"] = loss + own.free_run * error, float(error.detach())
        if own.one_step:
            error = one_step_error(self.model, inputs, outputs)
            loss, found["train/one_step_mse"] = loss + own.one_step * error, float(error.detach())
        return found, loss

    def _diverged(self, what: str, progress: Progress) -> DivergedError:
        return diverged(what, progress.n_updates + 1, progress.num_timesteps)

    def note(self, found: Mapping[str, Any]) -> None:
        """Nothing is kept of the scalars of an update."""

    def certified(self) -> dict[str, float]:
        """Return nothing: the certificate is made of the kept model."""
        return {}

    def evaluate(self) -> dict[str, float]:
        """Return the error and the fit of a free run over the validation."""
        pairs = [(one.outputs, simulated(self.model, one)) for one in self.validation]
        error = mean_nrmse(pairs, self.settings.washout)
        # What ran away has no fit: a large number stands for it, and the best of before is kept.
        error = error if math.isfinite(error) else 1e6
        return {FIT: 100.0 * (1.0 - error), "validation/nrmse_std": error}

    def exhausted(self, progress: Progress) -> bool:
        """Return whether the last `patience` evaluations were no better than the best before."""
        patience, best = self.settings.algorithm.patience, progress.best_timesteps
        if patience is None or best is None:
            return False
        return sum(steps > best for steps, *_ in progress.evaluations) >= patience

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, optimizer and the state that is carried over, by name."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        return found if self.state is None else {**found, "state": self.state}

    def load_tensors(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], progress: Progress) -> None:
        """Go on from what `tensors` returned, of the same shapes; raises as `Learner`'s."""
        self.model.load_state_dict(under("model", tensors))
        load_optimizer(self.optimizer, under("optimizer", tensors))
        self.state = tensors.get("state")

    def report(self, run: RunFolder) -> None:
        """Write what there is to say of the model as it is."""
        self._report(self.model, run)


def simulated(model: IdentifiedModel, one: Experiment) -> Array:
    """Return the raw outputs (time, ny) of a free run over a record; what an encoder read is as measured."""
    u, y = (torch.as_tensor(part, dtype=model.dtype)[:, None] for part in model.signals.scaled(one.inputs, one.outputs))
    device = next(model.parameters()).device
    with torch.no_grad():
        state, first = model.begin(u.to(device), y.to(device))
        found, _ = model.cell(u[first:].to(device), state)
    outputs = one.outputs.copy()
    outputs[first:] = found[:, 0].double().cpu().numpy() * model.signals.output_scale + model.signals.output_offset
    return outputs


def _rate_at(settings: TrainingSection, number: int) -> float:
    """Return the learning rate of update `number` (from 0)."""
    if settings.decay == "constant":
        return settings.learning_rate
    return settings.learning_rate * (0.5 * (1.0 + math.cos(math.pi * number / settings.total_steps)) + 2e-3)
