"""Where a plant stands still: Newton's method from a guess, and the check that it does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from robust_policies.errors import InvalidValueError

Array = np.ndarray

TOLERANCE = 1e-9
ITERATIONS = 30
SHORTER = 0.5 ** np.arange(8.0)[:, None]


def stand_still(
    drift: Callable[[Array, Array], Array],
    jacobian: Callable[[Array, Array], tuple[Array, Array]],
    move: Callable[[Array, Array], Array],
    state: Array,
    action: Array,
    low: Array,
    high: Array,
) -> tuple[Array, Array, float]:
    """Return (x0, u0, residual): a state and action from which one step goes nowhere, near the guess.

    First the action alone is sought that holds the guessed state; where none does, the nearest pair (least norm of
    each Newton step). `drift` (x, u) -> f(x, u) - x (k,), zero where nothing moves; `jacobian` (x, u) -> (A - 1 (k, d),
    B (k, m)) of the drift; `move` (x, dx (d,)) -> x + dx. The action stays within `low` and `high` (m,).

    Raises:
        InvalidValueError: no pair is found whose drift is below 1e-9 of the state's size.
    """
    x, u = state, np.clip(action, low, high)
    rest = drift(x, u)
    for with_state in (False, True):
        for _ in range(ITERATIONS):
            size = float(np.linalg.norm(rest))
            if size <= TOLERANCE * max(1.0, float(np.linalg.norm(x))):
                return x, u, size
            by_state, by_action = jacobian(x, u)
            slopes = np.hstack((by_state, by_action)) if with_state else by_action
            change = np.linalg.lstsq(slopes, -rest, rcond=1e-10)[0]
            if with_state:
                # A simulation far from where it began may be unstable, and say so.
                change /= max(1.0, float(np.linalg.norm(change)) / max(1.0, float(np.linalg.norm(x))))
            for part in SHORTER * change:
                further = move(x, part[: by_state.shape[1]]) if with_state else x
                acting = np.clip(u + part[-len(u) :], low, high)
                following = drift(further, acting)
                if np.linalg.norm(following) < size:
                    break
            else:
                break
            x, u, rest = further, acting, following
    raise InvalidValueError(
        f"No equilibrium was found near the state {_shown(state)}: at best it moves by {size:.3g} in one step, with "
        f"actions from {_shown(low)} to {_shown(high)}. Give a state (and action) near one; a plant that must keep "
        "moving or that stands on contacts may have none."
    )


def _shown(values: Array) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
