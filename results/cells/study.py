"""What results/cells compares: the cells, two targets that they are fitted to, and what is proven of them after it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_policies.certificates import empirical_gain, verify
from robust_policies.certificates.peak_search import peak_witness
from robust_policies.errors import NotCertifiableError
from robust_policies.networks import Cell, make_cell
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.peak import action_peaks

TIME, BATCH, RATE, TEST = 60, 32, 5e-3, 512
UPDATES = 200
# Steps of a sequence that no error is taken of: a speed takes two angles.
_BLIND = {"modes": 0, "speed": 2}


class Entry(NamedTuple):
    """A cell of the comparison: its name, its options, the bound it has by design (None: none), its name in tables."""

    cell: str
    options: dict[str, Any]
    gamma: float | None
    title: str


_HIDDEN = {"hidden_sizes": [16, 16]}
_STATES = {"state_size": 8, "features": 16}
CELLS: dict[str, Entry] = {
    "r2dn": Entry("r2dn", {**_STATES, **_HIDDEN}, None, "R2DN, contracting"),
    "r2dn_gain": Entry("r2dn", {**_STATES, **_HIDDEN}, 15.0, "R2DN, gain at most 15"),
    "ren": Entry("ren", {"state_size": 8, "features": 20}, None, "REN, contracting"),
    "nemon": Entry("nemon", {"state_size": 12, "features": 20}, 15.0, "nemon, peak at most 15"),
    "l2ru": Entry("l2ru", {"state_size": 16, "features": 16}, 15.0, "l2ru, gain at most 15"),
    "convex": Entry("convex", {"state_size": 16}, None, "convex, contracting"),
    "lipschitz_rnn": Entry("lipschitz_rnn", {"state_size": 16}, None, "lipschitz_rnn"),
    "lbdn": Entry("lbdn", {"hidden_sizes": [20, 20]}, 15.0, "LBDN, gain at most 15"),
    "lstm": Entry("lstm", {"state_size": 28}, None, "LSTM"),
    "gru": Entry("gru", {"state_size": 16}, None, "GRU"),
    "mlp": Entry("mlp", {"hidden_sizes": [28, 28]}, None, "MLP"),
}


def modes(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noise (time, batch, 2) and (time, batch, 1) what an oscillation and a slow saturation make of it.

    z+ = 0.95 Rot(0.5) z + u,  s+ = 0.98 s + 0.2 (u_1 - u_2),  y = z_1 / 3 + 1.5 tanh(s), each after the step.
    """
    inputs = torch.randn(TIME, batch, 2, generator=generator)
    z, s = torch.zeros(batch, 2), torch.zeros(batch)
    cosine, sine = 0.95 * math.cos(0.5), 0.95 * math.sin(0.5)
    outputs = []
    for u in inputs:
        z = torch.stack((cosine * z[:, 0] - sine * z[:, 1], sine * z[:, 0] + cosine * z[:, 1]), 1) + u
        s = 0.98 * s + 0.2 * (u[:, 0] - u[:, 1])
        outputs.append(z[:, 0] / 3 + 1.5 * torch.tanh(s))
    return inputs, torch.stack(outputs).unsqueeze(-1)


def speed(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return cosine and sine (time, batch, 2) of a pendulum's angle and its speed (time, batch, 1) in units of 4 rad/s.

    The pendulum is the task Pendulum's, with a torque drawn anew every five steps. Cosine and sine are all that a
    policy of the task PendulumNoVelocity sees; the torque is not told.
    """

    def drawn(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    angle, rate = drawn(-math.pi, math.pi, batch), drawn(-6.0, 6.0, batch)
    torques = drawn(-2.0, 2.0, TIME // 5, batch).repeat_interleave(5, 0)
    inputs, outputs = [], []
    for torque in torques:
        inputs.append(torch.stack((angle.cos(), angle.sin()), 1))
        outputs.append(rate / 4)
        rate = (rate + 0.05 * (15.0 * angle.sin() + 3.0 * torque)).clamp(-8.0, 8.0)
        angle = angle + 0.05 * rate
    return torch.stack(inputs), torch.stack(outputs).unsqueeze(-1)


TARGETS: dict[str, Callable[[int, torch.Generator], tuple[Tensor, Tensor]]] = {"modes": modes, "speed": speed}


def made(name: str, seed: int) -> Cell:
    """Return a new cell of two inputs and one output."""
    entry = CELLS[name]
    bound = {} if entry.gamma is None else {"gamma": entry.gamma}
    torch.manual_seed(seed)
    return make_cell(entry.cell, 2, 1, **entry.options, **bound)


def fit(name: str, target: str, seed: int, updates: int = UPDATES) -> dict[str, Any]:
    """Return the normalised error of a cell after so many updates, what is proven and found of it, and its times.

    The target is one of `TARGETS`. Proofs and searches are of the cell that was fitted to the modes.
    """
    cell, draw, blind = made(name, seed), TARGETS[target], _BLIND[target]
    generator = torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.Adam(cell.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    data = [draw(BATCH, generator) for _ in range(updates)]
    cell(data[0][0])[0].mean().backward()  # What is compiled is compiled before the time is taken.
    began = time.process_time()
    for inputs, wanted in data:
        loss = (cell(inputs)[0] - wanted)[blind:].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - began
    inputs, wanted = draw(TEST, torch.Generator().manual_seed(1))
    with torch.no_grad():
        error = (cell(inputs)[0] - wanted)[blind:].square().mean() / wanted[blind:].square().mean()
    row = {
        "parameters": sum(parameter.numel() for parameter in cell.parameters()),
        "error": float(error),
        "train_seconds": seconds,
    }
    if target != "modes":
        return row
    return {
        **row,
        "step_microseconds": 1e6 * _step_seconds(cell),
        **_proven(cell),
        "found_gain": empirical_gain(cell, TIME, seed, batch=8, power_iterations=8, adam_iterations=30).gain,
        "found_peak": float(peak_witness(cell, np.ones(2), TIME, seed).found[0]),
    }


def _step_seconds(cell: Cell, repeats: int = 200) -> float:
    """Return the median CPU time of one step for one sequence, with arrays that stay as they are."""
    with torch.no_grad():
        step = cell.fixed_step(cell.explicit())
        state, input, times = cell.initial_state(1), torch.randn(1, 2), []
        for _ in range(repeats):
            began = time.process_time()
            _, state = step(input, state)
            times.append(time.process_time() - began)
    return statistics.median(times)


def _proven(cell: Cell) -> dict[str, Any]:
    """Return the gain, the bound of every step for inputs that err by 1 each, and the rate that are proven."""
    double = cell.double_copy()
    try:
        found = verify(double)
    except NotCertifiableError:
        return {"gain": None, "peak": None, "rate": None}
    actor = Actor(ScaledCell(double, Scaling(2)), MeanHead(1, 1, False)).double()
    peak = action_peaks(actor, np.ones(2)) if found.status == "PASS" else None
    return {
        "gain": found.gamma if found.status == "PASS" else None,
        "peak": None if peak is None else float(peak[0][0]),
        "rate": found.rate,
    }
