"""How long the episodes of many environments have run, and when a time limit may end one."""

from __future__ import annotations

from typing import Any

import torch

from robust_policies import checks
from robust_policies.errors import InvalidValueError


class Clock:
    """The steps since each episode began, and for how many more no time limit can be reached.

    The latter is known without a look at the device, so that steps in which surely no episode ends need none. Where
    `foresees`, the device is not even asked when one may have ended: the steps of all time limits are known from the
    last look on. Where `alike` is set every step counts as one in which a limit may be reached, so that all steps do
    the same, which is what a recorded step needs.

    Attributes:
        elapsed: (num_envs,) int64, steps since each episode began.
        limit: steps of an episode, at most.
    """

    def __init__(self, num_envs: int, limit: int, device: torch.device, foresees: bool) -> None:
        self.limit, self.foresees = limit, foresees
        self.elapsed = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._surely_running = 0
        # The distinct numbers of steps, from the last look at the device, after which time limits are reached.
        self._limits_after: list[int] = []
        self._alike = False

    @property
    def alike(self) -> bool:
        """Whether every step is one in which a limit may be reached; assignable."""
        return self._alike

    @alike.setter
    def alike(self, value: bool) -> None:
        if value != self._alike:
            self._alike = value
            self.look()

    @property
    def surely_running(self) -> bool:
        """Whether no limit can be reached in the step just counted."""
        return self._surely_running > 0

    def set(self, value: Any) -> None:
        """Take over the steps (num_envs,) since each episode began; raises `ShapeError` or `InvalidValueError`."""
        steps = torch.as_tensor(value, dtype=torch.int64, device=self.elapsed.device)
        checks.shape("elapsed", steps, tuple(self.elapsed.shape))
        if bool(((steps < 0) | (steps >= self.limit)).any()):
            raise InvalidValueError(
                f"elapsed goes from {int(steps.min())} to {int(steps.max())}; expected 0 to {self.limit - 1}, below "
                "the time limit."
            )
        self.elapsed.copy_(steps)
        self.look()

    def count(self) -> None:
        """Count a step of every environment."""
        self.elapsed += 1
        self.pass_one()

    def pass_one(self) -> None:
        """Take note of a step that somebody else has written into `elapsed`."""
        if not self._alike:
            self._surely_running -= 1

    def over(self) -> torch.Tensor:
        """Return which episodes (num_envs,) bool have reached the limit."""
        return self.elapsed >= self.limit

    def begun(self) -> None:
        """Take note that all episodes have just begun, as `elapsed` says."""
        self._expect([0])

    def look(self) -> None:
        """Ask the device, if need be, how long the episodes have run."""
        if self._alike:
            self._surely_running, self._limits_after = 0, []
        elif self.foresees:
            self._expect(self.elapsed.unique().tolist())
        else:
            self._expect([int(self.elapsed.max())])

    def passed(self) -> None:
        """Take note that the episodes which had reached the limit, wherever they are, have begun anew."""
        if self._alike:
            return
        passed, *others = self._limits_after
        self._limits_after = [after - passed for after in others] + [self.limit]
        self._surely_running = self._limits_after[0]

    def _expect(self, ages: list[int]) -> None:
        if self._alike:
            return
        if self.foresees:
            self._limits_after = [self.limit - age for age in reversed(ages)]
        self._surely_running = self.limit - ages[-1]
