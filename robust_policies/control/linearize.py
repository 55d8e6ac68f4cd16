"""Linear models of plants about an equilibrium: of a task's own step, and of a MuJoCo model."""

from __future__ import annotations

from robust_policies.control.linear_model import LinearModel

__all__ = ["LinearModel"]
