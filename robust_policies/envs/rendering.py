"""Pictures of one environment: drawn by its plant's kind, or as traces of its outputs, states and actions."""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from robust_policies.envs.drawing.scene import Moment, Scene
from robust_policies.envs.drawing.traces import LENGTH
from robust_policies.envs.plant import Plant
from robust_policies.errors import InvalidValueError

DRAWINGS = ("pendulum", "cartpole", "qube", "maglev", "quadrotor_planar", "quadrotor")
"""The kinds of plant that have a picture of their own: a module of that name in `robust_policies.envs.drawing`."""

_LARGEST = 1e12
_MUJOCO, _MUJOCO_PICTURE = "mujoco", "robust_policies.envs.mujoco.picture"


class Renderer:
    """Draws one environment; remembers the last points of an episode for the traces.

    A plant class of a user's own draws itself if it has a method `draw(pygame, state, action, observation)` that
    returns a `pygame.Surface`.
    """

    def __init__(self, plant: Plant, mode: str, rate: int) -> None:
        """Draw `plant` in `mode`, "rgb_array" or "human" (then at most `rate` pictures a second)."""
        self.plant, self.mode, self.rate = plant, mode, rate
        self._moments: deque[Moment] = deque(maxlen=LENGTH)
        self._steps = -1
        self._nominal: dict[str, torch.Tensor] | None = None
        self._window: Any = None
        self._clock: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Windows cannot be copied; a copy opens its own."""
        return {**self.__dict__, "_window": None, "_clock": None}

    def draw(
        self,
        state: np.ndarray,
        action: np.ndarray,
        observation: np.ndarray,
        steps: int,
        params: Mapping[str, torch.Tensor] | None = None,
    ) -> np.ndarray | None:
        """Return the picture as (height, width, 3) uint8, or show it and return None in mode "human".

        Args:
            state: (nx,).
            action: (nu,), in the plant's units.
            observation: (ny,).
            steps: since the episode began; fewer than at the last picture begins the traces anew.
            params: this environment's physical parameters, the task file's if left out.

        Raises:
            InvalidValueError: pygame is not installed.
        """
        pygame = _pygame()
        if steps < self._steps or steps == 0:
            self._moments.clear()
        elif steps == self._steps and self._moments:
            self._moments.pop()
        self._steps = steps
        self._moments.append(Moment(*(_finite(values) for values in (observation, state, action))))
        own = getattr(self.plant, "draw", None)
        if own is not None:
            return self._show(pygame, own(pygame, state, action, observation))
        if self.plant.kind == _MUJOCO:
            drawn = (torch.from_numpy(_finite(values)) for values in (state, action))
            pixels = importlib.import_module(_MUJOCO_PICTURE).picture(self.plant, *drawn)
            return self._show(pygame, pygame.surfarray.make_surface(pixels.swapaxes(0, 1)))
        name = self.plant.kind if self.plant.kind in DRAWINGS else "traces"
        drawing = importlib.import_module(f"robust_policies.envs.drawing.{name}")
        return self._show(pygame, drawing.draw(pygame, Scene(self.plant, self._numbers(params), list(self._moments))))

    def _numbers(self, params: Mapping[str, torch.Tensor] | None) -> dict[str, float]:
        """Return the physical parameters that are single numbers."""
        if params is None:
            if self._nominal is None:
                self._nominal = self.plant.nominal()
            params = self._nominal
        return {name: float(value) for name, value in params.items() if value.numel() == 1}

    def _show(self, pygame: Any, surface: Any) -> np.ndarray | None:
        if self.mode == "rgb_array":
            return np.ascontiguousarray(pygame.surfarray.array3d(surface).swapaxes(0, 1))
        if self._window is None or self._window.get_size() != surface.get_size():
            pygame.display.init()
            self._window = pygame.display.set_mode(surface.get_size())
            pygame.display.set_caption(f"robust-policies: {self.plant.kind}")
            self._clock = pygame.time.Clock()
        self._window.blit(surface, (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self.rate)
        return None

    def close(self) -> None:
        """Close the window, if one is open, and MuJoCo's renderer, if it drew."""
        if self.plant.kind == _MUJOCO and self._moments:
            importlib.import_module(_MUJOCO_PICTURE).close(self.plant)
            self._moments.clear()
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = None


def _finite(values: np.ndarray) -> np.ndarray:
    """Return a copy, as the array may be a view of the environment's buffers, in which everything can be drawn."""
    return np.nan_to_num(values, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST).clip(-_LARGEST, _LARGEST)


def _pygame() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "hide")
    try:
        import pygame
    except ImportError as error:
        raise InvalidValueError("Rendering needs pygame; install it with: pip install pygame-ce.") from error
    return pygame
