"""The certificate of a policy: what is proven of it, by which factors, on which arrays, and what is not."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch

from robust_policies.certificates.loop import SAID
from robust_policies.certificates.phrases import is_peak
from robust_policies.certificates.sentence import claim as claim
from robust_policies.certificates.signals import Signals
from robust_policies.errors import CorruptFileError, InvalidValueError
from robust_policies.files import numbers
from robust_policies.files.atomic import read_json, write_json
from robust_policies.files.versions import versions

SCHEMA = 1
Status = Literal["PASS", "VIOLATED", "NOT_CERTIFIED"]
STATUSES = ("PASS", "VIOLATED", "NOT_CERTIFIED")
VIOLATION_MARGIN = 1e-6
PERCENT = 99
_NUMBERS = ("gamma_core", "gamma_raw", "rate", "overshoot", "empirical_lower", "ratio", "margin", "gamma_weighted")


@dataclass(frozen=True)
class Factor:
    """One factor of the gain from raw observation to raw mean action, in the order the signal passes them."""

    name: str
    gain: float | None
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """What `verify` proved of one cell's explicit matrices.

    `gamma` bounds the incremental l2 gain (None: only contraction was asked or proven), `rate` the contraction rate,
    `overshoot` is the factor of the rate's proof by which a difference may grow before it shrinks (sqrt(cond P) of a
    metric P), `forgets` the steps after which 99% of a difference of two states is gone (None: never, or there is no
    state), `peak` {"units", "gamma", "method"} bounds every output at every step (None: not asked), `margin` is the
    smallest eigenvalue of the LMI, `shift` what rounding may have taken from it, `tau` the multiplier of phi's bound
    and `ell` phi's Lipschitz bound; `method` names the proof.
    NOT_CERTIFIED never means unstable.
    """

    status: Literal["PASS", "NOT_CERTIFIED"]
    gamma: float | None = None
    rate: float | None = None
    margin: float | None = None
    shift: float | None = None
    tau: float | None = None
    ell: float | None = None
    overshoot: float | None = None
    reason: str = ""
    claimed_gamma: float | None = None
    method: str = ""
    forgets: int | None = None
    peak: dict[str, Any] | None = None


@dataclass(frozen=True)
class Certificate:
    """The content of certificate.json.

    `gamma_core` is the proven gain of the recurrent cell, `gamma_raw` of the whole chain from what `signals` says is
    read to what it says is given (raw observation -> raw mean action in a run folder): the product of the factors, of
    which "joint proof" (below 1) is what proving them together gained; 0 for an action that is constant.
    `rate` is the smallest contraction rate that is proven, with the `overshoot` of its proof, and `forgets` what that
    means: {"percent": 99, "steps": n}, None where no rate below 1 is proven.
    `peak` is the bound step by step: {"units": [nu], "gamma": [na], "method"}, where every observation differs by at
    most its unit at every step; "found" and "witness" are of its search. None where none was asked for or proven.
    `gamma_weighted` is gamma_raw with each observation in units of `weights`; `method` names the proof.
    `empirical_lower` is the largest gain a search found for that chain, `witness` the file with the two input
    sequences that show it, `ratio` = empirical_lower / gamma_raw. PASS with gamma_raw None proves contraction only.
    With `closed_loop` (a Youla policy's; see `loop`) gamma_raw, rate and the search are of the closed loop, disturbance
    to performance, and there are no `signals`. A file of an older version has none either, and no `forgets`.
    With `choices` (of a policy whose actions are choices) the gains are those to the logits: "divisor"
    times gamma_raw is what a gap between logits shrinks by at most per unit of the observations' change, "memory"
    whether earlier observations count.
    `rounding` is of an exported policy alone (`export.rounding`): how far each action that runs may be from exact
    arithmetic, for ever. Files of other policies do not have it.
    """

    status: Status
    claim: str
    gamma_core: float | None = None
    gamma_raw: float | None = None
    rate: float | None = None
    overshoot: float | None = None
    empirical_lower: float | None = None
    ratio: float | None = None
    witness: str | None = None
    factors: tuple[Factor, ...] = ()
    margin: float | None = None
    method: str = ""
    weights: tuple[float, ...] | None = None
    gamma_weighted: float | None = None
    arrays_sha256: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    closed_loop: dict[str, Any] | None = None
    signals: Signals | None = None
    forgets: dict[str, Any] | None = None
    peak: dict[str, Any] | None = None
    choices: dict[str, Any] | None = None
    rounding: dict[str, Any] | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InvalidValueError(f"Certificate status is {self.status!r}; expected one of {', '.join(STATUSES)}.")
        if self.closed_loop is not None and not (
            isinstance(self.closed_loop, dict) and set(SAID) <= set(self.closed_loop)
        ):
            raise InvalidValueError(
                f"Certificate closed_loop is {self.closed_loop!r}; expected {', '.join(SAID)} in it."
            )
        entry = self.forgets
        if entry is not None and not (
            isinstance(entry, dict) and set(entry) == {"percent", "steps"} and all(map(_is_number, entry.values()))
        ):
            raise InvalidValueError(f"Certificate forgets is {entry!r}; expected percent and steps, or nothing.")
        if self.peak is not None and not is_peak(self.peak):
            raise InvalidValueError(f"Certificate peak is {self.peak!r}; expected units, gamma and method, or nothing.")
        if self.choices is not None and not (
            isinstance(self.choices, dict) and {"space", "divisor", "memory"} <= set(self.choices)
        ):
            raise InvalidValueError(f"Certificate choices is {self.choices!r}; expected space, divisor, memory in it.")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and not _is_number(value):
                raise InvalidValueError(f"Certificate {name} is {value!r}; expected a finite number or nothing.")

    def with_search(self, lower: float, witness: str | None) -> Self:
        """Return this certificate with the gain a search found; VIOLATED if that is above gamma_raw (1 + 1e-6).

        Only a float64 witness counts: secants in float32 show false violations.
        """
        ratio = lower / self.gamma_raw if self.gamma_raw else None
        searched = replace(self, empirical_lower=lower, witness=witness, ratio=ratio)
        if self.status == "PASS" and self.gamma_raw is not None and lower > self.gamma_raw * (1 + VIOLATION_MARGIN):
            # More digits than elsewhere: the two may differ by little.
            reason = f"two input sequences with gain {numbers.shown(lower, 9)} were found"
            searched = replace(searched, status="VIOLATED", reason=reason)
            searched = replace(searched, claim=claim(searched))
        return searched

    def with_peak(self, peak: dict[str, Any] | None, found: Sequence[float] = (), witness: str | None = None) -> Self:
        """Return this certificate with a bound step by step, None for none, and what a search found for it.

        VIOLATED if one of what was found is above its bound (1 + 1e-6).
        """
        if peak is None:
            return self
        peak = {**peak, **({"found": list(found), "witness": witness} if found else {})}
        certificate = replace(self, peak=peak)
        pairs = zip(found, peak["gamma"], strict=False)
        if self.status == "PASS" and any(low > bound * (1 + VIOLATION_MARGIN) for low, bound in pairs):
            reason = "two input sequences were found that change an action by more in one step than its bound allows"
            certificate = replace(certificate, status="VIOLATED", reason=reason)
        return replace(certificate, claim=claim(certificate))

    def named(self, sensors: Sequence[str], actuators: Sequence[str]) -> Self:
        """Return this certificate with the names and units of a task's signals, in its claim too."""
        if self.signals is None:
            return self
        certificate = replace(self, signals=self.signals.named(sensors, actuators))
        return replace(certificate, claim=claim(certificate))

    def to_json(self, path: str | Path) -> Path:
        """Return `path` after writing the certificate there, whole or not at all."""
        entries = {k: v for k, v in asdict(self).items() if k != "schema" and (k != "rounding" or v is not None)}
        return write_json(path, {"schema": self.schema, **entries})

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Return the certificate in `path`; raises MissingFileError, CorruptFileError or SchemaError."""
        content = read_json(path, "certificate", SCHEMA)
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(content) - known):
            raise CorruptFileError(f"{path} has unknown entries {', '.join(unknown)}; write it again with `certify`.")
        try:
            content["factors"] = tuple(Factor(**factor) for factor in content.get("factors", ()))
            if content.get("weights") is not None:
                content["weights"] = tuple(float(weight) for weight in content["weights"])
            if content.get("signals") is not None:
                content["signals"] = Signals.from_json(content["signals"])
            return cls(**content)
        except (TypeError, ValueError) as error:
            raise CorruptFileError(
                f"{path} is not a whole certificate ({error}); write it again with `certify`."
            ) from error


def array_hashes(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return the sha256 of each array's dtype, shape and bytes (C order, little endian)."""
    hashes = {}
    for name, value in arrays.items():
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        hashes[name] = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()
    return hashes


def digest(hashes: Mapping[str, str]) -> str:
    """Return one sha256 for what `array_hashes` returned, whatever the order of its names."""
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def compose(
    verification: Verification,
    *,
    signals: Signals,
    before: Sequence[Factor] = (),
    after: Sequence[Factor] = (),
    joint: float | None = None,
    weights: Sequence[float] | None = None,
    weighted: float | None = None,
    arrays: Mapping[str, Any] | None = None,
    cell_note: str = "",
    choices: dict[str, Any] | None = None,
) -> Certificate:
    """Return the certificate of the chain `before` -> cell -> `after`; its gain is the product of the factors'.

    Args:
        verification: of the cell.
        signals: what the first factor reads and the last one gives.
        before: the factors before the cell, in order.
        after: those after it.
        joint: a gain proven of the whole chain at once, which becomes a last factor where it is smaller.
        weights: units of the observations.
        weighted: the gain proven in these units.
        arrays: those that run, by name.
        cell_note: the cell's name.
        choices: of a policy whose actions are choices: "space", "divisor", "memory"; see `Certificate`.
    """
    factors = (*before, Factor("cell", verification.gamma, _note(cell_note, verification.method)), *after)
    gains = [factor.gain for factor in factors]
    proven = verification.status == "PASS"
    gamma_raw = None
    if proven and all(gain is not None for gain in gains):
        # Each product rounds by at most one unit in 2^53; the bound must not shrink by it.
        gamma_raw = math.prod(float(gain) for gain in gains if gain is not None) * (1 + 4e-16 * (len(gains) + 1))
    if proven and joint is not None and (gamma_raw is None or joint < gamma_raw):
        if gamma_raw is not None:
            name, note = (
                "joint proof",
                "all factors proven as one inequality, channel by channel, relative to their product",
            )
            if joint == 0:
                name, note = "constant", "no signal reaches the action: the maps to it are zero"
            factors = (*factors, Factor(name, joint / gamma_raw, note))
        gamma_raw = joint
    certificate = Certificate(
        status=verification.status,
        claim="",
        gamma_core=verification.gamma,
        gamma_raw=gamma_raw,
        rate=verification.rate,
        overshoot=verification.overshoot,
        factors=factors,
        margin=verification.margin,
        method=verification.method,
        weights=None if weights is None else tuple(map(float, weights)),
        gamma_weighted=weighted if proven else None,
        arrays_sha256=array_hashes(arrays or {}),
        versions=versions(),
        reason=verification.reason,
        signals=signals,
        forgets=forgotten(verification.forgets),
        choices=choices,
    )
    return replace(certificate, claim=claim(certificate))


def not_certified(reason: str, arrays: Mapping[str, Any] | None = None) -> Certificate:
    """Return the certificate of a policy of which nothing is proven."""
    certificate = Certificate(
        "NOT_CERTIFIED", "", reason=reason.rstrip("."), arrays_sha256=array_hashes(arrays or {}), versions=versions()
    )
    return replace(certificate, claim=claim(certificate))


def forgotten(steps: int | None) -> dict[str, Any] | None:
    """Return the entry `forgets` for the steps after which 99% of a difference is gone."""
    return None if steps is None else {"percent": PERCENT, "steps": steps}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _note(name: str, method: str) -> str:
    return ": ".join(part for part in (name, method) if part)
