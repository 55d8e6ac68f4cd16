"""What is certified of the return of a policy behind Gaussian noise: numbers, the sentence, and the file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robust_policies.errors import CorruptFileError
from robust_policies.files import numbers
from robust_policies.files.atomic import read_json, write_json
from robust_policies.files.versions import versions

SCHEMA = 1
GIVEN, OF_THE_TASK = "given", "the least reward of the task's steps"


@dataclass(frozen=True)
class SmoothedRow:
    """What holds under every attack of one size.

    Attributes:
        size: the attack's l2 norm over the whole episode, in the observation's own unit.
        mean: the mean return is at least this; None where no floor of the return is known.
        median: an episode returns at least this with probability 1/2 or more; None where nothing is known.
        nine_of_ten: the same with probability 9/10.
    """

    size: float
    mean: float | None
    median: float | None
    nine_of_ten: float | None

    @property
    def said(self) -> str:
        """What holds, as part of a sentence; "" for nothing."""
        bounds = (
            (self.mean, "the mean return is at least {}"),
            (self.median, "an episode returns at least {} with probability 1/2 or more"),
            (self.nine_of_ten, "at least {} with probability 9/10 or more"),
        )
        return ", ".join(text.format(numbers.lower(value)) for value, text in bounds if value is not None)


@dataclass(frozen=True)
class SmoothedReturn:
    """Lower bounds of the return of a policy behind Gaussian noise, whoever perturbs what it reads.

    Attributes:
        status: "PASS" where a row holds a bound, else "NOT_CERTIFIED".
        sigma: standard deviation of the noise, of every measured entry at every step, in its own unit.
        confidence: with which all rows hold together.
        episodes: the number played with noise.
        steps: episodes are cut there.
        floor: no return is below it; None: none is known, and no mean is certified.
        floor_from: who says so.
        nominal, nominal_error: mean return without noise and its standard error: measured, not certified.
        smoothed, smoothed_error: the same with it.
        failed: episodes in which an action or a reward was not finite; they count as below every threshold.
        rows: one for each size.
        task: the environment's name, and the wrappers around it.
        seed: of the episodes.
        policy_sha256: of the policy's arrays that run, "" in files of older versions.
    """

    status: str
    sigma: float
    confidence: float
    episodes: int
    steps: int
    floor: float | None
    floor_from: str
    nominal: float
    nominal_error: float
    smoothed: float
    smoothed_error: float
    failed: int
    rows: tuple[SmoothedRow, ...]
    task: str
    seed: int
    policy_sha256: str = ""

    @property
    def claim(self) -> str:
        """The sentence that holds."""
        if self.status != "PASS":
            return (
                f"Nothing is proven of the smoothed policy in {self.task} at these sizes: give a floor of the return, "
                "more noise, more episodes or smaller sizes. This does not mean that it is bad."
            )
        bounds = "; ".join(f"size {row.size:.6g}: {row.said}" for row in self.rows if row.said)
        return (
            f"Of the smoothed policy, which reads every observation of {self.task} with new Gaussian noise of standard "
            f"deviation {self.sigma:.6g} in each measured entry, and of no policy without that noise: {bounds}. "
            f"The size of an attack is the l2 norm, over all entries and steps of an episode (at most {self.steps}), "
            "of what it adds before the noise; it may be chosen from the policy, the environment, its start and noise, "
            "and all that happened, but not from the Gaussian noise of this step or later ones. All of it holds with "
            f"confidence {self.confidence:.6g}, from {self.episodes} independent episodes (seed {self.seed})."
            + self._said_of_the_floor()
        )

    def _said_of_the_floor(self) -> str:
        if self.floor is None:
            return " No floor of the return is known, so nothing is said of its mean."
        whose = "which was given and is not checked" if self.floor_from == GIVEN else f"from {self.floor_from}"
        return f" The mean rests on no return being below {numbers.lower(self.floor)}, {whose}."

    def to_json(self, path: str | Path) -> Path:
        """Return `path` after writing the certificate there, whole or not at all."""
        return write_json(path, {"schema": SCHEMA, "claim": self.claim, **asdict(self), "versions": versions()})

    @classmethod
    def from_json(cls, path: str | Path) -> SmoothedReturn:
        """Return the certificate in a file; raises MissingFileError, CorruptFileError, SchemaError."""
        content = read_json(path, "smoothed return", SCHEMA)
        try:
            fields: dict[str, Any] = {
                name: content[name] for name in cls.__dataclass_fields__ if name != "policy_sha256"
            }
            fields["policy_sha256"] = content.get("policy_sha256", "")
            fields["rows"] = tuple(SmoothedRow(**row) for row in content["rows"])
        except (KeyError, TypeError) as error:
            raise CorruptFileError(f"{path} lacks or garbles {error}; write it with `certify --smooth`.") from error
        return cls(**fields)
