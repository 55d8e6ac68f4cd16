"""A minibatch of PPO in one compiled call each: samples gathered, actor and critic forward, the loss, and both back.

The actor is a run over time (`networks.kernels`) or a perceptron, the critic a perceptron, actions are Gaussian.
Needs numba (the extra `fast`); compiled once, kept on the disk.
"""

from __future__ import annotations

import numpy as np

from robust_policies.networks import kernels
from robust_policies.networks import perceptron_kernels as perceptron
from robust_policies.networks.kernels import compiled
from robust_policies.train.ppo.loss_kernels import gaussian


@compiled
def _picked(grid, rows):
    """Return the columns `rows` (b,) of a grid (time, env), one time after another, (time * b,)."""
    time, b = len(grid), len(rows)
    found = np.empty(time * b, grid.dtype)
    for t in range(time):
        for i in range(b):
            found[t * b + i] = grid[t, rows[i]]
    return found


@compiled
def _picked_vectors(grid, rows):
    """Return the columns `rows` (b,) of vectors (time, env, n), one time after another, (time * b, n)."""
    time, b, size = len(grid), len(rows), grid.shape[2]
    found = np.empty((time * b, size), grid.dtype)
    for t in range(time):
        for i in range(b):
            for k in range(size):
                found[t * b + i, k] = grid[t, rows[i], k]
    return found


@compiled
def _judged(rows, means, latent, head, critic, data, terms):
    """Return the loss's parts and its gradients of means (n, na), log_std (na,), and the critic's weights and biases.

    The arguments are those of `recurrent`, with means (n, na) and the critic's inputs (n, k).
    """
    log_std = head[2]
    first, last, widths, weights, biases = critic
    actions, log_probs, advantages, before, returns = data
    hidden = np.empty(len(latent) * int(widths[1:].sum()), latent.dtype)
    kept = np.empty(len(hidden) if first >= perceptron.SILU else 0, latent.dtype)
    perceptron.forward(first, last, latent, widths, weights, biases, hidden, kept)
    values = hidden[len(hidden) - len(latent) :]
    parts, by_values, by_means, by_log_std = gaussian(
        means, log_std, _picked_vectors(actions, rows), _picked(log_probs, rows), _picked(advantages, rows), values,
        _picked(before, rows), _picked(returns, rows), terms[0], terms[1], terms[2], terms[3],
    )  # fmt: skip
    _, gW, gb = perceptron.backward(
        first, last, latent, widths, weights, hidden, kept, by_values.reshape(len(values), 1), False
    )
    return parts, by_means, by_log_std, gW, gb


@compiled
def _latent(inputs, outputs, shared):
    """Return what the critic reads: inputs (n, nc), after the actor's outputs (n, ny) where they are shared."""
    if not shared:
        return inputs
    n, ny = outputs.shape
    found = np.empty((n, ny + inputs.shape[1]), inputs.dtype)
    for i in range(n):
        for k in range(ny):
            found[i, k] = outputs[i, k]
        for k in range(inputs.shape[1]):
            found[i, ny + k] = inputs[i, k]
    return found


@compiled
def recurrent(rows, seen, judged, starts, states, shared, kind, step, turned, neurons, head, critic, data, terms):
    """Return the loss's parts, and the gradients of log_std, the critic and the actor's arrays.

    Args:
        rows: (b,) environments.
        seen: (time, env, nu), what the actor reads.
        judged: (time, env, nc), what the critic reads.
        starts: (time, env) bool, an episode begins.
        states: (env, nx), the actor's before the first step.
        shared: whether the critic also reads the actor's outputs.
        kind: of the actor's activation.
        step: P, c, B, Q, R, d, weights, biases and blocks of `kernels.forward`.
        turned: transposes of P, B, Q and R.
        neurons: of the actor.
        head: scale (na,), offset (na,) and log_std (na,) of the actions.
        critic: kinds of its activation and of its last one, widths, weights and biases of `perceptron.forward`.
        data: actions (time, env, na), log-probabilities, advantages, values and returns (time, env).
        terms: clip, clip of the values, weight of their loss, weight of the entropy.
    """
    time, b, nu, nx = len(seen), len(rows), seen.shape[2], states.shape[1]
    P, c, B, Q, R, d, weights, biases, blocks = step
    inputs, keep = np.empty((time, nu, b), seen.dtype), np.empty((time, b), seen.dtype)
    state = np.empty((nx, b), seen.dtype)
    for i in range(b):
        for k in range(nx):
            state[k, i] = states[rows[i], k]
    for t in range(time):
        for i in range(b):
            keep[t, i] = 0.0 if starts[t, rows[i]] else 1.0
            for k in range(nu):
                inputs[t, k, i] = seen[t, rows[i], k]
    S, H = np.empty((time, nx + nu, b), seen.dtype), np.empty((time, neurons, b), seen.dtype)
    given = kernels.forward(kind, keep, inputs, state, P, c, B, Q, R, d, weights, biases, blocks, S, H)
    ny = given.shape[1]
    outputs, means = np.empty((time * b, ny), seen.dtype), np.empty((time * b, ny), seen.dtype)
    for t in range(time):
        for k in range(ny):
            for i in range(b):
                outputs[t * b + i, k] = given[t, k, i]
                means[t * b + i, k] = given[t, k, i] * head[0][k] + head[1][k]
    latent = _latent(_picked_vectors(judged, rows), outputs, shared)
    parts, by_means, by_log_std, gW, gb = _judged(rows, means, latent, head, critic, data, terms)
    for t in range(time):
        for k in range(ny):
            for i in range(b):
                given[t, k, i] = by_means[t * b + i, k] * head[0][k]
    state[:] = 0.0
    PT, BT, QT, RT = turned
    _, gP, gc, gB, gQ, gR, gd, gw, gbias = kernels.backward(
        kind, keep, nu, given, state, PT, BT, QT, RT, weights, blocks, S, H
    )
    return parts, by_log_std, gW, gb, gP, gc, gB, gQ, gR, gd, gw, gbias


@compiled
def memoryless(rows, seen, judged, shared, actor, head, critic, data, terms):
    """Return the loss's parts, and the gradients of log_std, the critic, and the actor's weights and biases.

    The arguments are those of `recurrent`; `actor` is a perceptron as `critic` is.
    """
    first, last, widths, weights, biases = actor
    inputs = _picked_vectors(seen, rows)
    hidden = np.empty(len(inputs) * int(widths[1:].sum()), seen.dtype)
    kept = np.empty(len(hidden) if first >= perceptron.SILU else 0, seen.dtype)
    perceptron.forward(first, last, inputs, widths, weights, biases, hidden, kept)
    ny = widths[len(widths) - 1]
    outputs = hidden[len(hidden) - len(inputs) * ny :].reshape(len(inputs), ny)
    means = outputs * head[0] + head[1]
    latent = _latent(_picked_vectors(judged, rows), outputs, shared)
    parts, by_means, by_log_std, gW, gb = _judged(rows, means, latent, head, critic, data, terms)
    by_means *= head[0]
    _, gw, gbias = perceptron.backward(first, last, inputs, widths, weights, hidden, kept, by_means, False)
    return parts, by_log_std, gW, gb, gw, gbias
