"""What is proven of a policy's return where its observations are off: numbers, the sentence, and the file."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robust_policies.certificates.trajectory import MARGIN
from robust_policies.errors import CorruptFileError
from robust_policies.files import numbers
from robust_policies.files.atomic import read_json, write_json
from robust_policies.files.versions import versions

SCHEMA = 1
_LATER = ("sensors", "region", "delay", "noise", "policy_sha256")
_AT_MOST = {
    "per_step_l2": "in the l2 norm at every step",
    "per_step_linf": "at every sensor and step",
    "total_l2": "in the l2 norm of the whole episode",
}


@dataclass(frozen=True)
class ReturnRow:
    """Means of returns over the episodes, for perturbations of one size.

    Attributes:
        size: in the observation's own unit.
        nominal: without a perturbation.
        found: of the worst perturbation that a search of the whole episode found, clipped where it clips.
        certified: no perturbation of this size leads to less, clipped actions included; None: nothing is proven.
        clipped_share: of the steps at the worst perturbation found, the share with an action at its limit.
        triangle, constant: the weaker bounds, by the gain alone and with one multiplier for all steps; they hold while
            nothing is clipped, and are None where that is not excluded in all episodes.
        unclipped: no perturbation of this size that leads to no clipped action leads to less: the mean over the
            episodes in which none is clipped without a perturbation. None where there is no such episode.
    """

    size: float
    nominal: float
    found: float
    certified: float | None
    clipped_share: float
    triangle: float | None = None
    constant: float | None = None
    unclipped: float | None = None


@dataclass(frozen=True)
class SensorErrors:
    """What one unit of error of one sensor at every step can do in the closed loop, for ever.

    Attributes:
        sensor: its name and unit.
        actions, states: by name and unit, how far each may differ at any step, while nothing is clipped; None: nothing
            is proven.
        reason: why nothing is proven, "" if something is.
    """

    sensor: str
    actions: dict[str, float | None]
    states: dict[str, float | None]
    reason: str = ""


@dataclass(frozen=True)
class ReturnCertificate:
    """What is proven of the return of each episode, whoever perturbs what the policy reads.

    Attributes:
        status: "PASS" where there is a bound, else "NOT_CERTIFIED".
        norm: of the perturbations, one of `certificates.ball.NORMS`.
        gain: proven gain from the perturbation to the root of the cost, None where none is.
        unclipped_up_to: for no size up to it can an action be clipped; None: one is without any perturbation, or
            nothing is known.
        episodes: the number that the rows are means of.
        rows: one for each size.
        task: the environment's name.
        seed: of the episodes.
        set_aside: how many episodes are no part of this, because nothing is proven of them.
        each: certified returns by size and episode (sizes, episodes), minus infinity where there is none.
        reason: why nothing is proven, "" if something is.
        sensors: what an error of each sensor can do to actions and states; () where it was not asked for.
        region: of a nonlinear plant, for the largest size that has one (`size_up_to`): `names` of states and actions,
            `low` and `high` of the box that they stay in, `moved_per_size` how far a perturbation of size 1 moves each,
            `channels` the number of slopes that vary in it. None for a linear plant.
        delay: by how many steps the actions reach the plant late.
        noise: the rows are of every noise whose standard normal numbers are at most this in size, `nominal` is without
            any; None: of the noise of the episodes.
        policy_sha256: of the arrays that run, "" in files of older versions.
    """

    status: str
    norm: str
    gain: float | None
    unclipped_up_to: float | None
    episodes: int
    rows: tuple[ReturnRow, ...]
    task: str
    seed: int
    set_aside: int = 0
    each: tuple[tuple[float, ...], ...] = ()
    reason: str = ""
    sensors: tuple[SensorErrors, ...] = ()
    region: dict[str, Any] | None = None
    delay: int = 0
    noise: float | None = None
    policy_sha256: str = ""

    @property
    def claim(self) -> str:
        """The sentence that holds."""
        if self.status != "PASS":
            nothing = f"Nothing is proven of the return in {self._where}: {self.reason}."
            return f"{nothing} This does not mean that it is bad."
        bounds = [
            f"at least {numbers.lower(row.certified)} where the error is at most {row.size:.6g}"
            for row in self.rows
            if row.certified is not None
        ]
        if self.region is not None:
            return self._in_region(bounds)
        aside = f" Of {self.set_aside} other episode(s) nothing is said." if self.set_aside else ""
        whose = f"each of {self.episodes} episodes of {self._where} (seed {self.seed})"
        if self.noise is not None:
            whose = (
                f"each of {self.episodes} starts of {self._where} (seed {self.seed}) and every noise whose numbers are "
                f"at most {self.noise:.6g} deviation(s) in size at every step"
            )
        return (
            f"For {whose}, whoever adds an error to what "
            "the policy reads and whatever it knows of start and noise, the return is bounded from below, and on "
            f"average it is {', '.join(bounds)} ({_AT_MOST[self.norm]}). {self._clipping()}{aside} The gain "
            f"{numbers.upper(self.gain or 0.0)} behind it is proven with its rounding; the bound of the return and "
            f"what is said of clipping are computed in float64, with {MARGIN:g} added for what that rounds: a margin "
            "and no proof."
        )

    @property
    def _where(self) -> str:
        """The task, and that its actions are late."""
        late = f", whose actions reach the plant {self.delay} step(s) late," if self.delay else ""
        return self.task + late

    def _in_region(self, bounds: list[str]) -> str:
        """Return the sentence of a nonlinear plant."""
        assert self.region is not None
        columns = zip(*(self.region[name] for name in ("names", "low", "high")), strict=True)
        box = ", ".join(f"{low:.4g} <= {name} <= {high:.4g}" for name, low, high in columns)
        without = [f"{row.size:.6g}" for row in self.rows if row.certified is None]
        unknown = f" Where it is at most {', '.join(without)} nothing is proven." if without else ""
        return (
            f"For each of {self.episodes} episodes of {self.task} (seed {self.seed}, from their own starts), whoever "
            "adds an error to what the policy reads and whatever it knows, the return on the nonlinear plant is "
            f"bounded from below, and on average it is {', '.join(bounds)} ({_AT_MOST[self.norm]}).{unknown} An error "
            f"of at most {numbers.lower(self.region['size_up_to'])} cannot lead an episode out of the region {box}, "
            "where no action is clipped and no episode ends. The plant's slopes in the region are bounded by interval "
            "arithmetic; the gain, the region and the bound are computed in float64, with "
            f"{MARGIN:g} added for what that rounds: a margin and no proof."
        )

    def _clipping(self) -> str:
        largest = max((row.size for row in self.rows), default=0.0)
        void = "".join(
            f" Where the error is at most {row.size:.6g} nothing is proven with clipped actions; while none is clipped "
            f"the average of the episodes without a clipped action is at least {numbers.lower(row.unclipped)}, and one "
            "clipped action voids it."
            for row in self.rows
            if row.certified is None and row.unclipped is not None
        )
        included = "Actions are clipped at the task's limits, which the bound includes."
        if self.unclipped_up_to is None:
            return included + void
        if largest <= self.unclipped_up_to:
            return "No action can be clipped at any of these sizes."
        return f"{included} For sizes up to {numbers.lower(self.unclipped_up_to)} none can be clipped.{void}"

    def content(self) -> dict[str, Any]:
        """Return what the file holds."""
        named = {name: value for name, value in asdict(self).items() if name != "rows"}
        return {
            "schema": SCHEMA,
            "status": self.status,
            "claim": self.claim,
            **named,
            # JSON has no infinity.
            "each": [[value if math.isfinite(value) else None for value in values] for values in self.each],
            "rows": [asdict(row) for row in self.rows],
            "versions": versions(),
        }

    def to_json(self, path: str | Path) -> Path:
        """Return `path` after writing the certificate there, whole or not at all."""
        return write_json(path, self.content())

    @classmethod
    def from_json(cls, path: str | Path) -> ReturnCertificate:
        """Return the certificate in a file; raises MissingFileError, CorruptFileError, SchemaError."""
        content = read_json(path, "return certificate", SCHEMA)
        try:
            # Files of older versions lack these.
            fields = {name: content[name] for name in cls.__dataclass_fields__ if name not in _LATER}
            fields |= {"region": content.get("region"), "delay": content.get("delay", 0)}
            fields |= {"noise": content.get("noise"), "policy_sha256": content.get("policy_sha256", "")}
            fields["rows"] = tuple(ReturnRow(**row) for row in content["rows"])
            fields["sensors"] = tuple(SensorErrors(**sensor) for sensor in content.get("sensors", ()))
            fields["each"] = tuple(
                tuple(-math.inf if value is None else value for value in values) for values in content["each"]
            )
        except (KeyError, TypeError) as error:
            raise CorruptFileError(f"{path} lacks or garbles {error}; write it with `certify --return`.") from error
        return cls(**fields)
