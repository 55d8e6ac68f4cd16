"""The linear part of a run folder's loop: responses, margins, poles, into loop.json."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robust_policies.certificates.certificate import array_hashes, digest
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.linearize import linearize_plant
from robust_policies.control.margins import DiskMargin, LinearLoop, ProvenMargins
from robust_policies.control.norms import Array, StateSpace
from robust_policies.envs.batch import plant_of
from robust_policies.errors import InvalidValueError
from robust_policies.files.atomic import write_json
from robust_policies.files.versions import versions
from robust_policies.policies import DeployedPolicy, load_policy
from robust_policies.policies.linear_part import PolicyLoop, policy_loop
from robust_policies.policies.storage import stored_task
from robust_policies.policies.youla.policy import YoulaPolicy
from robust_policies.train.run.folder import LOOP_SCHEMA, RunFolder

POLICY, LQG, LINEAR = "policy", "LQG", "its linear part"
_CURVE, _LEAST_STEPS, _MOST_STEPS = 240, 40, 600
# Of an actuator's range, and of what the outputs show of the states' range.
_SHARE = 0.1


def loop_run(folder: str | Path, output: str | Path | None = None) -> dict[str, Any]:
    """Return what is measured and proven of the loop of a run folder's policy, also written to loop.json.

    Args:
        folder: with policy.json and policy.safetensors; a Youla policy's own model is the plant's, else that of the
            task in recipe.yaml or policy.json.
        output: folder that loop.json is written into; None: the run folder.

    Raises:
        UserError: the folder cannot be read, its task has no linear model, or the policy does not fit it.
    """
    run = RunFolder(folder)
    policy = load_policy(run.path)
    found = policy_loop(policy, None if isinstance(policy, YoulaPolicy) else _model(run))
    content = {
        "schema": LOOP_SCHEMA,
        "policy_sha256": digest(array_hashes(policy.running_arrays())),
        "model": found.model.origin,
        "exact": found.model.exact,
        "time_step": found.model.time_step,
        "inputs": list(found.model.input_names),
        "outputs": list(found.model.output_names),
        "compared": _compared(policy),
        "equilibrium": {
            "state": dict(zip(found.model.state_names, (found.model.x0 + found.state).tolist(), strict=True)),
            "input": dict(zip(found.model.input_names, (found.model.u0 + found.input).tolist(), strict=True)),
            "smooth": found.smooth,
            "within_limits": found.within,
        },
        POLICY: _loop(found.loop),
        LQG: _loop(found.base),
        "plant_poles": _complex(np.linalg.eigvals(found.loop.plant.A)),
        "proven": {
            LINEAR: _proven(found.linear_proven() if found.loop.stable else ProvenMargins(None, None)),
            POLICY: _proven(found.policy_proven() if found.loop.stable else ProvenMargins(None, None)),
        },
        "frequency": _frequency(found),
        "responses": _responses(found),
        "versions": versions(),
    }
    write_json((run if output is None else RunFolder(output)).loop, content)
    return content


def _model(run: RunFolder) -> LinearModel:
    """Return the linear model of the folder's task; raises InvalidValueError where it has none."""
    if run.recipe.is_file():
        task = run.read_recipe().task
        known, around = (task.id, task.kwargs), task.perturbations
    else:
        known, around = stored_task(run.path), ()
    if known is None:
        raise InvalidValueError(f"{run.path} names no task; expected one in recipe.yaml, or save_policy(..., task=ID).")
    if around:
        raise InvalidValueError(f"The wrappers around {known[0]} ({around}) are no part of its linear model.")
    plant = plant_of(*known)
    if plant is None:
        raise InvalidValueError(f"The equations of {known[0]} are not known here, so it has no linear model.")
    return linearize_plant(plant)


def _compared(policy: DeployedPolicy) -> str:
    if isinstance(policy, YoulaPolicy):
        return "the policy's own base controller"
    return "the LQG design of the linear model, with its default weights"


def _loop(loop: LinearLoop) -> dict[str, Any]:
    """Return poles and margins of a linear loop; margins None where it is not stable."""
    content: dict[str, Any] = {"stable": loop.stable, "poles": _complex(loop.poles), "inputs": None}
    if not loop.stable:
        return content | {"disk": None, "delay": None}
    each = [loop.measured(channel) for channel in range(loop.plant.B.shape[1])]
    names = ("gain_low", "gain_high", "phase", "delay", "sensitivity")
    content["inputs"] = [{name: _finite(getattr(one, name)) for name in names} for one in each]
    return content | {"disk": _disk(loop.disk()), "delay": loop.whole_delay()}


def _disk(disk: DiskMargin | None) -> dict[str, Any] | None:
    if disk is None:
        return None
    return {name: _finite(getattr(disk, name)) for name in ("alpha", "gain_low", "gain_high", "phase")}


def _proven(found: ProvenMargins) -> dict[str, Any]:
    return {"disk": _disk(found.disk), "delay": found.delay}


def _frequency(found: PolicyLoop) -> dict[str, Any]:
    """Return L at each input, of policy and LQG, at frequencies in rad/s up to half of the sampling rate."""
    step, m = found.model.time_step, found.model.m
    slowest = min(_slowest(found.loop), _slowest(found.base))
    angles = np.geomspace(max(1e-5, 0.03 * slowest), 0.999 * math.pi, _CURVE)
    content: dict[str, Any] = {"rad_per_s": (angles / step).tolist()}
    for name, loop in ((POLICY, found.loop), (LQG, found.base)):
        content[name] = [_complex(loop.opened(channel).response(angles)[:, 0, 0]) for channel in range(m)]
        around = loop.around.response(angles)
        content[f"{name} S"] = np.linalg.norm(np.eye(m) + around, 2, axis=(1, 2)).tolist()
        content[f"{name} T"] = np.linalg.norm(around, 2, axis=(1, 2)).tolist()
    return content


def _slowest(loop: LinearLoop) -> float:
    """Return the least |log pole| of a loop [rad a step], of poles that are not 0."""
    sizes = np.abs(np.log(loop.poles[np.abs(loop.poles) > 1e-9].astype(complex)))
    return float(np.clip(sizes.min(initial=math.pi), 1e-4, math.pi))


def _responses(found: PolicyLoop) -> list[dict[str, Any]]:
    """Return how output and input move after a step at the first input, and of the sensor of that output."""
    model = found.model
    place = _moved(model)
    rates = [np.abs(loop.poles).max(initial=0.0) for loop in (found.loop, found.base) if loop.stable]
    decay = min((-math.log(rate) for rate in rates if rate > 0), default=1.0)
    steps = int(np.clip(6.0 / max(decay, 1e-6), _LEAST_STEPS, _MOST_STEPS))
    reach = np.minimum(model.action_high - model.u0, model.u0 - model.action_low)[0]
    load = _SHARE * float(reach) if np.isfinite(reach) and reach > 0 else 1.0
    spread = 1.0 if model.state_range is None else float(np.linalg.norm(model.C[place] * model.state_range))
    sensor = _SHARE * spread or 1.0
    kinds = (("load", load, f"{load:.3g} added to {model.input_names[0]} at the plant"),
             ("sensor", sensor, f"{model.output_names[place]} read {sensor:.3g} too large"))  # fmt: skip
    found_responses = []
    for kind, size, said in kinds:
        entry: dict[str, Any] = {"kind": kind, "size": size, "said": said, "steps": steps}
        entry["output"] = model.output_names[place]
        entry[POLICY] = _simulated(found, *_own(found), kind, size, steps, place)
        entry[LINEAR] = _simulated(found, *_of(found.loop.controller), kind, size, steps, place, clip=False)
        entry[LQG] = _simulated(found, *_of(found.base.controller), kind, size, steps, place)
        found_responses.append(entry)
    return found_responses


def _moved(model: LinearModel) -> int:
    """Return the first output that the first input moves: at the upright that is not the cosine of the angle."""
    x, moved = model.B[:, 0], np.zeros(len(model.C))
    for _ in range(model.n):
        moved, x = np.maximum(moved, np.abs(model.C @ x)), model.A @ x
    return int(np.argmax(moved > 1e-6 * moved.max()))


Step = Callable[[Array, Any], tuple[Array, Any]]


def _own(found: PolicyLoop) -> tuple[Step, Any]:
    """Return the policy's own step and the state it stands still in."""

    def step(output: Array, state: torch.Tensor) -> tuple[Array, torch.Tensor]:
        with torch.no_grad():
            u, state = found.step(torch.as_tensor(found.model.C @ found.state + output)[None], state)
        return u[0].numpy() - found.input, state

    return step, found.hidden


def _of(controller: StateSpace) -> tuple[Step, Any]:
    A, B, C, D = controller
    return (lambda y, s: (C @ s + D @ y, A @ s + B @ y)), np.zeros(len(A))


def _simulated(
    found: PolicyLoop, step: Step, state: Any, kind: str, size: float, steps: int, place: int, clip: bool = True
) -> dict[str, Any]:
    """Return one output and the first input over time, less the equilibrium's; None where they grow too large."""
    model = found.model
    low, high = (limit - model.u0 - found.input for limit in (model.action_low, model.action_high))
    x = np.zeros(model.n)
    outputs, inputs = [], []
    for _ in range(steps):
        y = model.C @ x
        seen, added = y.copy(), np.zeros(model.m)
        if kind == "sensor":
            seen[place] += size
        else:
            added[0] = size
        u, state = step(seen, state)
        sent = np.clip(u, low, high) if clip else u
        outputs.append(_finite(y[place]))
        inputs.append(_finite(sent[0]))
        x = model.A @ x + model.B @ (sent + added)
        if not np.abs(x).max() < 1e9:
            break
    missing = [None] * (steps - len(outputs))
    return {"output": outputs + missing, "input": inputs + missing}


def _complex(values: Array) -> list[list[float]]:
    return [[float(value.real), float(value.imag)] for value in np.asarray(values, dtype=complex)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
