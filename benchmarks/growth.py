"""How the time of an update grows with its sizes, and the figure of it: the part `growth` of training.py.

python benchmarks/growth.py     # draws docs/images/growth.png from benchmarks/training.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from sides import on_device, rounded, timed

ROOT = Path(__file__).resolve().parent.parent
FIGURE = ROOT / "docs/images/growth.png"
MIDDLE = {"num_envs": 256, "n_steps": 64}
# The other sizes are those of `CELLS["r2dn"]`: nx 8, nv 16, two hidden layers of 16.
STUDIES: dict[str, tuple[str, tuple[int, ...]]] = {
    "environments": ("num_envs", (64, 256, 1024, 4096)),
    "steps": ("n_steps", (32, 64, 128, 256)),
    "nx": ("state_size", (8, 16, 32, 64)),
    "nv": ("features", (16, 32, 64, 128)),
    "hidden width": ("hidden_sizes", (16, 32, 64, 128)),
}


def growth(device: str, rounds: int) -> dict[str, Any]:
    """Return the seconds of one update of all epochs for growing sizes, and the slope of log seconds over log size.

    On a CPU they are seconds of the CPU, which other work on the machine disturbs least.
    """
    report: dict[str, Any] = {}
    for name, (key, sizes) in STUDIES.items():
        makers = {}
        for size in sizes:
            options: dict[str, Any] = MIDDLE | {key: (size, size) if key == "hidden_sizes" else size}
            makers[str(size)] = lambda options=options: on_device("r2dn", device=device, **options)
        seconds = {}
        for size, row in timed(makers, rounds).items():
            options = MIDDLE | {key: int(size)}
            rate = row["steps_per_cpu_second" if device == "cpu" else "steps_per_second"]
            share = row["shares_of_time"]["update"]
            seconds[size] = rounded(options["num_envs"] * options["n_steps"] / rate * share, 3)
        slope = np.polyfit(np.log([float(size) for size in seconds]), np.log(list(seconds.values())), 1)[0]
        report[name] = {"seconds_of_an_update": seconds, "log_log_slope": rounded(float(slope), 2)}
        print(f"{name:<12} slope {slope:5.2f}  {seconds}", flush=True)
    return report


def draw(report: dict[str, Any], path: Path) -> None:
    """Write one figure: the seconds of an update over each size, relative to the smallest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for marker, (name, study) in zip("osD^v", report.items(), strict=True):
        sizes = np.array([float(size) for size in study["seconds_of_an_update"]])
        seconds = np.array(list(study["seconds_of_an_update"].values()))
        label = f"{name} (from {sizes[0]:.0f}): slope {study['log_log_slope']:.2f}"
        axes.loglog(sizes / sizes[0], seconds / seconds[0], marker=marker, label=label)
    ends = np.array([1.0, 8.0])
    axes.loglog(ends, ends, color="0.6", linestyle=":", label="proportional")
    axes.set_xlabel("size, relative to the smallest")
    axes.set_ylabel("time of an update, relative")
    axes.set_xticks([1, 2, 4, 8, 16, 32, 64], labels=["1", "2", "4", "8", "16", "32", "64"])
    axes.set_yticks([1, 2, 4, 8], labels=["1", "2", "4", "8"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    draw(json.loads((ROOT / "benchmarks/training.json").read_text())["growth"]["found"], FIGURE)
