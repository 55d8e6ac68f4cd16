"""The reaction-diffusion process of the R2DN paper's observer problem, and how well an observer follows it.

xi_t = xi_zz + R(xi), R = xi (1 - xi)(xi - 1/2) / 2 on [0, 10], 51 points, both ends held at b. A sample is four
explicit Euler steps of 0.004 (the published program makes five and returns the state before the last). b is a random
walk within [0, 1], and what is measured is b and the state in the middle.

Source: N. H. Barbara, R. Wang and I. R. Manchester, "R2DN" (arXiv 2504.01250), and its program's utils/observer.py.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from robust_policies.identification import LearnedObserver, Samples

POINTS, LENGTH, EULER_STEPS = 51, 10.0, 4
Array = np.ndarray


def advance(xi: Array, b: float) -> Array:
    """Return the state (points,) one sample later, the ends held at b."""
    dx = LENGTH / (POINTS - 1)
    dt = 0.1 * dx**2
    for _ in range(EULER_STEPS):
        inner = xi[1:-1]
        reaction = inner * (1 - inner) * (inner - 0.5) / 2
        following = np.empty_like(xi)
        following[1:-1] = inner + dt * ((xi[:-2] + xi[2:] - 2 * inner) / dx**2 + reaction)
        following[0] = following[-1] = b
        xi = following
    return xi


def simulated(steps: int, state: float, boundary: float, seed: int) -> tuple[Array, Array]:
    """Return states (steps, points) from a constant one, and what was measured (steps, 2): b and the middle."""
    noise = 0.05 * np.random.default_rng(seed).standard_normal(steps - 1)
    states, b = np.empty((steps, POINTS)), np.empty(steps)
    states[0], b[0] = state, boundary
    for t in range(steps - 1):
        states[t + 1] = advance(states[t], b[t])
        b[t + 1] = min(1.0, max(0.0, b[t] + noise[t]))
    return states, np.stack((b, states[:, POINTS // 2]), 1)


def samples_of(steps: int, seed: int) -> Samples:
    """Return the training's pairs of states, from zero."""
    states, measured = simulated(steps, 0.0, 0.0, seed)
    names = tuple(f"xi{k}" for k in range(POINTS))
    empty = np.zeros((steps - 1, 0))
    seconds = EULER_STEPS * 0.1 * (LENGTH / (POINTS - 1)) ** 2
    return Samples(states[:-1], measured[:-1], empty, states[1:], names, ("b", "middle"), (), seconds)


def estimates(observer: LearnedObserver, measured: Array) -> Array:
    """Return the estimates (time, points) of a free run from zero over what was measured (time, 2)."""
    inputs, begin = torch.as_tensor(measured)[:, None], torch.zeros(1, POINTS, dtype=torch.float64)
    with torch.no_grad():
        return observer.cell(inputs, begin)[0][:, 0].numpy()


def free_run(observer: LearnedObserver, states: Array, measured: Array, settled: int = 500) -> dict[str, float]:
    """Return the NRMSE sqrt(mean (xi - xih)^2 / mean xi^2), transient included, and of what follows `settled`."""
    error = states - estimates(observer, measured)

    def nrmse(first: int) -> float:
        return math.sqrt(float((error[first:] ** 2).mean() / (states[first:] ** 2).mean()))

    return {"nrmse": nrmse(0), "nrmse_settled": nrmse(settled), "largest": float(np.abs(error[settled:]).max())}
