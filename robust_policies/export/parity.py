"""How far what was exported is from the policy that it was made of: over random steps, and over its own episodes."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import shutil
import subprocess
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from robust_policies.certificates.lmi import Array
from robust_policies.errors import InvalidValueError, RobustPoliciesError
from robust_policies.export.program import Program
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.runtime import RuntimePolicy

STEPS, LENGTH = 10_000, 100
COMPILE = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-ffp-contract=off")
_EPISODES, _LONGEST = 2, 1_000
# What a wrong export is off by, in sizes of the action; rounding is far below it.
_WRONG = 1e-2

Step = Callable[[Array, Array], tuple[Array, Array]]


def random_observations(policy: RuntimePolicy, units: tuple[Array, Array]) -> Array:
    """Return observations (LENGTH, STEPS / LENGTH, nu) of episodes: within their limits, else around `units`.

    Args:
        policy: whose flat observations they are.
        units: centre and size (nu,) of each where it has no limits.
    """
    draw, count, columns = np.random.default_rng(0), STEPS // LENGTH, []
    begin = 0
    for part in policy.observation_space.parts.values():
        centre, size = (unit[begin : begin + part.size] for unit in units)
        begin += part.size
        shape = (LENGTH, count, part.size)
        if part.low is not None and part.high is not None:
            low, high = (bound.astype(np.float64).reshape(-1) for bound in (part.low, part.high))
            finite = np.isfinite(low) & np.isfinite(high) & (np.abs(high) < 1e6) & (np.abs(low) < 1e6)
            within = draw.uniform(np.where(finite, low, 0.0), np.where(finite, high, 1.0), shape)
            free = np.clip(centre + size * draw.standard_normal(shape), low, high)
            columns.append(np.where(finite, within, free))
        elif part.widths:
            chosen = [np.eye(width)[draw.integers(width, size=shape[:2])] for width in part.widths]
            columns.append(np.concatenate(chosen, axis=-1))
        else:
            columns.append(draw.integers(2, size=shape).astype(np.float64))
    return np.concatenate(columns, axis=-1).astype(np.float32).astype(np.float64)


def of_policy(policy: DeployedPolicy, observations: Array) -> Array:
    """Return the mean actions (time, batch, na), clipped or chosen, of the policy in PyTorch for flat observations."""
    import torch

    state, found = policy.cell.initial_state(observations.shape[1]), []
    kind = torch.float64 if policy._double or policy.actor.body.scaling.offset is not None else torch.float32
    with torch.no_grad():
        for observation in observations:
            given = torch.as_tensor(observation)
            given = given if policy.kind == "youla_policy" or kind is torch.float64 else given.float()
            actions, state = policy._act(given, state, True)
            found.append(np.asarray(actions, dtype=np.float64).reshape(len(observation), -1))
    return np.stack(found)


def of_step(program: Program, step: Step, observations: Array) -> Array:
    """Return the actions (time, batch, na) of what runs one step, for flat observations."""
    state, found = np.zeros((observations.shape[1], program.states), program.kind), []
    for observation in observations:
        action, state = step(observation.astype(program.kind), state)
        found.append(np.asarray(action, dtype=np.float64).reshape(len(observation), -1))
    return np.stack(found)


def running(format: str, folder: Path, program: Program) -> tuple[Step | None, str]:
    """Return what runs one step of the files in a folder, None where nothing here can, and what runs it, in words."""
    if format == "numpy":
        path = folder / "policy.py"
        # Not imported, which would leave bytecode beside the files; dataclasses look for a module of its name.
        module = types.ModuleType("exported_policy")
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(module))  # what was just written
        return module.step, f"NumPy {np.__version__}"
    if format == "c":
        return _compiled(folder, program)
    if format == "onnx":
        if importlib.util.find_spec("onnxruntime") is None:
            return None, "onnxruntime is not installed"
        onnxruntime = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(folder / "policy.onnx"), options, providers=["CPUExecutionProvider"])

        def step(observation: Array, state: Array) -> tuple[Array, Array]:
            return tuple(session.run(["action", "next_state"], {"observation": observation, "state": state}))

        return step, f"onnxruntime {onnxruntime.__version__}"
    return lambda observation, state: program.run(observation, state)[:2], "the arrays, with NumPy"


def shared_library(folder: Path, target: Path, compiler: str = "cc") -> ctypes.CDLL:
    """Return policy.c of a folder as a shared library in `target`; raises InvalidValueError where it cannot be made."""
    if shutil.which(compiler) is None:
        raise InvalidValueError(f"No C compiler {compiler!r} is on this machine.")
    command = [compiler, *COMPILE, "-shared", "-fPIC", str(folder / "policy.c"), "-o", str(target), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InvalidValueError(f"{compiler} refused policy.c: {done.stderr.strip().splitlines()[:1]}")
    return ctypes.CDLL(str(target))


def _compiled(folder: Path, program: Program) -> tuple[Step | None, str]:
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        return None, "there is no C compiler here"
    with tempfile.TemporaryDirectory() as built:
        library = shared_library(folder, Path(built) / "policy.so", compiler)
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    return library_step(library, program), version


def library_step(library: ctypes.CDLL, program: Program) -> Step:
    """Return one step of the C program; it keeps one state, which is written into and read from its struct."""
    number = ctypes.c_float if program.dtype == "float32" else ctypes.c_double
    pointer = ctypes.POINTER(number)
    library.policy_step.argtypes = [pointer, pointer, pointer]
    library.policy_step.restype = None
    held = np.zeros(max(program.states, 1), program.kind)
    action = np.zeros(program.actions, program.kind)
    places = [array.ctypes.data_as(pointer) for array in (held, action)]

    def step(observation: Array, state: Array) -> tuple[Array, Array]:
        actions, following = np.empty((len(observation), program.actions), program.kind), np.array(state)
        for k, row in enumerate(np.ascontiguousarray(observation)):
            held[: program.states] = state[k]
            library.policy_step(places[0], row.ctypes.data_as(pointer), places[1])
            actions[k], following[k] = action, held[: program.states]
        return actions, following

    return step


def difference(expected: Array, found: Array, observations: Array, gamma: float | None) -> dict[str, Any]:
    """Return how far actions (time, batch, na) are apart; with a proven gain, beside 2 ulp of float32 scaled by it.

    2 ulp of float32 of the largest observation's norm, times gamma, and 2 ulp of the largest action.
    """
    off = np.abs(expected - found)
    size = float(np.abs(expected).max(initial=0.0))
    entry: dict[str, Any] = {
        "steps": int(off.shape[0] * off.shape[1]),
        "largest_difference": float(off.max(initial=0.0)),
        "largest_action": size,
    }
    if gamma is not None:
        norm = float(np.linalg.norm(observations, axis=-1).max(initial=0.0))
        entry["two_ulp_by_gain"] = 2.0 * 2.0**-23 * (gamma * norm + size)
    return entry


def check(entry: Mapping[str, Any], whole: bool, what: str) -> None:
    """Raise RobustPoliciesError where an export does something else than its policy."""
    off, size = entry["largest_difference"], max(entry["largest_action"], 1e-3)
    # Two logits may be equal up to rounding.
    if not whole and not off <= _WRONG * size:
        raise RobustPoliciesError(
            f"The exported program is off by {off:.3g} from the policy over {what}, whose actions are up to "
            f"{size:.3g}; nothing was written. A policy that does not forget cannot be run in float32: --dtype float64."
        )


def episodes(policy: RuntimePolicy, env: gymnasium.Env) -> list[tuple[Array, Array]]:
    """Return flat observations (time, 1, nu) and actions (time, 1, na) of episodes of a policy in its environment."""
    found = []
    for seed in range(_EPISODES):
        observation, _ = env.reset(seed=seed)
        state, seen, sent, done = None, [], [], False
        while not done and len(seen) < _LONGEST:
            seen.append(policy.observation_space.read(observation, np.dtype(np.float64))[0])
            action, state = policy.predict(observation, state)
            sent.append(np.asarray(action, dtype=np.float64).reshape(1, -1))
            observation, _, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
        found.append((np.stack(seen), np.stack(sent)))
    return found
