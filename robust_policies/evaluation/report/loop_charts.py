"""The pictures of loop.json: responses, Bode, Nyquist, poles and sensitivity of the linear part of a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_policies.errors import CorruptFileError
from robust_policies.evaluation.report.chart import COLOURS, Chart, Look, Panel, Series
from robust_policies.files.atomic import read_json
from robust_policies.train.run.folder import LOOP_SCHEMA

POLICY, LINEAR, LQG, PLANT = "policy", "its linear part", "LQG", "plant"
LOOKS = {
    POLICY: Look(COLOURS[0], "circle", "solid"),
    LINEAR: Look(COLOURS[5], "triangle-up", "dot"),
    LQG: Look(COLOURS[1], "x", "dash"),
    PLANT: Look("#6b6b6b", "diamond", "solid"),
}
GREY = Look("#9a9a9a", "circle", "dot")
FREQUENCY = "frequency [rad/s] (log)"
ABOUT = (
    "Of the linear part of the loop: the plant's linear model and the policy's derivative at their equilibrium. It "
    "says what happens near there, and proves nothing of the nonlinear loop."
)
# What a Nyquist plot shows around -1, and a picture of poles around the unit circle.
_NYQUIST, _POLES = 2.5, 1.3

Array = NDArray[np.float64]


def read_loop(path: Path) -> dict[str, Any]:
    """Return the content of loop.json; raises MissingFileError, CorruptFileError, SchemaError."""
    content = read_json(path, "loop", LOOP_SCHEMA)
    try:
        # What cannot be drawn or told is not what `loop` writes.
        loop_charts(content, "loop")
        margin_rows(content)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise CorruptFileError(
            f"{path} lacks or garbles {error}; write it again with `robust-policies loop`."
        ) from error
    return content


def loop_charts(content: Mapping[str, Any], key: str, whose: str = "") -> list[Chart]:
    """Return the pictures of a loop; their keys begin with `key`, their titles end with `whose`.

    Raises KeyError, TypeError or ValueError where `content` is not what `loop` writes.
    """
    of = f" ({whose})" if whose else ""
    charts = [
        Chart(f"{key}-responses", f"Responses{of}", _about_responses(content), list(_responses(content))),
        Chart(f"{key}-bode", f"Bode{of}", _about_bode(content), list(_bode(content))),
        Chart(f"{key}-plane", f"Nyquist and poles{of}", _about_plane(), [*_nyquist(content), _poles(content)]),
        Chart(f"{key}-sensitivity", f"Sensitivity{of}", _about_sensitivity(), list(_sensitivity(content))),
    ]
    return charts


def _line(name: str, x: Any, y: Any, look: Look | None = None) -> Series:
    return Series(name, look or LOOKS[name], x, y, points=False)


def _numbers(values: Sequence[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _values(pairs: Any) -> NDArray[np.complex128]:
    array = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return array[:, 0] + 1j * array[:, 1]


def _responses(content: Mapping[str, Any]) -> Any:
    for entry in content["responses"]:
        time = np.arange(entry["steps"]) * content["time_step"]
        # Files of older versions are of the first output.
        output = entry.get("output", content["outputs"][0])
        for signal, label in (("output", output), ("input", content["inputs"][0])):
            # The least important below, so that the policy is seen where lines agree.
            lines = [_line(name, time, _numbers(entry[name][signal])) for name in (LQG, POLICY, LINEAR)]
            where = {"load": "at the input", "sensor": "of the sensor"}[entry["kind"]]
            yield Panel(f"step of {float(entry['size']):.3g} {where}", "time [s]", str(label), lines)


def _bode(content: Mapping[str, Any]) -> Any:
    frequency = np.asarray(content["frequency"]["rad_per_s"], dtype=np.float64)
    for channel, label in enumerate(content["inputs"]):
        values = {name: _values(content["frequency"][name][channel]) for name in (LQG, POLICY)}
        where = f" at {label}" if len(content["inputs"]) > 1 else ""
        size = [_line(name, frequency, np.maximum(np.abs(v), 1e-12)) for name, v in values.items()]
        one = _line("1, and -180 degrees", frequency[[0, -1]], [1.0, 1.0], GREY)
        yield Panel(f"|L|{where}", FREQUENCY, "|L| (log)", [one, *size], log_x=True, log_y=True)
        turns = {name: _phase(v) for name, v in values.items()}
        lowest = _line(one.name, frequency[[0, -1]], [-180.0, -180.0], GREY)
        phase = [_line(name, frequency, turn) for name, turn in turns.items()]
        yield Panel(f"phase of L{where}", FREQUENCY, "phase [degrees]", [lowest, *phase], log_x=True)


def _phase(values: NDArray[np.complex128]) -> Array:
    """Return the phase in degrees without jumps, between -360 and 0 where the size is last above 1, else largest."""
    turns, size = np.degrees(np.unwrap(np.angle(values))), np.abs(values)
    crossing = int(np.flatnonzero(size >= min(1.0, float(size.max())))[-1])
    return turns - 360.0 * np.ceil(turns[crossing] / 360.0)


def _nyquist(content: Mapping[str, Any]) -> Any:
    circle = np.exp(1j * np.linspace(0.0, 2.0 * np.pi, 181))
    for channel, label in enumerate(content["inputs"]):
        lines = [_line("unit circle", np.real(circle), np.imag(circle), GREY)]
        for name in (LQG, POLICY):
            half = _values(content["frequency"][name][channel])
            both = np.concatenate((half, [np.nan], np.conj(half)))
            both[~(np.abs(both) < 4.0 * _NYQUIST)] = np.nan
            lines.append(_line(name, np.real(both), np.imag(both)))
        lines.append(Series("-1", Look("#000000", "cross", "solid"), [-1.0], [0.0], line=False))
        where = f" at {label}" if len(content["inputs"]) > 1 else ""
        yield Panel(f"Nyquist{where}", "real part of L", "imaginary part of L", lines, square=_NYQUIST)


def _poles(content: Mapping[str, Any]) -> Panel:
    circle = np.exp(1j * np.linspace(0.0, 2.0 * np.pi, 181))
    series = [_line("unit circle", np.real(circle), np.imag(circle), GREY)]
    # A Youla policy keeps its base controller's poles, so crosses stand on discs.
    poles = ((PLANT, content["plant_poles"]), (POLICY, content[POLICY]["poles"]), (LQG, content[LQG]["poles"]))
    largest = _POLES
    for name, pairs in poles:
        values = _values(pairs)
        largest = max(largest, 1.1 * float(np.abs(values).max(initial=0.0)))
        text = [f"{name}: {value.real:.4g}{value.imag:+.4g}j" for value in values]
        series.append(Series(name, LOOKS[name], values.real, values.imag, line=False, text=text))
    return Panel("Poles", "real part", "imaginary part", series, square=largest)


def _sensitivity(content: Mapping[str, Any]) -> Any:
    frequency = np.asarray(content["frequency"]["rad_per_s"], dtype=np.float64)
    for letter, what in (("S", "|S|, disturbance to plant input"), ("T", "|T| = |1 - S|")):
        lines = [
            _line(name, frequency, np.maximum(np.asarray(content["frequency"][f"{name} {letter}"], float), 1e-12))
            for name in (LQG, POLICY)
        ]
        yield Panel(what, FREQUENCY, f"|{letter}| (log)", lines, log_x=True, log_y=True)


def _about_responses(content: Mapping[str, Any]) -> str:
    return (
        f"The plant's linear model after a step: {'; '.join(str(one['said']) for one in content['responses'])}. "
        "Differences from the equilibrium: the policy itself, with the "
        "actuators' limits; its linear part, without; and the LQG controller, with the limits "
        f"({content['compared']})."
    )


def _about_bode(content: Mapping[str, Any]) -> str:
    return (
        f"{ABOUT} L is what goes around the loop, broken at an input of the plant with the others closed: its size and "
        "phase, up to half of the sampling rate."
    )


def _about_plane() -> str:
    return (
        f"{ABOUT} Left: L at frequencies up to half of the sampling rate and their mirror image; how near it comes to "
        "-1 is the margin. Right: poles of the plant and of the closed loops; inside the circle is stable."
    )


def _about_sensitivity() -> str:
    return f"{ABOUT} S and T are those of all inputs together (largest singular value); the peak of |S| is a margin."


def margin_rows(content: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Return (whose, of what, margins) of a loop: measured at each input and of all inputs at once, then proven.

    Margins have "gain_low", "gain_high", "phase" [degrees] and "delay" [steps], None for no limit; the proven ones of
    the policy itself last. None in place of them: the loop is unstable, or nothing is proven.
    """
    rows: list[tuple[str, str, dict[str, Any] | None]] = []
    for name in (POLICY, LQG):
        whose = f"{LINEAR} (measured)" if name == POLICY else f"{LQG} (measured)"
        loop = content[name]
        for channel, label in enumerate(content["inputs"]):
            one = None if loop["inputs"] is None else dict(loop["inputs"][channel])
            rows.append((whose, str(label), one))
        rows.append((whose, "all inputs at once", _together(loop)))
    for name, whose in ((LINEAR, f"{LINEAR} (proven)"), (POLICY, "the policy itself (proven)")):
        rows.append((whose, "all inputs at once", _together(content["proven"][name])))
    for _, _, one in rows:
        values = () if one is None else (one["gain_low"], one["gain_high"], one["phase"], one["delay"])
        if not all(value is None or (isinstance(value, int | float) and np.isfinite(value)) for value in values):
            raise ValueError(f"margins {one}")
    return rows


def _together(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a disk margin and a number of steps say, None without the first."""
    disk = content["disk"]
    return None if disk is None else {**disk, "delay": content["delay"]}
