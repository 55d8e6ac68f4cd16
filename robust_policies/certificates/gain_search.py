"""The search behind `empirical_gain`: bases, power iteration on the linearization, ascent of the central secant.

Every secant is an average of the linearization along the segment between its two inputs, so no secant beats the best
linearization; but where the slopes are piecewise constant (ReLU) only a secant of finite size has a gradient that
leads across the kinks. Hence the three turns: power iteration, Adam on secants, power iteration again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_policies import checks
from robust_policies.errors import DivergedError, ShapeError
from robust_policies.networks.once import once

# Rows (time steps times samples) differentiated together: what bounds the memory of a search.
_ROWS = 2**14
# Differences relative to the base: small enough for the linearization to hold, large enough for float64.
_SMALL = (1e-5, 1e-3)


# Decay of Adam's averages of the gradient and its square.
_BETAS = (0.9, 0.99)


class Pairs(NamedTuple):
    """Samples of a search: gains (1, batch, 1), midpoints and differences (time, batch, nu)."""

    gain: Tensor
    base: Tensor
    delta: Tensor

    def best_of(self, other: Pairs) -> Pairs:
        """Return, sample by sample, the pair with the larger gain."""
        better = other.gain > self.gain
        return Pairs(*(torch.where(better, theirs, ours) for ours, theirs in zip(self, other, strict=True)))

    def largest(self, count: int) -> Pairs:
        """Return the `count` samples with the largest gains, the best first."""
        order = self.gain.flatten().argsort(descending=True)[:count]
        return Pairs(*(part[:, order] for part in self))

    def split(self, size: int) -> list[Pairs]:
        """Return the samples `size` at a time."""
        return [Pairs(*parts) for parts in zip(*(part.split(size, dim=1) for part in self), strict=True)]


class Budget(NamedTuple):
    """How long to search.

    Attributes:
        keep: samples that go on after the first power iteration.
        power: most products with the linearization and its transpose in each power iteration; 0 leaves them out.
        adam: ascent steps on (base, direction, log size) in all; 0 ends the search after the first power iteration.
        turns: of ascent, power iteration and mutation.
        generations: of mutated bases in each turn.
    """

    keep: int
    power: int
    adam: int
    turns: int = 2
    generations: int = 4


class Map(NamedTuple):
    """A causal map in float64: `run` inputs (time, batch, nu) -> outputs; `step` (input, state) -> (output, state).

    Where the state is a window of past inputs, as a `WindowCell`'s is, `row` (..., nu) -> (..., nu) is what it keeps of
    each input, entry by entry; None elsewhere.
    """

    run: Callable[[Tensor], Tensor]
    step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    input_size: int
    state_size: int
    row: Callable[[Tensor], Tensor] | None = None


def running_map(model: Any) -> Map:
    """Return the map of a cell, an actor or a policy with an actor, from the initial state; a map as it is.

    The explicit arrays are those that run, upcast exactly, not recomputed in float64.

    Raises:
        DivergedError: the arrays hold NaN or infinite values.
    """
    if isinstance(model, Map):
        return model
    actor = getattr(model, "actor", model)
    cell = actor.cell if hasattr(actor, "cell") else actor
    explicit = _upcast(once(cell, "explicit"))
    double = copy.deepcopy(actor).to(device="cpu", dtype=torch.float64).eval().requires_grad_(False)
    broken = [*_not_finite(explicit), *_not_finite(tuple(double.state_dict().values()))]
    if broken:
        raise DivergedError(
            f"{len(broken)} of the network's arrays hold NaN or infinite values, so it has no gain to measure; train "
            "it again, or load an earlier checkpoint."
        )
    inner, before, after = double, _same, _same
    if hasattr(double, "cell"):
        inner, after = double.cell, double.head

        def before(inputs: Tensor) -> Tensor:
            return double.body.scaling(double.normalized(inputs))

    def run(inputs: Tensor) -> Tensor:
        return after(inner.run(explicit, before(inputs), inner.initial_state(inputs.shape[1]), None)[0])

    fixed = inner.fixed_step(explicit)

    def step(inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output, state = fixed(before(inputs), state)
        return after(output), state

    return Map(run, step, cell.input_size, cell.state_size, before if hasattr(cell, "window") else None)


def _same(inputs: Tensor) -> Tensor:
    return inputs


def input_units(model: Any, nu: int) -> tuple[Tensor, Tensor]:
    """Return (centre, scale), each (nu,): what the model's own scaling takes for zero and for one."""
    actor = getattr(model, "actor", model)
    centre, scale = torch.zeros(nu, dtype=torch.float64), torch.ones(nu, dtype=torch.float64)
    scaling = getattr(getattr(actor, "body", None), "scaling", None)
    if scaling is not None:
        centre = centre if scaling.offset is None else scaling.offset.detach().cpu().double()
        scale = scale if scaling.scale is None else scaling.scale.detach().cpu().double()
    normalizer = getattr(actor, "normalizer", None)
    if normalizer is not None:
        mean, std = normalizer.mean.detach().cpu().double(), normalizer.std.detach().cpu().double()
        centre, scale = mean + std * centre, std * scale
    return centre, scale


def generated_bases(steps: int, batch: int, nu: int, generator: torch.Generator) -> Tensor:
    """Return (steps, batch, nu) of noise, constants (steps) and sinusoids in turn, sizes log-spaced .01 to 30."""
    size = torch.logspace(-2, 1.5, batch, dtype=torch.float64)
    size = size[torch.randperm(batch, generator=generator)].reshape(1, batch, 1)
    noise = torch.randn(steps, batch, nu, generator=generator, dtype=torch.float64)
    time = torch.arange(steps, dtype=torch.float64).reshape(-1, 1, 1)
    frequency = math.pi * torch.rand(1, batch, nu, generator=generator, dtype=torch.float64)
    wave = torch.sin(frequency * time + noise[:1])
    kind = torch.arange(batch).reshape(1, batch, 1) % 3
    return size * torch.where(kind == 0, noise, torch.where(kind == 1, noise[:1].expand_as(noise), wave))


def recorded_bases(rollouts: Any, steps: int, nu: int, limit: int) -> Tensor:
    """Return up to `limit` windows (steps, windows, nu) of rollouts (time, n, nu), spread over time and rollouts.

    Shorter rollouts hold their last row. Raises ShapeError, NonFiniteError.
    """
    recorded = torch.as_tensor(rollouts, dtype=torch.float64)
    checks.shape("bases", recorded, (None, None, nu))
    if 0 in recorded.shape:
        raise ShapeError(f"bases has shape {tuple(recorded.shape)}; expected (time, n, {nu}) with time and n >= 1.")
    checks.finite_tensor("bases", recorded)
    time, count = recorded.shape[:2]
    starts = torch.arange(0, max(1, time - steps + 1), max(1, steps // 2))
    choices = torch.cartesian_prod(starts, torch.arange(count)).reshape(-1, 2)
    chosen = choices[torch.linspace(0, len(choices) - 1, min(limit, len(choices))).round().long()]
    rows = (chosen[:, 0] + torch.arange(steps).unsqueeze(1)).clamp(max=time - 1)
    return recorded[rows, chosen[:, 1]]


def search(model: Map, base: Tensor, delta: Tensor, units: Tensor, generator: torch.Generator, budget: Budget) -> Pairs:
    """Return pairs (steps, <= budget.keep, nu) of large gain, the best first.

    Args:
        model: the map.
        base: (steps, batch, nu) where to start.
        delta: (steps, batch, nu) the first directions.
        units: (nu,) the size of a unit of each input.
        generator: of the mutations.
        budget: how long.

    Raises:
        DivergedError: the outputs for these bases are not finite.
    """
    chunk = max(1, _ROWS // base.shape[0])

    def tangents(start: Pairs, power: int) -> Pairs:
        return _joined([power_iteration(model, part.base, part.delta, power) for part in start.split(chunk)])

    start = Pairs(torch.zeros_like(delta[:1, :, :1]), base, delta)
    for part in start.split(chunk):
        _check(model, part.base)
    pairs = tangents(start, budget.power).largest(budget.keep)
    for turn in range(budget.turns if budget.adam else 0):
        widest = 0.3 - turn
        found = [
            ascend(model, part, units, math.ceil(budget.adam / budget.turns), widest) for part in pairs.split(chunk)
        ]
        risen = _joined(found)
        pairs = pairs.best_of(risen)
        if budget.power:
            # Every secant is an average over its segment, so somewhere there the linearization is no less.
            along = _joined([risen._replace(base=risen.base + where * risen.delta) for where in (-0.5, 0.0, 0.5)])
            for found in tangents(along, budget.power).split(pairs.gain.shape[1]):
                pairs = pairs.best_of(found)
            for _ in range(budget.generations):
                young = tangents(mutated(pairs.largest(budget.keep // 4 + 1), units, 2 * budget.keep, generator), 8)
                pairs = _joined([pairs, young]).largest(budget.keep)
    return pairs.largest(budget.keep)


def mutated(parents: Pairs, units: Tensor, count: int, generator: torch.Generator) -> Pairs:
    """Return `count` bases near those of the parents, changed everywhere or over a stretch of time only.

    Sequences are (steps, batch, nu); `units` (nu,) are what the model calls one of each input.

    The linearization of a network of piecewise constant slopes has no gradient to follow but is cheap to look at.
    """
    steps, batch, nu = parents.base.shape
    chosen = torch.arange(count) % batch
    base, delta = parents.base[:, chosen], parents.delta[:, chosen]
    begin = torch.randint(steps, (1, count, 1), generator=generator)
    length = torch.randint(1, steps + 1, (1, count, 1), generator=generator)
    time = torch.arange(steps).reshape(-1, 1, 1)
    stretch = (time >= begin) & (time < begin + length) | (torch.arange(count).reshape(1, -1, 1) % 2 == 0)
    size = 10 ** (-2.5 * torch.rand(1, count, 1, generator=generator, dtype=torch.float64))
    change = torch.randn(base.shape, generator=generator, dtype=torch.float64) * stretch
    reach = (norm(base / units) / math.sqrt(steps * nu)).clamp(min=0.05) * units
    return Pairs(parents.gain[:, chosen], base + size * reach * change, delta)


def _joined(found: list[Pairs]) -> Pairs:
    return Pairs(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))


def evaluate(model: Map, base: Tensor, delta: Tensor) -> Pairs:
    """Return the pairs with their gains |y_a - y_b| / |u_a - u_b|, less what may be rounding.

    u_a, u_b = base +- delta / 2, both (steps, batch, nu).

    The outputs are computed twice, by the model's fast path and step by step. Where large numbers cancel inside the
    network the two differ; ten times their difference and the last place of the outputs are taken off.
    """
    both = torch.cat((base + 0.5 * delta, base - 0.5 * delta), dim=1)
    with torch.no_grad():
        values = model.run(both)
        change = _difference(values)
        state, outputs = both.new_zeros(both.shape[1], model.state_size), []
        for inputs in both.unbind():
            output, state = model.step(inputs, state)
            outputs.append(output)
        doubt = norm(change - _difference(torch.stack(outputs)))
        largest = torch.maximum(*torch.cat((values, both), dim=2).abs().amax(dim=(0, 2), keepdim=True).chunk(2, dim=1))
        doubt = doubt + 2.0**-52 * math.sqrt(change[:, 0].numel()) * largest
    gain = (norm(change) - 10 * doubt).clamp(min=0.0) / norm(_difference(both)).clamp(min=1e-300)
    return Pairs(torch.where(gain.isfinite(), gain, torch.full_like(gain, -math.inf)), base, delta)


def power_iteration(model: Map, base: Tensor, delta: Tensor, iterations: int) -> Pairs:
    """Return small differences along the leading right singular vectors of the linearization at `base`.

    `base` and `delta`, where the iteration begins, are (steps, batch, nu), and so is the result.
    """
    direction = delta / norm(delta).clamp(min=1e-300)
    if iterations:
        tangent = Linearization(model, base)
        last = torch.zeros_like(norm(direction))
        for _ in range(iterations):
            back = tangent.pull(tangent.push(direction))
            size = norm(back)
            good = (size > 1e-200) & size.isfinite()
            direction = torch.where(good, back / size.clamp(min=1e-300), direction)
            if bool((size <= last * (1 + 1e-6)).all()):
                break
            last = size
    small = norm(base).clamp(min=1.0) * direction
    tried = evaluate(model, base.repeat(1, len(_SMALL), 1), torch.cat([size * small for size in _SMALL], dim=1))
    first, *others = tried.split(base.shape[1])
    for found in others:
        first = first.best_of(found)
    return first


class Linearization:
    """The derivative of the outputs by the inputs along `base`, exact: the chain rule over the steps' Jacobians.

    dx+ = A_t dx + B_t du, dy = C_t dx + D_t du from dx = 0. Of a window, whose A_t moves it on by a row, only the
    slopes of that row's entries are kept in place of A_t and B_t.
    """

    def __init__(self, model: Map, base: Tensor) -> None:
        time, batch, nu = base.shape
        nx = model.state_size
        self.slopes = None
        if model.row is not None:
            there = base.detach().requires_grad_(True)
            self.slopes = torch.autograd.grad(model.row(there).sum(), there)[0]
            self._window = nx // (nu + 1)
        state, states = base.new_zeros(batch, nx), []
        with torch.no_grad():
            for inputs in base.unbind():
                states.append(state)
                _, state = model.step(inputs, state)
        point = torch.cat((torch.stack(states), base), dim=2).flatten(0, 1).requires_grad_(True)
        output, state = model.step(point[:, nx:], point[:, :nx])
        values = torch.cat((output, state), dim=1) if self.slopes is None else output
        rows = [torch.autograd.grad(column.sum(), point, retain_graph=True)[0] for column in values.unbind(1)]
        jacobian = torch.stack(rows, dim=1).unflatten(0, (time, batch))
        ny = output.shape[1]
        self.C, self.D = jacobian[:, :, :ny, :nx], jacobian[:, :, :ny, nx:]
        self.A, self.B = jacobian[:, :, ny:, :nx], jacobian[:, :, ny:, nx:]

    def push(self, direction: Tensor) -> Tensor:
        """Return the change (time, batch, ny) of the outputs along `direction` (time, batch, nu)."""
        if self.slopes is not None:
            # A row's last entry says whether there is one, which no input changes.
            rows = torch.nn.functional.pad(self.slopes * direction, (0, 1))
            past = torch.cat((rows.new_zeros(self._window, *rows.shape[1:]), rows)).unfold(0, self._window, 1)[:-1]
            states = past.transpose(2, 3).flatten(2).unsqueeze(3)
        else:
            driven = self.B @ direction.unsqueeze(3)
            dx, found = torch.zeros_like(driven[0]), []
            for A, drive in zip(self.A.unbind(), driven.unbind(), strict=True):
                found.append(dx)
                dx = torch.baddbmm(drive, A, dx)
            states = torch.stack(found)
        return (self.C @ states + self.D @ direction.unsqueeze(3)).squeeze(3)

    def pull(self, covector: Tensor) -> Tensor:
        """Return the transpose of `push` on `covector` (time, batch, ny)."""
        driven = self.C.mT @ covector.unsqueeze(3)
        if self.slopes is not None:
            direct = (self.D.mT @ covector.unsqueeze(3)).squeeze(3)
            for slot, part in enumerate(driven.squeeze(3).unflatten(2, (self._window, -1)).unbind(2)):
                # The window's row `slot` is the input of so many steps before.
                ago = self._window - slot
                direct[:-ago] += self.slopes[:-ago] * part[ago:, :, :-1]
            return direct
        costate, costates = torch.zeros_like(driven[0]), []
        for A, drive in zip(self.A.mT.flip(0).unbind(), driven.flip(0).unbind(), strict=True):
            costates.append(costate)
            costate = torch.baddbmm(drive, A, costate)
        return (self.B.mT @ torch.stack(costates[::-1]) + self.D.mT @ covector.unsqueeze(3)).squeeze(3)


def ascend(model: Map, pairs: Pairs, units: Tensor, iterations: int, widest: float = 0.3) -> Pairs:
    """Return the best pairs on the way of Adam up the log central secant, over (base, direction, log size).

    Sequences are (steps, batch, nu); `units` (nu,) are what the model calls one of each input.

    Steps of the base are relative to its size, in the model's units; the first sizes differ from sample to sample,
    from a tenth of the base upwards, because kinks and saturations are crossed by large differences only.
    """
    start, batch = pairs.base, pairs.base.shape[1]
    root = math.sqrt(start.shape[0] * start.shape[2])
    typical = (norm(start / units) / root).clamp(min=0.05)
    reach = typical * units
    fraction = torch.logspace(widest - 2.0, widest, batch, dtype=torch.float64).reshape(1, batch, 1)
    log_size = (fraction * norm(reach.expand_as(start))).log().requires_grad_(True)
    largest = (10 * norm((typical + 1) * units.expand_as(start))).log()
    move = torch.zeros_like(start, requires_grad=True)
    direction = (pairs.delta / norm(pairs.delta).clamp(min=1e-300) * root).requires_grad_(True)
    variables, rates = [move, direction, log_size], (0.05, 0.05, 0.1)
    moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in variables]
    best = pairs._replace(gain=torch.full_like(pairs.gain, -math.inf))
    for turn in range(iterations):
        base = start + reach * move
        delta = direction / norm(direction) * torch.minimum(log_size, largest).exp()
        change = _difference(model.run(torch.cat((base + 0.5 * delta, base - 0.5 * delta), dim=1)))
        value = norm(change).clamp(min=1e-300).log() - norm(delta).log()
        gain = value.detach().exp()
        gain = torch.where(gain.isfinite(), gain, torch.full_like(gain, -math.inf))
        best = best.best_of(Pairs(gain, base.detach(), delta.detach()))
        gradients = torch.autograd.grad(value.sum(), variables)
        cosine = 0.5 + 0.5 * math.cos(math.pi * turn / iterations)
        with torch.no_grad():
            for variable, rate, (mean, square), given in zip(variables, rates, moments, gradients, strict=True):
                gradient = given.nan_to_num(0.0, 0.0, 0.0)
                mean.lerp_(gradient, 1 - _BETAS[0])
                square.lerp_(gradient.square(), 1 - _BETAS[1])
                step = mean / (1 - _BETAS[0] ** (turn + 1))
                variable += rate * cosine * step / ((square / (1 - _BETAS[1] ** (turn + 1))).sqrt() + 1e-8)
    return evaluate(model, best.base, best.delta)


def norm(value: Tensor) -> Tensor:
    """Return the l2 norm over time and channels, (1, batch, 1)."""
    return value.square().sum(dim=(0, 2), keepdim=True).sqrt()


def _difference(values: Tensor) -> Tensor:
    first, second = values.chunk(2, dim=1)
    return first - second


def _check(model: Map, base: Tensor) -> None:
    with torch.no_grad():
        finite = torch.isfinite(model.run(base)).all(dim=2)
    if not bool(finite.all()):
        step = int((~finite).any(dim=1).nonzero()[0])
        raise DivergedError(
            f"The outputs are NaN or infinite from step {step} on for finite inputs of at most "
            f"{float(base.abs().max()):.3g}: the network diverges; train it again, or ask for fewer steps."
        )


def _not_finite(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [] if not value.is_floating_point() or bool(torch.isfinite(value).all()) else [value]
    return [tensor for part in value for tensor in _not_finite(part)] if isinstance(value, tuple) else []


def _upcast(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().double()
    if hasattr(value, "_fields"):
        return type(value)(*(_upcast(part) for part in value))
    if isinstance(value, tuple | list):
        return tuple(_upcast(part) for part in value)
    return value
