"""The page about an identified model: simulation against measurement, errors, residuals, spectra, what is proven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.evaluation.report import static
from robust_policies.evaluation.report.chart import Chart, Look, Panel, Series
from robust_policies.evaluation.report.markup import escape, figure, number, proven, table
from robust_policies.evaluation.report.page import whole_page
from robust_policies.files.atomic import write_atomic
from robust_policies.identification.certificate import ModelCertificate
from robust_policies.identification.records import Array
from robust_policies.identification.residuals import LEVEL, spectrum

_LOOKS = {"measured": Look("#000000", "circle", "solid"), "model": Look("#0072B2", "square", "dash"),
          "linear": Look("#D55E00", "triangle-up", "dot")}  # fmt: skip
_NAMES = {"measured": "measured", "model": "identified model", "linear": "linear model"}
_STRETCH, _BLOCKS = 100, 120
_LIMIT = Look("#8a9099", "circle", "dash")


def write_page(
    folder: Path, content: Mapping[str, Any], arrays: Mapping[str, Array], certificate: ModelCertificate
) -> Path:
    """Return the path of report.html after writing it and its pictures, figures/, into a folder.

    Args:
        folder: the run folder.
        content: of identification.json.
        arrays: "RECORD.NAME", (time, ny), RECORD counting its records: measured, and simulated by each model.
        certificate: of the model.
    """
    charts: list[Chart] = []
    blocks = [("errors", "Errors", _scores(content)), ("proven", "What is proven", _proven(certificate))]
    for index, entry in enumerate(content["records"]):
        here = {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"{index}.")}
        if not here:
            continue
        made = _charts(index, entry, here, content)
        charts += made
        blocks.append((f"record{index}", f"{entry['part'].capitalize()}: {entry['record']}", ""))
    pictures = static.save_all(charts, folder / "figures", "report.html")
    for place, (anchor, name, body) in enumerate(blocks):
        own = [chart for chart in charts if chart.key.startswith(f"{anchor}-")]
        if own:
            blocks[place] = anchor, name, body + "".join(figure(chart, pictures[chart.key]) for chart in own)
    notes = "".join(f"<p class='note'><strong>Data:</strong> {escape(text)}</p>" for text in content["warnings"])
    header = f"<h1>{escape(folder.resolve().name)}</h1><p class='lead'>{escape(_lead(content))}</p>"
    page = whole_page(folder.resolve().name, header, blocks, charts, notes)
    return write_atomic(folder / "report.html", lambda file: file.write(page.encode(errors="replace")))


def _lead(content: Mapping[str, Any]) -> str:
    cell = content["cell"]
    return (
        f"A model from {', '.join(content['inputs'])} to {', '.join(content['outputs'])}, sample time "
        f"{content['sample_time']:.6g} s: {cell['type']}, {content['parameters']} parameters. All errors are of "
        f"simulation (free run), without the first {content['washout']} samples. {content['baseline']}"
    )


def _scores(content: Mapping[str, Any]) -> str:
    rows = []
    for entry in content["records"]:
        for name, found in entry["scores"].items():
            for k, output in enumerate(content["outputs"]):
                values = [number(found[key][k]) for key in ("rmse", "nrmse_std", "nrmse_rms")]
                rows.append(
                    [escape(f"{entry['part']} {entry['record']}"), escape(_NAMES[name]), escape(output), *values]
                )
    head = ["record", "model", "output", "RMSE, raw units", "NRMSE / deviation", "NRMSE / root mean square"]
    caption = (
        "The two NRMSE divide the RMSE by the standard deviation of the measurement, or by its root mean square; they "
        "differ where the mean is not zero. Of the training the longest record is shown."
    )
    return table(head, rows, caption, (3, 4, 5))


def _proven(certificate: ModelCertificate) -> str:
    text = f"<p>{escape(certificate.status)}: {escape(certificate.claim)}</p>"
    if certificate.gains is None:
        return text
    rows = [[escape(o), *map(proven, row)] for o, row in zip(certificate.outputs, certificate.gains, strict=True)]
    head = ["", *(escape(f"from {name}") for name in certificate.inputs)]
    caption = "Proven incremental l2 gain from each raw input alone to each raw output, rounded up."
    return text + table(head, rows, caption, range(1, len(head)))


def _charts(
    index: int, entry: Mapping[str, Any], arrays: Mapping[str, Array], content: Mapping[str, Any]
) -> list[Chart]:
    washout, dt = content["washout"], content["sample_time"]
    panels, tests, lines = [], [], []
    for k, output in enumerate(content["outputs"]):
        measured = arrays["measured"][:, k]
        error = np.abs(measured - arrays["model"][:, k])
        worst = washout + int(error[washout:].argmax())
        first = max(washout, min(worst - _STRETCH // 2, len(measured) - _STRETCH))
        shown = {washout: f"{output}: the beginning", first: f"{output}: around the largest error"}
        if len(shown) == 1:
            shown = {washout: output}
        for begin, title in shown.items():
            cut = slice(begin, begin + _STRETCH)
            t = np.arange(len(measured))[cut] * dt
            series = [_line(name, t, value[cut, k]) for name, value in arrays.items()]
            panels.append(Panel(title, "time in s", output, series))
        panels.append(
            Panel(
                f"{output}: error over the record", "time in s", "RMSE of each stretch", _blocks(arrays, k, washout, dt)
            )
        )
        lines.append(
            Panel(
                output,
                "frequency in Hz (log)",
                "power spectral density (log)",
                _spectra(arrays, k, washout, dt),
                log_x=True,
                log_y=True,
            )
        )
        tests += _tests(entry["residuals"][k], content["inputs"])
    record = f"{entry['part']} {entry['record']}"
    return [
        Chart(
            f"record{index}-simulation",
            f"Simulation against measurement, {record}",
            "Free run from where the model begins, fed with the measured input alone, beside what was measured.",
            panels,
            columns=3,
        ),
        Chart(
            f"record{index}-residuals",
            f"What is left in the residual, {record}",
            f"Its autocorrelation, inside the dashed lines with probability {LEVEL:g} at each lag if it is white (a "
            "simulation error need not be: the noise of a plant is often coloured), and its correlation with the input "
            "that many samples earlier: outside the lines at lags of 0 and more something of it is not modelled.",
            tests,
            columns=2,
            legend=False,
        ),
        Chart(
            f"record{index}-spectra",
            f"Spectra, {record}",
            "Of the measurement and of the errors of simulation (Welch): where an error comes near to the measurement "
            "the model knows nothing.",
            lines,
            columns=2,
        ),
    ]  # fmt: skip


def _line(name: str, x: Array, y: Array, words: str = "") -> Series:
    return Series(f"{words}{_NAMES[name]}", _LOOKS[name], x, y, points=False)


def _blocks(arrays: Mapping[str, Array], k: int, washout: int, dt: float) -> list[Series]:
    measured = arrays["measured"][washout:, k]
    ends = np.unique(np.linspace(0, len(measured), min(_BLOCKS, max(2, len(measured) // 8)) + 1).astype(int))
    middle = (washout + 0.5 * (ends[:-1] + ends[1:])) * dt
    found = []
    for name, value in arrays.items():
        if name != "measured":
            total = np.concatenate(([0.0], np.cumsum((measured - value[washout:, k]) ** 2)))
            found.append(_line(name, middle, np.sqrt(np.diff(total[ends]) / np.diff(ends))))
    return found


def _spectra(arrays: Mapping[str, Array], k: int, washout: int, dt: float) -> list[Series]:
    measured = arrays["measured"][washout:, k]
    found = []
    for name, value in arrays.items():
        signal = measured if name == "measured" else measured - value[washout:, k]
        f, power = spectrum(signal, dt)
        found.append(_line(name, f[power > 0], power[power > 0], "" if name == "measured" else "error of the "))
    return found


def _tests(entry: Mapping[str, Any], inputs: Sequence[str]) -> list[Panel]:
    white = entry["whiteness"]
    pairs = [(f"{entry['output']}: autocorrelation of the residual", white)]
    pairs += [
        (f"{entry['output']}: correlation with {name}", one) for name, one in zip(inputs, entry["cross"], strict=True)
    ]
    found = []
    for title, test in pairs:
        lags = test["lags"]
        limits = [
            Series(f"{LEVEL:.0%} limits", _LIMIT, [lags[0], lags[-1]], [sign * test["interval"]] * 2, points=False)
            for sign in (1, -1)
        ]
        values = Series("residual", _LOOKS["model"], lags, test["values"], points=False)
        found.append(Panel(title, "lag in samples", "correlation", [values, *limits]))
    return found
