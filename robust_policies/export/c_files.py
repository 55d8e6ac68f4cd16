"""A program as C99: policy.h, policy.c and a test with its vectors. No heap, nothing of a library beyond math.h."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from robust_policies.errors import UnknownNameError
from robust_policies.export.program import OBSERVATION, STATE, Op, Program

# Of an entry x, in the number type R and with the suffix F of its functions and literals.
_ACTIVATIONS = {
    "relu": "x < ZERO ? ZERO : x",
    "tanh": "tanhF(x)",
    "sigmoid": "(x >= ZERO ? ONE : expF(-fabsF(x))) / (ONE + expF(-fabsF(x)))",
    "leaky_relu": "x > ZERO ? x : LEAK * x",
    "elu": "x > ZERO ? x : expm1F(x)",
    "softplus": "x > TWENTY ? x : (x < ZERO ? ZERO : x) + log1pF(expF(-fabsF(x)))",
    "hardtanh": "x < -ONE ? -ONE : (x > ONE ? ONE : x)",
    "softsign": "x / (ONE + fabsF(x))",
}
_NUMBERS = {"ZERO": "0.0", "ONE": "1.0", "TWENTY": "20.0", "LEAK": "0.01"}
_PAIRS = {
    "add": "left + right",
    "sub": "left - right",
    "mul": "left * right",
    "div": "left / right",
    "max": "left < right ? right : left",
    "min": "left > right ? right : left",
}


_MATH = re.compile(r"\b(?:fabs|tanh|exp|expm1|log1p|rint)f?\(|INFINITY")


@dataclass(frozen=True)
class Cost:
    """What a step needs on a device.

    Attributes:
        state: bytes of the struct.
        stack: bytes of the vectors of one step; what a compiler adds is not counted.
        flash: bytes of the constants; code is not counted.
        multiply_adds: of one step.
    """

    state: int
    stack: int
    flash: int
    multiply_adds: int


def cost_of(program: Program) -> Cost:
    """Return what a step needs."""
    size = program.kind.itemsize
    _, rooms = _places(program)
    flash = sum(array.size for array in program.constants.values()) * size
    return Cost(max(program.states, 1) * size, sum(rooms) * size, flash, program.multiply_adds)


def header_text(program: Program, about: str) -> str:
    """Return policy.h."""
    real, cost = _real(program), cost_of(program)
    note = "whole numbers" if program.whole else "within the limits of the actions"
    return f"""/* {about}
 *
 * Call policy_reset at the start of an episode and policy_step once a sample. Nothing is allocated.
 * State {cost.state} bytes, vectors of one step on the stack {cost.stack} bytes, constants {cost.flash} bytes,
 * {cost.multiply_adds} multiply-adds a step. Compile with -ffp-contract=off (gcc ignores the pragma of C99 for it).
 */
#ifndef POLICY_H
#define POLICY_H

#ifdef __cplusplus
extern "C" {{
#endif

#define POLICY_OBSERVATIONS {program.observations}
#define POLICY_ACTIONS {program.actions}
#define POLICY_STATES {program.states}
#define POLICY_SHA256 "{program.sha256}"

typedef struct {{
    {real} x[{max(program.states, 1)}];
}} policy_state;

/* The state at an episode's start. */
void policy_reset(policy_state *state);

/* observation: POLICY_OBSERVATIONS numbers, finite; action: POLICY_ACTIONS numbers, {note}. */
void policy_step(policy_state *state, const {real} *observation, {real} *action);

#ifdef __cplusplus
}}
#endif

#endif
"""


def source_text(program: Program, about: str) -> str:
    """Return policy.c; raises UnknownNameError for an activation that has no form in C."""
    real = _real(program)
    parts = [
        f"static const {real} {name}[{array.size}] = {{\n{_numbers(array, program)}\n}};"
        for name, array in program.constants.items()
    ]
    parts += _helpers(program)
    place, rooms = _places(program)
    lines = [f"void policy_step(policy_state *state, const {real} *observation, {real} *action)", "{"]
    lines += [f"    {real} b{k}[{width}];" for k, width in enumerate(rooms)]
    lines.append("")
    lines += [f"    {line}" for op in program.ops for line in _calls(op, program, place)]
    lines += _copied(program.action, program.actions, "action", place)
    if program.states and program.following != STATE:
        lines += _copied(program.following, program.states, "state->x", place)
    if not any(STATE in op.inputs for op in program.ops) and program.following == STATE:
        lines.append("    (void)state;")
    lines.append("}\n")
    reset = f"""void policy_reset(policy_state *state)
{{
    int i;
    for (i = 0; i < {max(program.states, 1)}; i++) {{
        state->x[i] = {_literal(0.0, program)};
    }}
}}"""
    text = "\n\n".join([*parts, reset, "\n".join(lines)])
    # A board's compiler may come without a library, which ReLU does not need.
    math = "#include <math.h>\n\n" if _MATH.search(text) else ""
    return f'/* {about}\n * Arrays: {program.sha256}\n */\n\n{math}#include "policy.h"\n\n{text}'


def test_text(program: Program, steps: int) -> str:
    """Return policy_test.c, which plays the test vectors, starts anew in their middle, and says how far it was off."""
    real, f = _real(program), _suffix(program)
    return f"""/* Plays policy_test_vectors.h: cc policy.c policy_test.c -lm && ./a.out; status 0 where all agree. */
#include <math.h>
#include <stdio.h>

#include "policy.h"
#include "policy_test_vectors.h"

int main(void)
{{
    policy_state state;
    {real} action[POLICY_ACTIONS];
    {real} worst = {_literal(0.0, program)};
    int wrong = 0;
    int t;
    for (t = 0; t < {steps}; t++) {{
        int i;
        if (t == 0 || t == {steps // 2}) {{
            policy_reset(&state);
        }}
        policy_step(&state, test_observations + t * POLICY_OBSERVATIONS, action);
        for (i = 0; i < POLICY_ACTIONS; i++) {{
            {real} off = fabs{f}(action[i] - test_actions[t * POLICY_ACTIONS + i]);
            if (off > worst) {{
                worst = off;
            }}
            if (!(off <= test_tolerance)) {{
                wrong++;
            }}
        }}
    }}
    printf("%d steps, largest difference %g, allowed %g, wrong %d\\n", {steps}, (double)worst, (double)test_tolerance,
           wrong);
    return wrong == 0 ? 0 : 1;
}}
"""


def vectors_text(program: Program, observations: np.ndarray, actions: np.ndarray, tolerance: float) -> str:
    """Return policy_test_vectors.h: observations (steps, nu), actions (steps, na) and how far one may be off."""
    real = _real(program)
    arrays = [("test_observations", observations), ("test_actions", actions)]
    made = [f"static const {real} {name}[{array.size}] = {{\n{_numbers(array, program)}\n}};" for name, array in arrays]
    limit = f"static const {real} test_tolerance = {_literal(tolerance, program)};\n"
    return "\n\n".join(["/* Observations and the actions that follow, of the program in float64. */", *made, limit])


def _real(program: Program) -> str:
    return "float" if program.dtype == "float32" else "double"


def _suffix(program: Program) -> str:
    return "f" if program.dtype == "float32" else ""


def _literal(value: float, program: Program) -> str:
    if np.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    # So many digits give the same number back.
    text = f"{float(value):.{9 if program.dtype == 'float32' else 17}g}"
    return text + ("" if "." in text or "e" in text else ".0") + _suffix(program)


def _numbers(array: np.ndarray, program: Program) -> str:
    texts = [_literal(value, program) for value in array.reshape(-1)]
    return ",\n".join("    " + ", ".join(texts[k : k + 6]) for k in range(0, len(texts), 6))


def _activation(name: str, program: Program) -> str:
    if name not in _ACTIVATIONS:
        raise UnknownNameError.among("activation with a form in C", name, [*_ACTIVATIONS, "maxmin"])
    text = _ACTIVATIONS[name]
    for word, number in _NUMBERS.items():
        text = text.replace(word, number + _suffix(program))
    return text.replace("F(", f"{_suffix(program)}(")


def _helpers(program: Program) -> list[str]:
    """Return the functions that the operations call, each where one does."""
    real, f, made = _real(program), _suffix(program), []
    loop = "    int i;\n    for (i = 0; i < n; i++) {\n"
    kinds = {op.kind for op in program.ops}
    if {op for op in program.ops if op.kind == "linear"}:
        made.append(
            f"static void linear(const {real} *x, const {real} *W, const {real} *b, int rows, int columns, {real} *y)\n"
            "{\n    int i;\n    for (i = 0; i < rows; i++) {\n"
            f"        {real} sum = 0.0{f};\n        int j;\n        for (j = 0; j < columns; j++) {{\n"
            "            sum += W[i * columns + j] * x[j];\n        }\n"
            "        y[i] = b ? sum + b[i] : sum;\n    }\n}"
        )
    for name in dict.fromkeys(op.name for op in program.ops if op.kind in ("act", "solve")):
        if name != "maxmin":
            made.append(f"static {real} {name}_of({real} x)\n{{\n    return {_activation(name, program)};\n}}")
    for name in dict.fromkeys(op.name for op in program.ops if op.kind == "act"):
        head = f"static void {name}_each(const {real} *x, int n, {real} *y)\n{{\n"
        if name == "maxmin":
            body = (
                "    int i;\n    for (i = 0; i + 1 < n; i += 2) {\n        int swap = x[i] < x[i + 1];\n"
                "        y[i] = swap ? x[i + 1] : x[i];\n        y[i + 1] = swap ? x[i] : x[i + 1];\n    }\n}"
            )
        else:
            body = f"{loop}        y[i] = {name}_of(x[i]);\n    }}\n}}"
        made.append(head + body)
    for name in dict.fromkeys(op.name for op in program.ops if op.kind == "solve"):
        made.append(
            f"static void solve_{name}(const {real} *v, const {real} *D, int n, {real} *w)\n{{\n    int i;\n"
            f"    for (i = 0; i < n; i++) {{\n        {real} sum = 0.0{f};\n        int j;\n"
            "        for (j = 0; j < i; j++) {\n            sum += D[i * n + j] * w[j];\n        }\n"
            f"        w[i] = {name}_of(v[i] + sum);\n    }}\n}}"
        )
    for kind in (kind for kind in _PAIRS if kind in kinds):
        made.append(
            f"static void {kind}_each(const {real} *a, int a_step, const {real} *b, int b_step, int n, {real} *y)\n"
            f"{{\n{loop}        {real} left = a[i * a_step];\n        {real} right = b[i * b_step];\n"
            f"        y[i] = {_PAIRS[kind]};\n    }}\n}}"
        )
    if "round" in kinds:
        made.append(
            f"static void round_each(const {real} *x, int n, {real} *y)\n{{\n{loop}"
            f"        y[i] = rint{f}(x[i]);\n    }}\n}}"
        )
    if "argmax" in kinds:
        made.append(
            f"static void argmax(const {real} *x, int n, {real} *y)\n{{\n    int i;\n    int best = 0;\n"
            "    for (i = 1; i < n; i++) {\n        if (x[i] > x[best]) {\n            best = i;\n        }\n    }\n"
            f"    y[0] = ({real})best;\n}}"
        )
    # The action and the state are copied too.
    made.append(f"static void copy(const {real} *x, int n, {real} *y)\n{{\n{loop}        y[i] = x[i];\n    }}\n}}")
    return made


def _calls(op: Op, program: Program, place: dict[str, str]) -> list[str]:
    given, y = [place.get(name, name) for name in op.inputs], place[op.output]
    widths = program.widths()
    if op.kind == "linear":
        rows, columns = program.constants[op.inputs[1]].shape
        return [f"linear({given[0]}, {given[1]}, {given[2] if len(given) > 2 else '0'}, {rows}, {columns}, {y});"]
    if op.kind == "act":
        return [f"{op.name}_each({given[0]}, {op.width}, {y});"]
    if op.kind == "solve":
        return [f"solve_{op.name}({given[0]}, {given[1]}, {op.width}, {y});"]
    if op.kind in _PAIRS:
        steps = ["1" if widths[name] == op.width else "0" for name in op.inputs]
        return [f"{op.kind}_each({given[0]}, {steps[0]}, {given[1]}, {steps[1]}, {op.width}, {y});"]
    if op.kind == "concat":
        sizes = [widths[name] for name in op.inputs]
        starts = np.cumsum([0, *sizes])[:-1]
        return [f"copy({x}, {n}, {y} + {k});" for x, n, k in zip(given, sizes, starts, strict=True)]
    if op.kind == "gather":
        return [f"copy({given[0]} + {a}, {n}, {y} + {k});" for a, n, k in _stretches(op.places)]
    if op.kind == "select":
        return [f"copy({given[0]}[0] > 0.5{_suffix(program)} ? {given[1]} : {given[2]}, {op.width}, {y});"]
    if op.kind == "round":
        return [f"round_each({given[0]}, {op.width}, {y});"]
    return [f"argmax({given[0]}, {widths[op.inputs[0]]}, {y});"]


def _stretches(places: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Return neighbours that stay neighbours: (first place, how many, where they go)."""
    found: list[tuple[int, int, int]] = []
    for k, place in enumerate(places):
        if found and found[-1][0] + found[-1][1] == place:
            found[-1] = (found[-1][0], found[-1][1] + 1, found[-1][2])
        else:
            found.append((place, 1, k))
    return found


def _copied(name: str, width: int, target: str, place: dict[str, str]) -> list[str]:
    return [f"    copy({place.get(name, name)}, {width}, {target});"]


def _places(program: Program) -> tuple[dict[str, str], list[int]]:
    """Return where each value is, and the widths of the vectors they share: each is free again after its last use."""
    last = {name: k for k, op in enumerate(program.ops) for name in op.inputs}
    last |= {program.action: len(program.ops), program.following: len(program.ops)}
    place, rooms, free = {OBSERVATION: "observation", STATE: "state->x"}, [], []
    held: dict[str, int] = {}
    for k, op in enumerate(program.ops):
        fitting = [room for room in free if rooms[room] >= op.width]
        if fitting:
            room = min(fitting, key=lambda room: rooms[room])
            free.remove(room)
        else:
            room = len(rooms)
            rooms.append(op.width)
        held[op.output], place[op.output] = room, f"b{room}"
        for name in {*op.inputs, op.output}:
            if name in held and last.get(name, k) <= k:
                free.append(held.pop(name))
    return place, rooms
