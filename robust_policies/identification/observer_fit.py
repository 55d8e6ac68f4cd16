"""Learning a contracting observer from pairs of states: xh+ = o(xh, y, u) is fitted to x+ from (x, y, u), no recursion.

The error that remains, r = o(x, y, u) - x+, enters the error of the estimate through a contraction of rate al below 1
(`observer_bound`), so what is minimised is |r|, or |r|_P in the cell's own metric P, which the bound is stated in.

Source: N. H. Barbara, R. Wang and I. R. Manchester, "R2DN" (arXiv 2504.01250), the observer of its experiments, for the
one-step loss, the batches of consecutive pairs and the learning rate that falls on a plateau.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from robust_policies import checks
from robust_policies.envs import load_plant
from robust_policies.errors import CorruptFileError, DivergedError, InvalidValueError, NonFiniteError, ShapeError
from robust_policies.files.atomic import write_atomic
from robust_policies.files.tensors import load_optimizer, optimizer_tensors, packed, read_tensors, under
from robust_policies.identification.model import DTYPES, IdentifiedModel, Signals
from robust_policies.identification.observer import LearnedObserver, observed, plain_name
from robust_policies.identification.records import Array
from robust_policies.networks import make_cell
from robust_policies.policies.adam import FusedAdam

# Updates between two looks at the metric in which |r|_P is measured.
_METRIC_EVERY = 20


@dataclass(frozen=True, eq=False)
class Samples:
    """Pairs of states one step apart, with what was measured and applied at the first: all in the plant's units.

    Attributes:
        states: (count, n).
        outputs: (count, p) measured.
        inputs: (count, m) applied, m may be 0.
        following: (count, n).
        state_names, output_names, input_names: of the columns.
        sample_time: in seconds.
        task: the task whose plant gave them, "" for none.
    """

    states: Array
    outputs: Array
    inputs: Array
    following: Array
    state_names: tuple[str, ...]
    output_names: tuple[str, ...]
    input_names: tuple[str, ...]
    sample_time: float
    task: str = ""

    def __post_init__(self) -> None:
        for part, names in (
            ("states", self.state_names),
            ("outputs", self.output_names),
            ("inputs", self.input_names),
            ("following", self.state_names),
        ):
            values = getattr(self, part)
            checks.shape(part, values, (len(self.states), len(names)))
            if not np.isfinite(values).all():
                raise NonFiniteError(f"{part} hold NaN or infinite values; expected finite numbers.")
        if not len(self.states):
            raise ShapeError("states holds no row; expected one at least.")


@dataclass(frozen=True)
class ObserverTraining:
    """How an observer is fitted.

    Attributes:
        epochs: passes over the samples.
        batch: samples of an update.
        order: "random" in every epoch; "consecutive": stretches of them, whose order is drawn once.
        learning_rate: of Adam.
        decay: "cosine" to 0.5% over all updates; "plateau": a tenth after 10 epochs without a smaller
            loss, down to 1e-6.
        norm: "metric": |r|_P with P scaled so that |r|_P >= |r|, looked at again every few updates; "plain": |r|.
        max_grad_norm: the gradient's norm is limited to it, None: not.
        precision: "float32" or "float64".
        seed: of weights and order.
    """

    epochs: int = 40
    batch: int = 256
    order: Literal["random", "consecutive"] = "random"
    learning_rate: float = 2e-3
    decay: Literal["cosine", "plateau"] = "cosine"
    norm: Literal["metric", "plain"] = "metric"
    max_grad_norm: float | None = None
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        checks.positive_int("epochs", self.epochs)
        checks.positive_int("batch", self.batch)
        checks.finite_float("learning_rate", self.learning_rate, above=0.0)
        for name, known in (
            ("order", ("random", "consecutive")),
            ("decay", ("cosine", "plateau")),
            ("norm", ("metric", "plain")),
            ("precision", tuple(DTYPES)),
        ):
            if getattr(self, name) not in known:
                raise InvalidValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}.")


def plant_samples(
    task: str, region: Sequence[float], count: int, seed: int = 0, inputs: Sequence[float] | None = None
) -> Samples:
    """Return samples of a task's plant, states uniform in a box about its equilibrium, inputs within their limits.

    Args:
        task: its name or folder, see `envs.load_plant`.
        region: half widths (n,) about the equilibrium's state (`control.linearize.linearize_plant`).
        count: how many.
        seed: of the draws.
        inputs: half widths (m,) about the equilibrium's input; None: all that the actuators allow.

    Raises:
        ShapeError, InvalidValueError: region or inputs do not fit. UserError: as `load_plant`.
    """
    plant = load_plant(task)
    low, high, _ = observed(plant, region, inputs)
    drawn = low + (high - low) * np.random.default_rng(seed).random((checks.positive_int("count", count), len(low)))
    x, u = (torch.as_tensor(part) for part in np.split(drawn, [plant.state_size], 1))
    params = plant.prepare(plant.nominal())
    with torch.no_grad():
        y, following = plant.observe(x, params), plant.advance(x, u, params)
    return Samples(
        x.numpy(),
        y.numpy(),
        u.numpy(),
        following.numpy(),
        tuple(map(plain_name, plant.state_names)),
        tuple(map(plain_name, plant.output_names)),
        tuple(map(plain_name, plant.action_names)),
        sample_time=plant.time_step,
        task=task,
    )


def fit_observer(
    samples: Samples,
    cell: str = "r2dn",
    rate: float = 0.95,
    options: Mapping[str, Any] | None = None,
    training: ObserverTraining | None = None,
    *,
    start: Sequence[float] | None = None,
    scaled: bool = True,
    each: Callable[[int, float, IdentifiedModel], None] | None = None,
    checkpoint: str | Path | None = None,
) -> LearnedObserver:
    """Return a contracting observer fitted to samples.

    Args:
        samples: to learn from.
        cell: "r2dn" or "ren"; its output is its state.
        rate: of contraction, al; a smaller one bounds the error more tightly and fits less well.
        options: of the cell, in place of the defaults: as many states as the plant.
        training: how; None: the defaults.
        start: (n,) the estimate at the beginning of episodes; None: the samples' mean.
        scaled: the cell runs between signals without mean, of deviation 1; False: between those that are given.
        each: called after each epoch with its number (from 1), its mean loss and the model.
        checkpoint: a file that is written after each epoch; where there is one, the fit goes on from it as if it had
            not been interrupted. A finished one of decay "plateau" goes on to more epochs.

    Raises:
        InvalidValueError: an option of the cell, or the checkpoint is of another training. CorruptFileError: the
            checkpoint cannot be read. DivergedError: the loss became NaN or infinite.
    """
    how = training or ObserverTraining()
    n, y_u = samples.states.shape[1], np.hstack((samples.outputs, samples.inputs))
    names = (*samples.output_names, *samples.input_names)
    signals = Signals.of(names, samples.state_names, samples.sample_time, y_u, samples.states)
    signals = signals.steady() if scaled else signals.unscaled()
    given: dict[str, Any] = {"features": 4 * n, **({"hidden_sizes": (32, 32)} if cell == "r2dn" else {})}
    given |= {"activation": "tanh", "init": "long_memory", "rate": rate, "state_size": n, **(options or {})}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        made = make_cell(cell, len(names), given["state_size"], **given, output="state").to(DTYPES[how.precision])
    model = IdentifiedModel(made, signals)
    _fit(model, samples, y_u, how, each, None if checkpoint is None else Path(checkpoint))
    first = samples.states.mean(0) if start is None else np.asarray(start, float)
    return LearnedObserver(model.eval(), samples.outputs.shape[1], tuple(map(float, first)), samples.task)


def _fit(
    model: IdentifiedModel,
    samples: Samples,
    y_u: Array,
    how: ObserverTraining,
    each: Callable[[int, float, IdentifiedModel], None] | None,
    checkpoint: Path | None,
) -> None:
    u, x = (torch.as_tensor(part, dtype=model.dtype) for part in model.signals.scaled(y_u, samples.states))
    (following,) = (torch.as_tensor(p, dtype=model.dtype) for p in model.signals.scaled(outputs=samples.following))
    rng, count = np.random.default_rng(how.seed), max(1, round(len(x) / how.batch))
    pieces = np.array_split(np.arange(len(x)), count)
    once = rng.permutation(count)
    optimizer = FusedAdam(model.parameters(), lr=how.learning_rate)
    plateau = _Plateau(how.learning_rate)
    weight, begun = torch.eye(x.shape[1], dtype=model.dtype), 0
    if checkpoint is not None and checkpoint.is_file():
        begun, weight = _go_on(checkpoint, _same(how, len(x)), model, optimizer, plateau)
    done = begun * count
    for epoch in range(how.epochs):
        if how.order == "random":
            pieces = np.array_split(rng.permutation(len(x)), count)
        if epoch < begun:
            continue
        losses = []
        for k in once:
            rows = torch.as_tensor(pieces[k])
            if how.norm == "metric" and done % _METRIC_EVERY == 0:
                weight = _weight(model).to(model.dtype)
            rate = plateau.rate if how.decay == "plateau" else _cosine(how.learning_rate, done, how.epochs * count)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            _, found = model.cell(u[rows][None], x[rows])
            loss = ((found - following[rows]) @ weight).square().sum(-1).mean()
            loss.backward()
            if how.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), how.max_grad_norm)
            optimizer.step()
            losses.append(loss.detach())
            done += 1
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise DivergedError(f"The loss became {mean} in epoch {epoch + 1}; lower the learning rate.")
        plateau.note(mean)
        if each is not None:
            each(epoch + 1, mean, model)
        if checkpoint is not None:
            _keep(checkpoint, _same(how, len(x)), model, optimizer, plateau, epoch + 1, weight)


def _same(how: ObserverTraining, samples: int) -> bytes:
    """Return what has to be the same for a training to go on."""
    settings = {**asdict(how), "samples": samples}
    if how.decay == "plateau":
        del settings["epochs"]
    return json.dumps(settings, sort_keys=True).encode()


def _keep(
    path: Path,
    settings: bytes,
    model: IdentifiedModel,
    optimizer: FusedAdam,
    plateau: _Plateau,
    epochs: int,
    weight: Tensor,
) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer).items()}
    course = [epochs, plateau.rate, plateau.best, plateau.worse]
    tensors |= {"weight": weight, "course": torch.tensor(course, dtype=torch.float64)}
    tensors["settings"] = torch.frombuffer(bytearray(settings), dtype=torch.uint8)
    data = packed(tensors)
    write_atomic(path, lambda file: file.write(data))


def _go_on(
    path: Path, settings: bytes, model: IdentifiedModel, optimizer: FusedAdam, plateau: _Plateau
) -> tuple[int, Tensor]:
    """Return the epochs that are done and the metric's weight (nx, nx), model and optimizer as they were then."""
    try:
        tensors = read_tensors(path)
        stored = bytes(tensors["settings"].tolist())
        if stored != settings:
            raise InvalidValueError(
                f"{path} is of another training ({stored.decode()}); give another checkpoint, or remove it."
            )
        model.load_state_dict(under("model", tensors))
        load_optimizer(optimizer, under("optimizer", tensors))
        epochs, plateau.rate, plateau.best, worse = tensors["course"].tolist()
        plateau.worse = int(worse)
        return int(epochs), tensors["weight"]
    except (KeyError, RuntimeError, TypeError, UnicodeDecodeError, SafetensorError) as error:
        raise CorruptFileError(f"{path} holds no checkpoint of this observer ({error}); remove it.") from error


def _weight(model: IdentifiedModel) -> Tensor:
    """Return W (nx, nx) with W W' = P / lmin(P), float64."""
    P = model.cell.metric()
    return torch.linalg.cholesky(P / torch.linalg.eigvalsh(P)[0])


def _cosine(rate: float, done: int, total: int) -> float:
    return rate * (0.5 * (1.0 + math.cos(math.pi * done / total)) + 5e-3)


class _Plateau:
    """A rate that falls to a tenth after `patience` epochs whose loss was not smaller by 1e-4 of it."""

    def __init__(self, rate: float, patience: int = 10, least: float = 1e-6) -> None:
        self.rate, self.patience, self.least = rate, patience, least
        self.best, self.worse = math.inf, 0

    def note(self, loss: float) -> None:
        """Count an epoch of this loss."""
        self.worse = 0 if loss < self.best * (1.0 - 1e-4) else self.worse + 1
        self.best = min(self.best, loss)
        if self.worse > self.patience:
            self.rate, self.worse = max(0.1 * self.rate, self.least), 0
