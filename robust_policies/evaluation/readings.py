"""What a run folder holds of what is asked for by name, or why it does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from robust_policies.errors import UnknownNameError
from robust_policies.evaluation.attacks.names import ATTACKS
from robust_policies.evaluation.quantities import (
    CERTIFICATE,
    EVALUATION,
    LOOP,
    MAKES,
    PROVENANCE,
    RETURN,
    SMOOTHED,
    Asked,
)
from robust_policies.evaluation.report.load import Array, Run
from robust_policies.evaluation.report.methods import Condition, Method
from robust_policies.evaluation.statistics import cvar, mean_interval
from robust_policies.files import numbers

_FIELDS = {"gamma": "gamma_raw", "found_gain": "empirical_lower", "certified_gain": "gain"}
_ROWS = {
    "certified_return": "certified",
    "found_return": "found",
    "smoothed_return": "mean",
    "smoothed_median": "median",
    "smoothed_nine_of_ten": "nine_of_ten",
}
_OF_TRAINING = {"best": "best_mean_reward", "steps": "num_timesteps", "seconds": "training_seconds"}


class Reading(NamedTuple):
    """A value, or the reason why there is none; `returns` are the episodes (episodes,) that a mean return is of."""

    value: float | None
    reason: str = ""
    returns: Array | None = None


def read(run: Run, asked: Asked, task: str | None = None) -> Reading:
    """Return what a run folder holds of what is asked for.

    Args:
        run: as `report.load.load_runs` read it.
        asked: by `asked_for`.
        task: that returns are of; None: the first that was evaluated.
    """
    source = asked.quantity.source
    content = _contents(run)[source]
    if not content:
        path = run.folder / source
        said = next((note for note in run.notes if path.is_file() and note.startswith(str(path))), "").rstrip(".")
        return Reading(None, said or f"there is no {source}; {_make(run, source)}")
    if run.agreement.differences:
        return Reading(None, f"not confirmed, the files do not agree: {run.agreement.differences[0]}")
    reading = _READERS[source](run, asked, task)
    if reading.value is not None and not _is_number(reading.value):
        return Reading(None, f"{asked.name} in {source} is {reading.value!r} and no number; {_make(run, source)}")
    return reading


def _contents(run: Run) -> dict[str, Any]:
    return {
        CERTIFICATE: run.certificate,
        RETURN: run.returns,
        SMOOTHED: run.smoothed,
        EVALUATION: run.evaluation,
        PROVENANCE: run.provenance,
        LOOP: run.loop,
    }


def _make(run: Run, source: str, options: str = "") -> str:
    return f"make it with `robust-policies {MAKES[source].format(run.folder)}{options}`"


def _is_number(value: Any) -> bool:
    # A size beyond the largest that was tried is infinite.
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _certified(run: Run, asked: Asked, _: str | None) -> Reading:
    certificate, name = run.certificate, asked.name
    assert certificate is not None
    if name == "found_gain":
        return Reading(certificate.empirical_lower, "no search was made: this policy's gain cannot be searched")
    if certificate.status != "PASS":
        what = "what was claimed is refuted" if certificate.status == "VIOLATED" else "nothing is proven"
        return Reading(None, f"{what}: {certificate.reason or 'no reason is stated'}")
    if name == "gamma_weighted" and certificate.weights is None:
        return Reading(None, f"it has no weights; {_make(run, CERTIFICATE, ' --weights W1,W2,...')}")
    if name == "forgets":
        value = None if certificate.forgets is None else certificate.forgets["steps"]
    elif name == "peak":
        value = None if certificate.peak is None else max(certificate.peak["gamma"])
    else:
        value = getattr(certificate, _FIELDS.get(name, name))
    return Reading(value, f"no {name} is proven")


def _proven_return(run: Run, asked: Asked, task: str | None) -> Reading:
    one = run.returns
    assert one is not None
    if task is not None and task != one.task:
        return Reading(None, f"{RETURN} is of {one.task}, not of {task}")
    if asked.size is None:
        return Reading(
            getattr(one, _FIELDS.get(asked.name, asked.name)), f"nothing is proven: {one.reason}".rstrip(": ")
        )
    row = _row(run, RETURN, one.rows, asked.size)
    if isinstance(row, Reading):
        return row
    reason = f"nothing is proven at this size: {one.reason}".rstrip(": ")
    if asked.name == "certified_return" and row.certified is not None and not one.each:
        return Reading(None, f"{RETURN} lacks the bounds of its episodes, so nothing confirms it; {_make(run, RETURN)}")
    if asked.name == "certified_return" and row.certified is None and row.unclipped is not None:
        reason = f"proven ({numbers.lower(row.unclipped)}) only while no action is clipped"
    return Reading(getattr(row, _ROWS.get(asked.name, asked.name)), reason)


def _smoothed(run: Run, asked: Asked, task: str | None) -> Reading:
    one = run.smoothed
    assert one is not None and asked.size is not None
    if task is not None and one.task.split(" ")[0].rstrip(",") != task:
        return Reading(None, f"{SMOOTHED} is of {one.task}, not of {task}")
    row = _row(run, SMOOTHED, one.rows, asked.size)
    return row if isinstance(row, Reading) else Reading(getattr(row, _ROWS[asked.name]), "nothing is certified there")


def _row(run: Run, source: str, rows: Sequence[Any], size: float) -> Any:
    """Return the row of a size, or the reading that says which there are."""
    found = next((row for row in rows if _same(row.size, size)), None)
    if found is None:
        return _no_size(run, source, size, [row.size for row in rows])
    return found


def _same(given: float, asked: float) -> bool:
    return math.isclose(given, asked, rel_tol=1e-9)


def _no_size(run: Run, source: str, size: float, there: Sequence[float], of: str = "") -> Reading:
    known = sorted({*there})
    every = ",".join(f"{one:g}" for one in sorted({*known, size}))
    sizes = ", ".join(f"{one:g}" for one in known) or "none"
    return Reading(
        None, f"no size {size:g}{of} in {source}; there are {sizes}; {_make(run, source, f' --sizes {every}')}"
    )


def _evaluated(run: Run, asked: Asked, task: str | None) -> Reading:
    method = Method(run.name, 0, [run])
    stated = (run.evaluation or {}).get("tasks")
    first = next((one for one in stated if one in method.tasks), None) if isinstance(stated, list) else None
    task = task or first or next(iter(method.tasks), None)
    if task is None or task not in method.tasks:
        known = ", ".join(method.tasks) or "none"
        which = "" if task is None else f" --task {task}"
        there = f"{task or 'no task'} was not evaluated; there are {known}"
        return Reading(None, f"{there}; {_make(run, EVALUATION, which)}")
    if asked.name == "critical_size":
        return _critical(run, task, asked.of)
    if asked.name == "survival":
        return _survival(run, task)
    if asked.size is None or (asked.size == 0.0 and asked.of is None):
        returns = method.nominal(task)
        if returns is None:
            return Reading(None, f"there are no unperturbed episodes of {task}; {_make(run, EVALUATION)}")
        return _lowest(asked, [returns.ravel()])
    conditions = [one for one in method.conditions if one.task == task and _is_of(one, asked.of)]
    if asked.of is None:
        # A noise stands for what attacks could do only where none was run.
        attacks = [one for one in conditions if one.group == "worst"]
        conditions = attacks or [one for one in conditions if one.group == "noise" and one.perturbation != "none"]
    if not conditions:
        return _no_condition(run, asked, method, task)
    places = [(one, size, ()) for one in conditions for size in method.sizes(one)]
    places += [(one, size, point) for one in conditions for point, size in method.points(one).items()]
    here = [place for place in places if _same(place[1], asked.size)]
    if not here:
        of = "" if asked.of is None else f" of {asked.of}"
        return _no_size(run, EVALUATION, asked.size, [size for _, size, _ in places], of)
    if asked.name == "measured_gain":
        rows = [row for place in here for rows in method.rows(*place).values() for row in rows]
        if asked.of is None:
            # What was chosen as the worst keeps no gain: it is that of the attacks of this size.
            rows = [r for r in run.rows if r.task == task and r.group == "attack" and _same(r.size, asked.size)]
        gains = [row.gain for row in rows if row.gain is not None]
        return Reading(max(gains, default=None), "no gain was measured there")
    matrices = [matrix for place in here if (matrix := method.matrix(*place)) is not None]
    return _lowest(asked, [matrix.ravel() for matrix in matrices])


def _is_of(condition: Condition, of: str | None) -> bool:
    if of is None:
        return True
    return of == condition.perturbation or (of == condition.norm and condition.group == "worst")


def _no_condition(run: Run, asked: Asked, method: Method, task: str) -> Reading:
    found = [one for one in method.conditions if one.task == task and one.perturbation != "none"]
    names = sorted({one.perturbation for one in found} | {one.norm for one in found if one.norm})
    if asked.of is None:
        return Reading(None, f"no attack was run in {task}; {_make(run, EVALUATION)}")
    said = str(UnknownNameError.among("attack, fault or norm", asked.of, names)).replace("Known:", "There are:")
    again = f" {_make(run, EVALUATION, f' --attack {asked.of}').capitalize()}." if asked.of in ATTACKS else ""
    return Reading(None, f"{said}{again}".rstrip("."))


def _lowest(asked: Asked, returns: Sequence[Array]) -> Reading:
    """Return the statistic of the worst of several sets of returns (episodes,)."""
    statistic: dict[str, Callable[[Array], float]] = {
        "return": lambda values: float(values.mean()),
        "return_low": lambda values: float(mean_interval(values).low),
        "return_cvar": lambda values: cvar(values, 0.1),
        "return_least": lambda values: float(values.min()),
    }
    worst = min(returns, key=statistic[asked.name])
    return Reading(statistic[asked.name](worst), returns=worst)


def _survival(run: Run, task: str) -> Reading:
    """Return the share of the unperturbed episodes that have the length of the task's longest."""
    evaluation = run.evaluation or {}
    stated = evaluation.get("task_numbers")
    known = stated.get(task) if isinstance(stated, dict) else None
    full = known.get("max_episode_steps") if isinstance(known, dict) else None
    if not isinstance(full, int):
        return Reading(None, f"{EVALUATION} does not state how long an episode of {task} is; {_make(run, EVALUATION)}")
    rows = [row for row in evaluation["rows"] if isinstance(row, dict) and row.get("task") == task]
    rows = [row for row in rows if row.get("group") in ("noise", "attack") and row.get("size") == 0.0]
    lengths = [one for row in rows if isinstance(row.get("lengths"), list) for one in row["lengths"]]
    if not lengths or not all(map(_is_number, lengths)):
        return Reading(None, f"{EVALUATION} does not state the lengths of the episodes; {_make(run, EVALUATION)}")
    return Reading(float(np.mean([length >= full for length in lengths])))


def _critical(run: Run, task: str, of: str | None) -> Reading:
    found = [one for one in run.critical if one.get("task") == task]
    found = [one for one in found if of in (None, one.get("perturbation"), one.get("norm"))]
    if not found:
        return Reading(None, f"no critical size was sought; {_make(run, EVALUATION, ' --suite standard')}")
    return Reading(min(math.inf if one.get("size") is None else one["size"] for one in found))


def _trained(run: Run, asked: Asked, _: str | None) -> Reading:
    return Reading(run.provenance.get(_OF_TRAINING[asked.name]), f"{PROVENANCE} does not state it")


def _margins(run: Run, asked: Asked, _: str | None) -> Reading:
    content = run.loop or {}
    name = asked.name.removeprefix("proven_")
    key = {"gain_margin": "gain_high", "disk_margin": "alpha", "sensitivity_peak": "sensitivity"}.get(
        name, name.removesuffix("_margin")
    )
    if name != asked.name:
        proven = content["proven"]["policy"]
        if name == "delay_margin":
            return Reading(proven["delay"], "nothing is proven of the policy itself with late inputs")
        disk = proven["disk"]
        return _or_infinite(None if disk is None else disk[key], disk is None, "nothing is proven of the policy itself")
    policy = content["policy"]
    why = "the linear part of the loop is unstable"
    if name == "disk_margin":
        return _or_infinite(None if policy["disk"] is None else policy["disk"][key], policy["disk"] is None, why)
    values = [math.inf if one[key] is None else one[key] for one in policy["inputs"] or ()]
    worst = max if name == "sensitivity_peak" else min
    return _or_infinite(worst(values, default=None), not values, why)


def _or_infinite(value: float | None, missing: bool, reason: str) -> Reading:
    """Return a margin, infinite where nothing limits it, or why there is none."""
    return Reading(None, reason) if missing else Reading(math.inf if value is None else value)


_READERS: dict[str, Callable[[Run, Asked, str | None], Reading]] = {
    CERTIFICATE: _certified,
    RETURN: _proven_return,
    SMOOTHED: _smoothed,
    EVALUATION: _evaluated,
    PROVENANCE: _trained,
    LOOP: _margins,
}
