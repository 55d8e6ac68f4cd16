"""Whether training reached what its recipe expects of it."""

from __future__ import annotations

from dataclasses import dataclass

from robust_policies.train.recipe.sections import TargetSection
from robust_policies.train.run.checkpoints import Progress


@dataclass(frozen=True)
class Outcome:
    """A recipe's target, and what the evaluations while training say of it.

    Attributes:
        expected: the mean return to reach.
        within: environment steps within which it is to be reached.
        best: highest mean return of the evaluations within those steps; None if there was none.
        best_steps: environment steps of that evaluation.
        reached_steps: environment steps of the first evaluation that reached it in time; None if none did.
        reached_cpu_seconds: CPU time of training until then, earlier evaluations included.
    """

    expected: float
    within: int
    best: float | None = None
    best_steps: int | None = None
    reached_steps: int | None = None
    reached_cpu_seconds: float | None = None

    @property
    def reached(self) -> bool:
        """Whether an evaluation reached the return in time."""
        return self.reached_steps is not None

    @property
    def text(self) -> str:
        """One line for a person."""
        asked = f"Target: mean return {self.expected:g} within {self.within} steps: "
        best = "no evaluation within them" if self.best is None else f"best {self.best:.1f} at {self.best_steps}"
        if self.reached:
            return f"{asked}reached at {self.reached_steps} ({best})."
        return f"{asked}NOT reached ({best})."


def outcome(target: TargetSection | None, progress: Progress) -> Outcome | None:
    """Return what came of a recipe's target after the evaluations that `progress` lists; None without a target."""
    if target is None:
        return None
    in_time = [entry for entry in progress.evaluations if entry[0] <= target.steps]
    best = max(in_time, key=lambda entry: entry[2], default=None)
    first = next((entry for entry in in_time if entry[2] >= target.return_), None)
    return Outcome(
        expected=target.return_,
        within=target.steps,
        best=best and best[2],
        best_steps=best and best[0],
        reached_steps=first and first[0],
        reached_cpu_seconds=first and first[1],
    )
