"""What can be asked of a run folder by name: `gamma`, `return@0.1`, `return:closed_loop_pgd@0.1`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.files import numbers

CERTIFICATE, RETURN, SMOOTHED = "certificate.json", "return_certificate.json", "smoothed_return.json"
EVALUATION, PROVENANCE, LOOP = "evaluation.json", "provenance.json", "loop.json"
MAKES = {
    CERTIFICATE: "certify {}",
    RETURN: "certify {} --return",
    SMOOTHED: "certify {} --smooth SIGMA",
    EVALUATION: "evaluate {}",
    PROVENANCE: "train RECIPE -o {}",
    LOOP: "loop {}",
}
"""The command that writes each file."""
EXPECTED = "expected NAME, NAME@SIZE or NAME:ATTACK@SIZE, such as gamma, certified_return@0.1 or return:mad_pgd@0.1"
_ASKED = re.compile(r"([^:@\s]+)\s*(?::\s*([^@]+?)\s*)?(?:@\s*(.*?)\s*)?")


@dataclass(frozen=True)
class Quantity:
    """One number that a run folder may hold.

    Attributes:
        what: it is, in a few words.
        source: the file that it is from.
        better: whether less or more of it is better.
        size: whether a size of error or attack belongs to it.
        rounded: to which side a reader sees it: bounds stay bounds.
    """

    what: str
    source: str
    better: Literal["less", "more"]
    size: Literal["none", "needed", "possible"] = "none"
    rounded: Literal["up", "down", "nearest"] = "nearest"

    def shown(self, value: float) -> str:
        """Return a value as a reader sees it."""
        return {"up": numbers.upper, "down": numbers.lower, "nearest": numbers.shown}[self.rounded](value)


def _bound(what: str) -> Quantity:
    return Quantity(what, CERTIFICATE, "less", rounded="up")


def _of_return(what: str, better: Literal["less", "more"] = "more", rounded: Literal["down", "nearest"] = "nearest"):
    return Quantity(what, RETURN, better, "needed", rounded)


def _behind_noise(what: str) -> Quantity:
    return Quantity(f"certified behind noise: {what}", SMOOTHED, "more", "needed", "down")


def _played(what: str, better: Literal["less", "more"] = "more") -> Quantity:
    return Quantity(what, EVALUATION, better, "possible")


def _margin(what: str, rounded: Literal["down", "nearest"] = "nearest") -> Quantity:
    return Quantity(f"{'proven' if rounded == 'down' else 'measured'}: {what}", LOOP, "more", rounded=rounded)


QUANTITIES = {
    "gamma": _bound("proven gain, observations to actions (a Youla policy's: of its linear closed loop)"),
    "gamma_core": _bound("proven gain of the cell"),
    "gamma_weighted": _bound("proven gain in the units of certify --weights"),
    "rate": _bound("proven contraction rate"),
    "overshoot": _bound("of the proof of the rate"),
    "forgets": _bound("steps after which 99% of a difference of two states is gone"),
    "peak": _bound("proven change of any action in a step, observations off by one unit each"),
    "found_gain": Quantity("largest gain that a search found", CERTIFICATE, "less", rounded="down"),
    "certified_return": _of_return("proven mean return for errors up to the size", rounded="down"),
    "found_return": _of_return("mean return of the worst error found"),
    "clipped_share": _of_return("of the steps at the worst error found with a clipped action", "less"),
    "certified_gain": Quantity("proven gain, error to root of the cost", RETURN, "less", rounded="up"),
    "unclipped_up_to": Quantity("size up to which no action can be clipped", RETURN, "more", rounded="down"),
    "smoothed_return": _behind_noise("mean return"),
    "smoothed_median": _behind_noise("return with probability 1/2"),
    "smoothed_nine_of_ten": _behind_noise("return with probability 9/10"),
    "return": _played("mean return, with a size under the worst that was run"),
    "return_low": _played("lower end of its 95% interval over episodes"),
    "return_cvar": _played("mean of the worst tenth of its episodes"),
    "return_least": _played("its worst episode"),
    "survival": Quantity("share of unperturbed episodes that nothing ended before the time limit", EVALUATION, "more"),
    "measured_gain": Quantity("largest |change of actions| / |attack|", EVALUATION, "less", "needed"),
    "critical_size": Quantity(
        "least size at which the suite's share of the return is lost, infinite if none", EVALUATION, "more"
    ),
    "gain_margin": _margin("largest factor at an input, linear part of the loop"),
    "phase_margin": _margin("turn at an input [degrees], linear part"),
    "delay_margin": _margin("lateness of an input [steps], linear part"),
    "disk_margin": _margin("disk margin of all inputs at once, linear part"),
    "sensitivity_peak": Quantity("largest |1 / (1 + L)| at an input, linear part of the loop", LOOP, "less"),
    "proven_gain_margin": _margin("factor at all inputs, policy itself on the linear model", "down"),
    "proven_phase_margin": _margin("turn at all inputs [degrees], policy itself on the linear model", "down"),
    "proven_delay_margin": _margin("lateness of all inputs [steps], policy itself on the linear model", "down"),
    "proven_disk_margin": _margin("disk margin of all inputs, policy itself on the linear model", "down"),
    "best": Quantity("best mean return of the evaluations while training", PROVENANCE, "more"),
    "steps": Quantity("environment steps of training", PROVENANCE, "less"),
    "seconds": Quantity("wall-clock seconds of training", PROVENANCE, "less"),
}


class Asked(NamedTuple):
    """What is asked for: a quantity, of which attack, noise, fault or norm (None: the worst of them), at which size."""

    name: str
    of: str | None = None
    size: float | None = None

    @property
    def quantity(self) -> Quantity:
        """What it is."""
        return QUANTITIES[self.name]

    def __str__(self) -> str:
        of = "" if self.of is None else f":{self.of}"
        return f"{self.name}{of}{'' if self.size is None else f'@{self.size:.15g}'}"


def asked_for(text: str, where: str) -> Asked:
    """Return what `text` asks for; `where` begins the error's line.

    Raises:
        UnknownNameError: no such quantity. InvalidValueError: not of that form, or a size too many or missing.
    """
    found = _ASKED.fullmatch(text.strip())
    if found is None:
        raise InvalidValueError(f"{where} was given {text!r}; {EXPECTED}.")
    name, of, size = found.groups()
    if name not in QUANTITIES:
        raise UnknownNameError(f"{where}: {UnknownNameError.among('quantity', name, QUANTITIES)}")
    known = QUANTITIES[name]
    if (size is None) == (known.size == "needed") or (size is not None and known.size == "none"):
        wanted = f"a size, such as {name}@0.1" if known.size == "needed" else "none"
        if known.size != "possible":
            raise InvalidValueError(
                f"{where} was given {text!r}, with{'out a' if size is None else ' a'} size; {name} takes {wanted}."
            )
    if of is not None and known.source != EVALUATION:
        raise InvalidValueError(f"{where} was given {text!r}; {name} is of no attack, so write {name} without :{of}.")
    if of is not None and size is None and known.size == "possible":
        raise InvalidValueError(f"{where} was given {text!r}; expected its size too, such as {name}:{of}@0.1.")
    return Asked(name, of, None if size is None else number(size, f"{where}: the size of {name}", at_least=0.0))


def number(text: str, where: str, at_least: float = -math.inf) -> float:
    """Return a finite number as people write one: 12, -.1, 1e-2."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= at_least):
        above = "" if math.isinf(at_least) else f" of at least {at_least:g}"
        raise InvalidValueError(f"{where} is {text!r}; expected a finite number{above}, such as 12, .1 or 1e-2.")
    return value
