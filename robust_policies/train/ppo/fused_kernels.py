"""A minibatch of PPO in one compiled call each: samples gathered, actor and critic forward, the loss, and both back.

The actor is a run over time (`networks.kernels`, `networks.gated_kernels`) or a perceptron, the critic a perceptron,
actions are Gaussian.
Needs numba (the extra `fast`); compiled once, kept on the disk.
"""

from __future__ import annotations

import numpy as np

from robust_policies.networks import gated_kernels, kernels
from robust_policies.networks import perceptron_kernels as layers
from robust_policies.networks.kernels import compiled
from robust_policies.train.ppo.loss_kernels import gaussian


@compiled
def _carved(work, at, time, size, b):
    """Return numbers of `work` from its number `at` on as an array (time, size, b)."""
    return work[at : at + time * size * b].reshape(time, size, b)


@compiled
def _layers_of(work, at, n, first, widths):
    """Return where a perceptron keeps its layers for n samples in `work` from its number `at` on, and what it keeps."""
    count = n * int(widths[1:].sum())
    hidden = work[at : at + count]
    return hidden, work[at + count : at + 2 * count] if first >= layers.SILU else hidden[:0]


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
def _sequences(rows, seen, starts, states):
    """Return inputs (time, nu, b), where to keep the state (time, b), 0 or 1, and the first state (nx, b)."""
    time, b, nu, nx = len(seen), len(rows), seen.shape[2], states.shape[1]
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
    return inputs, keep, state


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
def _added(share, part, slopes, at):
    """Add `share` times numbers (n,) to `slopes` from its number `at` on; return where the next ones go."""
    to, factor = slopes[at : at + len(part)], slopes.dtype.type(share)
    for i in range(len(part)):
        to[i] += factor * part[i]
    return at + len(part)


@compiled
def _judged(rows, outputs, given, head, critic, data, terms, share, parts, slopes, work, at):
    """Return the loss's gradient of outputs (n, ny), and which number of `slopes` the actor's first one is.

    The other arguments are those of `collapsed`; `work` is free from its number `at` on.
    """
    n, ny = outputs.shape
    first, last, widths, weights, biases = critic
    actions, log_probs, before, returns, advantages = data
    latent, means = _latent(_picked_vectors(given[1], rows), outputs, given[4]), np.empty_like(outputs)
    for i in range(n):
        for k in range(ny):
            means[i, k] = outputs[i, k] * head[0][k] + head[1][k]
    hidden, kept = _layers_of(work, at, n, first, widths)
    layers.forward(first, last, latent, widths, weights, biases, hidden, kept)
    found, by_values, by_means, by_log_std = gaussian(
        means, head[2], _picked_vectors(actions, rows), _picked(log_probs, rows), _picked(advantages, rows),
        hidden[len(hidden) - n :], _picked(before, rows), _picked(returns, rows), terms[0], terms[1], terms[2],
        terms[3],
    )  # fmt: skip
    _, gW, gb = layers.backward(first, last, latent, widths, weights, hidden, kept, by_values.reshape(n, 1), False)
    # Loss, policy loss, clip fraction, value loss, entropy loss and divergence.
    for k in range(4):
        parts[k] += share * found[k]
    parts[4] -= share * found[5]
    parts[5] += share * found[4]
    at = _added(share, gb, slopes, _added(share, gW, slopes, _added(share, by_log_std, slopes, 0)))
    for i in range(n):
        for k in range(ny):
            by_means[i, k] *= head[0][k]
    return by_means, at


@compiled
def _judged_run(rows, run, given, head, critic, data, terms, share, parts, slopes, work, at):
    """Overwrite a run's outputs (time, ny, b) with the loss's gradient of them; all else is as for `_judged`."""
    time, ny, b = run.shape
    outputs = np.empty((time * b, ny), run.dtype)
    for t in range(time):
        for k in range(ny):
            for i in range(b):
                outputs[t * b + i, k] = run[t, k, i]
    found, at = _judged(rows, outputs, given, head, critic, data, terms, share, parts, slopes, work, at)
    for t in range(time):
        for k in range(ny):
            for i in range(b):
                run[t, k, i] = found[t * b + i, k]
    return at


@compiled
def collapsed(rows, given, actor, head, critic, data, terms, share, parts, slopes, work):
    """Add the loss's parts and its gradients of an R2DN or a REN.

    Args:
        rows: (b,) environments.
        given: what the actor reads (time, env, nu) and the critic (time, env, nc), starts (time, env) bool, the actor's
            states before the first step (env, nx), and whether the critic also reads the actor's outputs.
        actor: kind of its activation; P, c, B, Q, R, d, weights, biases and blocks of `kernels.forward`; transposes of
            P, B, Q and R; the number of neurons.
        head: scale (na,), offset (na,) and log_std (na,) of the actions.
        critic: kinds of its activation and of its last one, widths, weights and biases of `perceptron_kernels.forward`.
        data: actions (time, env, na), log-probabilities, values, returns and advantages (time, env).
        terms: clip, clip of the values, weight of their loss, weight of the entropy.
        share: by which all that is added is multiplied.
        parts: (6,) loss, policy loss, clip fraction, value loss, entropy loss, divergence.
        slopes: of log_std, the critic's weights and biases, and the actor's arrays, one after the other.
        work: memory for what is needed until the call ends, `room` numbers a sample of both networks. Of its own it
            would be taken from the system in each call, and each of its pages is a fault then.
    """
    kind, (P, c, B, Q, R, d, weights, biases, blocks), (PT, BT, QT, RT), neurons = actor
    inputs, keep, state = _sequences(rows, given[0], given[2], given[3])
    (time, nu, b), nx = inputs.shape, len(state)
    at = time * (nx + nu) * b
    S, H = _carved(work, 0, time, nx + nu, b), _carved(work, at, time, neurons, b)
    run = kernels.forward(kind, keep, inputs, state, P, c, B, Q, R, d, weights, biases, blocks, S, H)
    at += H.size
    at = _judged_run(rows, run, given, head, critic, data, terms, share, parts, slopes, work, at)
    state[:] = 0.0
    _, gP, gc, gB, gQ, gR, gd, gW, gb = kernels.backward(
        kind, keep, nu, run, state, PT, BT, QT, RT, weights, blocks, S, H
    )
    at = _added(share, gB.ravel(), slopes, _added(share, gc, slopes, _added(share, gP.ravel(), slopes, at)))
    at = _added(share, gd, slopes, _added(share, gR.ravel(), slopes, _added(share, gQ.ravel(), slopes, at)))
    _added(share, gb, slopes, _added(share, gW, slopes, at))


@compiled
def gated(rows, given, actor, head, critic, data, terms, share, parts, slopes, work):
    """Add the loss's parts and its gradients of an LSTM or a GRU.

    The arguments are those of `collapsed`; `actor` is whether it is a GRU, the kinds of sigmoid and tanh, W, C and d of
    `gated_kernels.forward`, and the transposes of W and C.
    """
    gru, sigmoid, tanh, W, C, d, WT, CT = actor
    inputs, keep, state = _sequences(rows, given[0], given[2], given[3])
    (time, nu, b), n = inputs.shape, C.shape[1]
    S = _carved(work, 0, time, n + 1 + nu, b)
    Z = _carved(work, S.size, time, 4 * n, b)
    K = _carved(work, S.size + Z.size, time, n if gru else 3 * n, b)
    run = gated_kernels.forward(gru, sigmoid, tanh, keep, inputs, state[:n], state[n:], W, C, d, S, Z, K)
    at = S.size + Z.size + K.size
    at = _judged_run(rows, run, given, head, critic, data, terms, share, parts, slopes, work, at)
    state[:] = 0.0
    _, gW, gC, gd = gated_kernels.backward(gru, keep, run, state[:n], state[n:], WT, CT, S, Z, K)
    _added(share, gd, slopes, _added(share, gC.ravel(), slopes, _added(share, gW.ravel(), slopes, at)))


@compiled
def perceptron(rows, given, actor, head, critic, data, terms, share, parts, slopes, work):
    """Add the loss's parts and its gradients of an MLP.

    The arguments are those of `collapsed`; `actor` is a perceptron as `critic` is.
    """
    first, last, widths, weights, biases = actor
    inputs = _picked_vectors(given[0], rows)
    hidden, kept = _layers_of(work, 0, len(inputs), first, widths)
    layers.forward(first, last, inputs, widths, weights, biases, hidden, kept)
    ny = widths[len(widths) - 1]
    outputs = hidden[len(hidden) - len(inputs) * ny :].reshape(len(inputs), ny)
    at = len(hidden) + len(kept)
    found, at = _judged(rows, outputs, given, head, critic, data, terms, share, parts, slopes, work, at)
    _, gW, gb = layers.backward(first, last, inputs, widths, weights, hidden, kept, found, False)
    _added(share, gb, slopes, _added(share, gW, slopes, at))
