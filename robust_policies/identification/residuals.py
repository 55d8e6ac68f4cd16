"""Simulation against measurement: errors in both common forms, tests of the residuals, spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import signal, stats

from robust_policies.identification.records import Array

LAGS = 25
LEVEL = 0.99


def scores(measured: Array, simulated: Array, washout: int) -> dict[str, Any]:
    """Return the errors of a record, the first `washout` samples left out, of each output and of all.

    Args:
        measured: (time, ny).
        simulated: (time, ny).
        washout: samples.

    Returns:
        "rmse" in raw units, "nrmse_std" (RMSE / standard deviation of the measurement), "nrmse_rms" (RMSE / root mean
        square of it), each [ny]; "all": "nrmse_std", its mean over the outputs, "nrmse_rms", sqrt(sum e^2 / sum y^2)
        over all outputs together (the R2DN paper's), and "fit", 100 (1 - nrmse_std) percent.
    """
    y, e = measured[washout:], (measured - simulated)[washout:]
    rmse = np.sqrt((e**2).mean(0))
    by_std = _ratio(rmse, y.std(0))
    by_rms = _ratio(rmse, np.sqrt((y**2).mean(0)))
    whole = _ratio(np.sqrt((e**2).sum(keepdims=True)), np.sqrt((y**2).sum(keepdims=True)))
    mean = None if any(value is None for value in by_std) else float(np.mean(np.asarray(by_std, float)))
    return {
        "samples": len(y),
        "rmse": [_finite(value) for value in rmse],
        "nrmse_std": by_std,
        "nrmse_rms": by_rms,
        "all": {"nrmse_std": mean, "nrmse_rms": whole[0], "fit": None if mean is None else 100.0 * (1.0 - mean)},
    }


def mean_nrmse(pairs: Sequence[tuple[Array, Array]], washout: int) -> float:
    """Return the mean over outputs of RMSE / standard deviation, of all records (measured, simulated) together."""
    y = np.concatenate([one[washout:] for one, _ in pairs])
    e = np.concatenate([(one - other)[washout:] for one, other in pairs])
    return float((np.sqrt((e**2).mean(0)) / np.maximum(y.std(0), 1e-300)).mean())


def _ratio(above: Array, below: Array) -> list[float | None]:
    return [_finite(a / b) if b > 0 else None for a, b in zip(above.ravel(), below.ravel(), strict=True)]


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def whiteness(residual: Array, lags: int = LAGS) -> dict[str, Any]:
    """Return the autocorrelation of a residual (time,) at lags 1 to `lags`, and what white noise would have.

    "interval" is the half width within which each value of white noise lies with probability `LEVEL`, "outside" the
    share of lags beyond it, "p" the Ljung-Box test's (small: not white).
    """
    e = residual - residual.mean()
    n, lags = len(e), min(lags, len(residual) // 4)
    power = float(e @ e) or 1.0
    values = np.array([float(e[k:] @ e[: n - k]) / power for k in range(1, lags + 1)])
    half = float(stats.norm.ppf(0.5 + LEVEL / 2)) / np.sqrt(n)
    statistic = n * (n + 2) * float((values**2 / (n - np.arange(1, lags + 1))).sum())
    return {
        "lags": list(range(1, lags + 1)),
        "values": values.tolist(),
        "interval": half,
        "outside": float((np.abs(values) > half).mean()),
        "p": float(stats.chi2.sf(statistic, lags)),
    }


def crosscorrelation(residual: Array, source: Array, lags: int = LAGS) -> dict[str, Any]:
    """Return the correlation of a residual (time,) with an input (time,) that was `lag` steps earlier.

    "interval" is the half width (`LEVEL`) for independent signals of the autocorrelations that were found: variance
    sum_k r_e(k) r_u(k) / n (Bartlett). Inside it at lags of 0 and more: nothing linear of the input is left.
    """
    e, u = residual - residual.mean(), source - source.mean()
    n, lags = len(e), min(lags, len(residual) // 4)
    size = float(np.sqrt((e @ e) * (u @ u))) or 1.0
    values = [
        float(e[k:] @ u[: n - k]) / size if k >= 0 else float(e[:k] @ u[-k:]) / size for k in range(-lags, lags + 1)
    ]
    own = [_autocorrelation(one, min(n - 1, 4 * lags)) for one in (e, u)]
    variance = max(1.0 + 2.0 * float((own[0] * own[1]).sum()), 0.05) / n
    half = float(stats.norm.ppf(0.5 + LEVEL / 2)) * float(np.sqrt(variance))
    found = np.asarray(values)
    return {
        "lags": list(range(-lags, lags + 1)),
        "values": values,
        "interval": half,
        "outside": float((np.abs(found[lags:]) > half).mean()),
    }


def _autocorrelation(e: Array, lags: int) -> Array:
    power = float(e @ e) or 1.0
    return np.array([float(e[k:] @ e[: len(e) - k]) / power for k in range(1, lags + 1)])


def spectrum(values: Array, sample_time: float) -> tuple[Array, Array]:
    """Return frequencies in Hz and the power spectral density of a signal (time,) in its units^2/Hz, by Welch."""
    f, power = signal.welch(values, 1.0 / sample_time, nperseg=min(1024, len(values)), detrend="constant")
    return f[1:], power[1:]
