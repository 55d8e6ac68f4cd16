"""The measured benchmarks of results/identification: which samples are for what, and how models of them are fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.errors import MissingFileError
from robust_policies.files.atomic import write_atomic


@dataclass(frozen=True)
class Benchmark:
    """One data set.

    Attributes:
        title: of its part of the page.
        pieces: train, validation and test, as `robust-policies identify` takes them.
        records: names of the test's pieces.
        sample_time: in seconds.
        washout: samples that errors leave out, n_init.
        unit, factor: of the RMSE on the page, and how many of it are one of the file's.
        methods: cells by name; a key "updates" is in place of `updates`.
        updates: of a model.
        algorithm: further settings.
        aims: NRMSE aimed at, for the first records.
    """

    title: str
    pieces: Mapping[str, list[str]]
    records: tuple[str, ...]
    sample_time: float
    washout: int
    unit: str
    factor: float
    methods: Mapping[str, Mapping[str, Any]]
    updates: int
    algorithm: Mapping[str, Any] = field(default_factory=dict)
    aims: tuple[float, ...] = ()


# The official splits (nonlinear-benchmarks 1.0.1); the last part of the training chooses the model that is kept.
BENCHMARKS = {
    # The multisine's first 75% to learn from (60 to fit, 15 to choose by), the rest and the arrow to test on; the
    # arrow's first 32,000 stay in the range of the training.
    "silverbox": Benchmark(
        "Silverbox",
        {
            "train": ["[40650:92700]"],
            "validation": ["[92700:105712]"],
            "test": ["[105712:127400]", "[100:32100]", "[100:40575]"],
        },
        ("multisine", "arrow, without extrapolation", "whole arrow"),
        sample_time=2**14 / 1e7,
        washout=50,
        unit="mV",
        factor=1000.0,
        methods={
            "r2dn": {"name": "r2dn", "features": 24},
            "r2dn_long": {"name": "r2dn", "features": 24, "updates": 4000},
            "r2dn_gain30": {"name": "r2dn", "features": 24, "gamma": 30.0},
            "ren": {"name": "ren", "features": 24},
            "l2ru": {"name": "l2ru", "state_size": 16, "features": 12, "layers": 3, "activation": "tanh"},
            "lstm": {"name": "lstm", "state_size": 32},
        },
        updates=2500,
        algorithm={"window": 512},
        aims=(0.03, 0.04),
    ),
    "coupled_drives": Benchmark(
        "Coupled electric drives",
        {
            "train": ["low[0:320]", "high[0:320]"],
            "validation": ["low[320:400]", "high[320:400]"],
            "test": ["low[400:500]", "high[400:500]"],
        },
        ("low amplitude", "high amplitude"),
        sample_time=0.02,
        washout=10,
        unit="",
        factor=1.0,
        methods={
            "r2dn": {"name": "r2dn"},
            "r2dn_gain3": {"name": "r2dn", "gamma": 3.0},
            "ren": {"name": "ren"},
            "l2ru": {"name": "l2ru", "state_size": 8, "features": 8, "activation": "tanh"},
            "lstm": {"name": "lstm", "state_size": 8},
        },
        updates=1500,
        algorithm={"window": 80, "batch": 32, "burn_in": 10, "initial_state": "encoded"},
    ),
    "wiener_hammerstein": Benchmark(
        "Wiener-Hammerstein",
        {"train": ["[5200:85200]"], "validation": ["[85200:105200]"], "test": ["[105200:184000]"]},
        ("test",),
        sample_time=1 / 51200,
        washout=50,
        unit="mV",
        factor=1000.0,
        methods={
            "r2dn": {"name": "r2dn", "state_size": 12, "features": 24},
            "r2dn_gain3": {"name": "r2dn", "state_size": 12, "features": 24, "gamma": 3.0},
            "ren": {"name": "ren", "state_size": 12, "features": 24},
            "l2ru": {"name": "l2ru", "state_size": 24, "features": 12, "layers": 3, "activation": "tanh"},
            "lstm": {"name": "lstm", "state_size": 32},
        },
        updates=2500,
        algorithm={"window": 512},
    ),
}


def files_of(name: str, data: Path, folder: Path) -> list[str]:
    """Return the files that `identify` reads for a benchmark, made in `folder` of those in `data` where they differ.

    Args:
        name: of the benchmark.
        data: a folder with NAME.npz.
        folder: of what is made.

    Raises:
        MissingFileError: there is no NAME.npz.
    """
    source = data / f"{name}.npz"
    if not source.is_file():
        raise MissingFileError(f"{source} is missing; see results/identification/README.md for where it is from.")
    if name == "silverbox":
        return [str(source)]
    with np.load(source) as arrays:
        if name == "coupled_drives":
            made = {part: (arrays[f"u_{part}"], arrays[f"y_{part}"]) for part in ("low", "high")}
        else:
            parts = ("train", "test", "validation")
            made = {name: tuple(np.concatenate([arrays[f"{s}_{part}"] for part in parts]) for s in "uy")}
    for part, (u, y) in made.items():
        write_atomic(folder / f"{part}.npz", lambda file, u=u, y=y: np.savez(file, u=u.ravel(), y=y.ravel()))
    return [str(folder / f"{part}.npz") for part in made]
