"""What an evaluation runs: perturbations, sizes, episodes and the attack's budget, by name."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from robust_policies.errors import UnknownNameError
from robust_policies.evaluation.perturbations import PERTURBATIONS


class Suite(BaseModel):
    """One evaluation protocol; sizes are in the observation's own units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    perturbations: tuple[str, ...] = (*PERTURBATIONS, "pgd")
    sizes: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3)
    episodes: int = 50
    seeds: tuple[int, ...] = (0,)
    gradient_steps: int = 15
    window: int = 40
    gain_steps: int = 50

    def attack_options(self) -> dict[str, int]:
        """Return the attack's settings."""
        return {"steps": self.gradient_steps, "window": self.window, "replan": self.window, "restarts": 1}


SUITES: dict[str, Suite] = {
    "quick": Suite(),
    "standard": Suite(
        sizes=(0.0, 0.03, 0.06, 0.11, 0.15, 0.21, 0.3), seeds=(0, 1, 2), gradient_steps=20, window=50,
    ),
}  # fmt: skip
SUITES["default"] = SUITES["quick"]


def suite_named(name: str) -> Suite:
    """Return the suite `name`; raises UnknownNameError."""
    if name not in SUITES:
        raise UnknownNameError.among("suite", name, SUITES)
    return SUITES[name]
