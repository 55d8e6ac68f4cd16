"""What runs stays within its bound of exact arithmetic, for ever: against 200 bits, with observations that try."""

import mpmath
import numpy as np
import pytest
from export_policies import LIMITS, saved

from robust_policies.errors import NotCertifiableError
from robust_policies.export.neurons import neurons_of
from robust_policies.export.program import OBSERVATION, STATE
from robust_policies.export.proof import _with_multipliers
from robust_policies.export.record import record
from robust_policies.export.rounding import rounding_of
from robust_policies.export.window import window_rounding
from robust_policies.policies import load_policy
from robust_policies.runtime import load

STEPS = 250
mpmath.mp.prec = 200
EXACT = {
    "relu": lambda x: max(x, mpmath.mpf(0)),
    "tanh": mpmath.tanh,
    "elu": lambda x: x if x > 0 else mpmath.expm1(x),
    "softsign": lambda x: x / (1 + abs(x)),
}


def exact_step(program, observation, state):
    """Return (mean action, next state) of the program in 200 bits: lists of numbers."""
    known = {name: [mpmath.mpf(float(x)) for x in array] for name, array in vectors(program).items()}
    known |= {OBSERVATION: [mpmath.mpf(float(x)) for x in observation], STATE: state}
    for op in program.unclipped:
        given = [known[name] for name in op.inputs if name in known]
        if op.kind in ("linear", "solve"):
            W = rows(program, op.inputs[1])
            if op.kind == "linear":
                found = [mpmath.fdot(row, given[0]) for row in W]
                found = [a + b for a, b in zip(found, given[1], strict=True)] if len(given) > 1 else found
            else:
                found = []
                for i, v in enumerate(given[0]):
                    found.append(EXACT[op.name](v + mpmath.fdot(W[i][:i], found)))
        elif op.kind == "concat":
            found = [x for part in given for x in part]
        elif op.kind == "gather":
            found = [given[0][place] for place in op.places]
        elif op.kind == "select":
            found = given[1] if given[0][0] > 0.5 else given[2]
        elif op.kind == "act":
            found = [EXACT[op.name](x) for x in given[0]]
        else:
            a, b = (part * op.width if len(part) == 1 else part for part in given)
            act = {"add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y}
            act |= {"div": lambda x, y: x / y, "max": max, "min": min}
            found = [act[op.kind](x, y) for x, y in zip(a, b, strict=True)]
        known[op.output] = found
    return known[program.mean], known[program.following]


def vectors(program):
    return {name: array for name, array in program.constants.items() if array.ndim == 1}


def rows(program, name, kept={}):  # noqa: B006
    key = (program.sha256, name)
    if key not in kept:
        kept[key] = [[mpmath.mpf(float(x)) for x in row] for row in program.constants[name]]
    return kept[key]


def observations(steps):
    """Return observations (steps, 3) in float32: held at corners of their limits, switched, and drawn."""
    draw = np.random.default_rng(0)
    found = draw.uniform(-LIMITS, LIMITS, (steps, 3))
    for begin in range(0, steps, 40):
        corner = np.where(draw.random(3) < 0.5, -LIMITS, LIMITS)
        found[begin : begin + 20] = corner * (1 - 2 * (np.arange(20)[: steps - begin, None] % 2 * (begin % 80 == 0)))
    return found.astype(np.float32)


def program_of(kind, folder):
    saved(kind, folder)
    program, policy = record(load(folder)), load_policy(folder)
    return program, _with_multipliers(neurons_of(program), policy)


def bound_of(kind, folder, ordered=False):
    """Return the program of a policy and its bound for observations within LIMITS."""
    high = LIMITS.astype(np.float64)
    if kind.startswith("window"):
        saved(kind, folder)
        program = record(load(folder))
        return program, window_rounding(program, load_policy(folder).cell, -high, high, False, ordered)
    program, neurons = program_of(kind, folder)
    return program, rounding_of(program, neurons, -high, high, ordered=ordered)


@pytest.mark.parametrize("kind", ["r2dn", "r2dn tanh", "ren", "lbdn", "normalizer", "window", "window masked"])
def test_what_runs_is_within_the_bound_of_exact_arithmetic_at_every_step(kind, tmp_path):
    program, found = bound_of(kind, tmp_path)
    state, exact, worst = np.zeros((1, program.states), np.float32), [mpmath.mpf(0)] * program.states, 0.0
    largest = np.zeros(program.states)
    for seen in observations(STEPS if program.states and "window" not in kind else 60):
        _, state, values = program.run(seen[None], state)
        mean, exact = exact_step(program, seen, exact)
        off = [abs(mpmath.mpf(float(x)) - y) for x, y in zip(values[program.mean][0], mean, strict=True)]
        worst = max(worst, *(float(one / bound) for one, bound in zip(off, found.bound, strict=True)))
        largest = np.maximum(largest, np.abs(state[0]))
    # It rounds, and by no more than is proven.
    assert 0 < worst <= 1
    assert (largest <= found.states).all()


@pytest.mark.parametrize("kind", ["r2dn", "r2dn tanh", "ren"])
def test_the_bound_in_the_order_of_c_is_within_a_hundred_times_what_is_seen(kind, tmp_path):
    program, found = bound_of(kind, tmp_path, ordered=True)
    states = [np.zeros((1, program.states), np.float32), np.zeros((1, program.states))]
    largest = 0.0
    for seen in observations(4000):
        ends = []
        for k, dtype in enumerate((np.float32, np.float64)):
            _, states[k], values = program.run(seen[None], states[k], dtype)
            ends.append(values[program.mean])
        largest = max(largest, float(np.abs(ends[0] - ends[1]).max()))
    # Also over 4,000 steps, against float64, whose own rounding is a billionth of it.
    assert 0 < largest <= found.bound.max() <= 100 * largest


def test_a_program_that_rounds_more_than_float32_breaks_the_bound(tmp_path):
    program, neurons = program_of("r2dn tanh", tmp_path)
    high = LIMITS.astype(np.float64)
    bound = rounding_of(program, neurons, -high, high).bound
    state, exact, broken = np.zeros((1, program.states), np.float16), [mpmath.mpf(0)] * program.states, False
    for seen in observations(60):
        _, state, values = program.run(seen[None], state, np.float16)
        mean, exact = exact_step(program, seen, exact)
        off = np.array([float(abs(float(x) - y)) for x, y in zip(values[program.mean][0], mean, strict=True)])
        broken = broken or bool((off > bound).any())
    assert broken


def test_float64_rounds_by_that_much_less(tmp_path):
    saved("r2dn", tmp_path)
    high, found = LIMITS.astype(np.float64), {}
    for dtype in ("float32", "float64"):
        program = record(load(tmp_path), dtype)
        neurons = _with_multipliers(neurons_of(program), load_policy(tmp_path))
        found[dtype] = rounding_of(program, neurons, -high, high).bound
    ratio = found["float32"] / found["float64"]
    assert (ratio > 2.0**28).all()
    assert (ratio < 2.0**30).all()


def test_larger_observations_may_round_more(tmp_path):
    program, neurons = program_of("r2dn", tmp_path)
    high = LIMITS.astype(np.float64)
    assert (
        rounding_of(program, neurons, -high, high).bound < rounding_of(program, neurons, -3 * high, 3 * high).bound
    ).all()


def test_what_does_not_forget_has_no_bound(tmp_path):
    program, neurons = program_of("r2dn", tmp_path)
    model = neurons.model
    grows = neurons.mapped(lambda same: type(model)(**{**vars(same), "A": np.eye(len(model.A)) * 1.01}))
    with pytest.raises(NotCertifiableError, match="No contraction of the exported program is proven"):
        rounding_of(program, grows, -LIMITS.astype(np.float64), LIMITS.astype(np.float64))
