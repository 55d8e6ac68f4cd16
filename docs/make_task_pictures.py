"""Write docs/images/tasks.png: a picture of every registered task after a few seeded steps, with its name.

Run it from anywhere: python docs/make_task_pictures.py [--output FILE]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "hide")

import gymnasium
import numpy as np
import pygame

from robust_policies.envs import ENV_IDS
from robust_policies.envs.rendering import DRAWINGS

COLUMNS, SIDE, CAPTION, GAP = 5, 300, 28, 12
STEPS, STEPS_OF_TRACES, SEED = 12, 150, 7
GROUND, INK = (255, 255, 255), (52, 58, 64)


def picture_of(env_id: str) -> np.ndarray:
    """Return the task's picture (height, width, 3) after some seeded random steps, more where it is traces."""
    env = gymnasium.make(env_id, render_mode="rgb_array")
    try:
        env.action_space.seed(SEED)
        env.reset(seed=SEED)
        picture = env.render()
        traced = env.get_wrapper_attr("plant").kind not in (*DRAWINGS, "mujoco")
        for _ in range(STEPS_OF_TRACES if traced else STEPS):
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            picture = env.render()
            if terminated or truncated:
                break
    finally:
        env.close()
    return np.asarray(picture)


def sheet(pictures: dict[str, np.ndarray]) -> pygame.Surface:
    """Return the pictures in rows of `COLUMNS`, each above its name."""
    pygame.font.init()
    font = pygame.font.Font(None, 21)
    rows = -(-len(pictures) // COLUMNS)
    surface = pygame.Surface((COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + CAPTION + GAP) + GAP))
    surface.fill(GROUND)
    for index, (name, picture) in enumerate(pictures.items()):
        row, column = divmod(index, COLUMNS)
        left, top = GAP + column * (SIDE + GAP), GAP + row * (SIDE + CAPTION + GAP)
        height, width = picture.shape[:2]
        fitted = (SIDE * width // max(width, height), SIDE * height // max(width, height))
        drawn = pygame.transform.smoothscale(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), fitted)
        surface.blit(drawn, (left + (SIDE - fitted[0]) // 2, top + (SIDE - fitted[1]) // 2))
        caption = font.render(name, True, INK)
        surface.blit(caption, (left + (SIDE - caption.get_width()) // 2, top + SIDE + 7))
    return surface


def main() -> None:
    """Draw all tasks and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images" / "tasks.png")
    output = parser.parse_args().output
    pictures = {env_id.split("/")[1]: picture_of(env_id) for env_id in ENV_IDS}
    pygame.image.save(sheet(pictures), str(output))
    print(f"{output}: {len(pictures)} tasks")


if __name__ == "__main__":
    main()
