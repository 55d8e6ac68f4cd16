"""A program as one Python file that needs NumPy alone."""

from __future__ import annotations

import base64
import inspect

from robust_policies.export.program import Op, Program
from robust_policies.runtime import activations

_SIGNS = {"add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "{} / {}"}
_CALLS = {"max": "np.maximum({}, {})", "min": "np.minimum({}, {})", "round": "np.round({})"}
_CLASS = '''

class Policy:
    """`predict` as of Stable-Baselines3, deterministic actions alone."""

    def __init__(self):
        self.dtype = DTYPE

    def initial_state(self, batch=1):
        """Return the state (batch, STATES) at an episode's start."""
        return np.zeros((batch, STATES), DTYPE)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        """Return (action, next state) of one observation (OBSERVATIONS,) or a batch (n, OBSERVATIONS)."""
        if not deterministic:
            raise ValueError("This file gives the deterministic action; pass deterministic=True.")
        given = np.asarray(observation, DTYPE)
        if given.ndim not in (1, 2) or given.shape[-1] != OBSERVATIONS:
            raise ValueError(f"observation has shape {given.shape}; expected ({OBSERVATIONS},) or (n, {OBSERVATIONS}).")
        if not np.isfinite(given).all():
            raise ValueError("observation has numbers that are not finite.")
        rows = given.reshape(-1, OBSERVATIONS)
        state = self.initial_state(len(rows)) if state is None else np.asarray(state, DTYPE)
        if state.shape != (len(rows), STATES):
            raise ValueError(f"state has shape {state.shape}; expected {(len(rows), STATES)}.")
        if episode_start is not None:
            starts = np.broadcast_to(np.asarray(episode_start, bool).reshape(-1, 1), (len(rows), 1))
            state = np.where(starts, DTYPE(0), state)
        action, state = step(rows, state)
        return (action[0] if given.ndim == 1 else action), state
'''


def numpy_text(program: Program, about: str) -> str:
    """Return the source of the file; `about` is a line for its head."""
    names = {name: name.upper() for name in program.constants}
    lines = [
        f'"""{about}',
        "",
        f"step(observation (batch, {program.observations}), state (batch, {program.states})) ->",
        f"(action (batch, {program.actions}), next state); {program.dtype}. Arrays: {program.sha256}",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "import base64",
        *_activations(),
        f"SHA256 = {program.sha256!r}",
        f"OBSERVATIONS, STATES, ACTIONS = {program.observations}, {program.states}, {program.actions}",
        f"DTYPE = np.{program.dtype}",
        "",
        "",
        "def _array(shape, text):",
        f'    return np.frombuffer(base64.b64decode(text), "<f{program.kind.itemsize}").reshape(shape).astype(DTYPE)',
        "",
        "",
    ]
    for name, array in program.constants.items():
        # A matrix multiplies rows, as it does in the runtime.
        matrix = _solving(program, name)
        held = array if array.ndim == 1 or matrix else array.T.copy()
        text = base64.b64encode(held.astype(held.dtype.newbyteorder("<")).tobytes()).decode()
        lines.append(f"{names[name]} = _array({held.shape}, {text!r})")
        if matrix:
            lines.append(f"{names[name]} = [np.ascontiguousarray(row[:i]) for i, row in enumerate({names[name]})]")
    lines += ["", "", "def step(observation, state):", '    """Return (action, next state)."""']
    widths = program.widths()
    lines += [f"    {op.output} = {_expression(op, names, widths)}" for op in program.ops]
    action = f"{program.action}.astype(np.int64)" if program.whole else program.action
    lines.append(f"    return {action}, {program.following}")
    return "\n".join(lines) + "\n" + _CLASS


def _activations() -> list[str]:
    """Return the source of the runtime's activations, without what only its own file needs."""
    source = inspect.getsource(activations)
    return [*source[source.index("from collections.abc") :].strip().splitlines(), "", ""]


def _solving(program: Program, name: str) -> bool:
    return any(op.kind == "solve" and op.inputs[1] == name for op in program.ops)


def _expression(op: Op, names: dict[str, str], widths: dict[str, int]) -> str:
    given = [names.get(name, name) for name in op.inputs]
    if op.kind == "linear":
        return f"{given[0]} @ {given[1]}" + (f" + {given[2]}" if len(given) > 2 else "")
    if op.kind in _SIGNS:
        return _SIGNS[op.kind].format(*given)
    if op.kind in _CALLS:
        return _CALLS[op.kind].format(*given)
    if op.kind == "act":
        return f"ACTIVATIONS[{op.name!r}]({given[0]})"
    if op.kind == "solve":
        return f"solved({given[0]} + 0, {given[1]}, {op.name!r})"
    if op.kind == "concat":
        rows = next(name for name in op.inputs if name not in names)
        parts = [
            f"np.broadcast_to({text}, (len({rows}), {widths[name]}))" if name in names else text
            for name, text in zip(op.inputs, given, strict=True)
        ]
        return f"np.concatenate(({', '.join(parts)}), axis=1)"
    if op.kind == "gather":
        first, last = op.places[0], op.places[-1] + 1
        run = op.places == tuple(range(first, last))
        return f"{given[0]}[:, {first}:{last}]" if run else f"{given[0]}[:, {list(op.places)}]"
    if op.kind == "select":
        return f"np.where({given[0]} > 0.5, {given[1]}, {given[2]})"
    return f"{given[0]}.argmax(1)[:, None].astype(DTYPE)"
