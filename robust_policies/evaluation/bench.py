"""One policy in one task: episodes of all seeds under a perturbation, as measurements with one entry an episode."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from robust_policies.envs.batch import ours
from robust_policies.envs.known import seeds_of
from robust_policies.envs.perturb import Spec
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.evaluation.rollout import Episodes
from robust_policies.evaluation.suite import Suite
from robust_policies.policies.deployed import DeployedPolicy

# Side by side more is faster until memory and cache are full; another package's environments are objects each.
_WIDEST, _MOST_OBJECTS = 4096, 1024
Part = dict[int, Episodes]
"""Episodes by seed."""


@dataclass(frozen=True)
class Bench:
    """What stays the same while a policy is measured in a task.

    Attributes:
        policy: the policy.
        task: Gymnasium id.
        env_kwargs: options of the environment.
        around: wrappers around the task, the first nearest to the plant.
        suite: the protocol.
        known: unperturbed episodes, for attacks.
        noises: what `noise` has played.
    """

    policy: DeployedPolicy
    task: str
    env_kwargs: Mapping[str, Any]
    around: Sequence[Spec]
    suite: Suite
    known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    noises: dict[str, tuple[Part, int]] = field(default_factory=dict, repr=False, compare=False)

    def fits(self, count: int) -> bool:
        """Return whether so many environments of the task may be side by side."""
        return count <= (_WIDEST if ours(self.task) else _MOST_OBJECTS)

    def noise(self, name: str) -> tuple[Part, int]:
        """Return the reported episodes under a noise, and at which index those of the suite's first size are.

        All noises of the suite are played side by side when the first is asked for.
        """
        suite, sizes = self.suite, self.suite.sizes
        if name not in self.noises:
            names = suite.noise if name in suite.noise else (name,)
            if not self.fits(len(names) * len(sizes) * len(suite.seeds) * suite.episodes):
                names = (name,)
            part, _ = self.play([one for one in names for _ in sizes], list(sizes) * len(names))
            self.noises.update({one: (part, i * len(sizes)) for i, one in enumerate(names)})
        return self.noises[name]

    def play(
        self,
        kind: str | Sequence[str],
        sizes: Sequence[float],
        *,
        tuning: bool = False,
        inside: Sequence[Spec] = (),
        record: int = 0,
        **options: Any,
    ) -> tuple[Part, Part]:
        """Return the reported episodes and, if asked for, the tuning episodes, by seed.

        They run side by side; neither has an influence on the other.

        Args:
            kind: a noise, or one for each size, or an attack.
            sizes: of the perturbation.
            tuning: play the tuning episodes too.
            inside: wrappers nearer to the plant than those around the task.
            record: of how many first episodes of the first seed trajectories are kept.
            options: passed on to `run_episodes`.
        """
        suite = self.suite
        blocks = [(seed, suite.episodes, False) for seed in suite.seeds]
        blocks += [(seed, suite.tuning.episodes, True) for seed in suite.tuning.seeds] if tuning else []
        together = self.fits(len(sizes) * sum(count for _, count, _ in blocks))
        reported, tuned = {}, {}
        for group in [blocks] if together else [[block] for block in blocks]:
            found = run_episodes(
                self.policy,
                self.task,
                kind,
                list(sizes),
                sum(count for _, count, _ in group),
                group[0][0],
                env_kwargs=self.env_kwargs,
                perturbations=[*inside, *self.around],
                record=record if group[0] == blocks[0] else 0,
                known=self.known,
                draws=None if ours(self.task) else [(seed, count) for seed, count, _ in group],
                episode_seeds=[s for seed, count, _ in group for s in seeds_of(seed, count)],
                **options,
            )
            first = 0
            for seed, count, is_tuning in group:
                part = _columns(found, slice(first, first + count))
                (tuned if is_tuning else reported)[seed] = part
                first += count
        return reported, tuned


def _columns(found: Episodes, columns: slice) -> Episodes:
    names = ("returns", "lengths", "deviations", "gains", "failed")
    monitored = {name: values[:, columns] for name, values in found.monitored.items()}
    return replace(found, **{name: getattr(found, name)[:, columns] for name in names}, monitored=monitored)


def measurement(part: Part, index: int, **labels: Any) -> dict[str, Any]:
    """Return what was measured at the size number `index`: `labels` beside lists by seed, None where not finite."""
    return {
        **labels,
        "episodes": {
            str(seed): {
                "returns": _plain(found.returns[index]),
                "lengths": [int(length) for length in found.lengths[index]],
                "deviations": _plain(found.deviations[index]),
                "gains": _plain(found.gains[index]),
                **{name: [int(count) for count in values[index]] for name, values in found.monitored.items()},
            }
            for seed, found in part.items()
        },
    }


def pooled_mean(part: Part, index: int) -> float:
    """Return the mean return over all seeds' episodes at a size; NaN if one of them failed."""
    return float(np.concatenate([found.returns[index] for found in part.values()]).mean())


def recording(part: Part, index: int) -> str:
    """Return the trajectories kept at a size, (time, episodes, n) each, as a compressed npz in base64."""
    kept = next(iter(part.values())).recorded
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **{name: value[:, index] for name, value in kept.items()})
    return base64.b64encode(file.getvalue()).decode()


def read_recording(text: str) -> dict[str, np.ndarray]:
    """Return the arrays that `recording` packed."""
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def finite(value: float) -> float | None:
    """Return a number as JSON has it: None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def _plain(values: np.ndarray) -> list[float | None]:
    return [finite(value) for value in values]
