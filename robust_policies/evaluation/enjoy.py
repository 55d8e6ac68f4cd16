"""Watching a policy: episodes of a run folder's policy in one environment, in a window or as videos."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium

from robust_policies.envs.batch import make_one
from robust_policies.envs.perturb import parse, perturb
from robust_policies.errors import DeviceError, InvalidValueError, UnknownNameError
from robust_policies.policies import load_policy

MODES = ("human", "video", "none")


def enjoy_run(
    folder: str | Path,
    env_id: str,
    env_kwargs: dict[str, Any],
    render: str,
    episodes: int,
    seed: int,
    perturbations: Any = (),
) -> Iterator[float]:
    """Yield the return of each of `episodes` episodes, deterministic actions; videos go to `folder`/videos.

    The environment is wrapped in `perturbations`, a short list such as [{"ObservationDelay": 2}].

    Raises:
        UnknownNameError: the environment or the way of rendering. DeviceError: no display for a window.
        InvalidValueError: the environment cannot be rendered, or the extra for videos is not installed.
        ShapeError: the policy does not fit the environment.
    """
    if render not in MODES:
        raise UnknownNameError.among("way of rendering", render, MODES)
    folder = Path(folder)
    policy = load_policy(folder)
    env = _make(env_id, env_kwargs, render, folder, parse(perturbations))
    try:
        for episode in range(episodes):
            observation, _ = env.reset(seed=seed + episode)
            state, total, done = None, 0.0, False
            while not done:
                action, state = policy.predict(observation, state=state)
                observation, reward, terminated, truncated, _ = env.step(action)
                total += float(reward)
                done = terminated or truncated
            yield total
    finally:
        env.close()


def _make(env_id: str, env_kwargs: dict[str, Any], render: str, folder: Path, perturbations: Any) -> gymnasium.Env:
    mode = {"human": "human", "video": "rgb_array", "none": None}[render]
    if render == "human":
        _check_display()
    env = perturb(make_one(env_id, {"render_mode": mode, **env_kwargs}), perturbations)
    if render != "video":
        return env
    try:
        videos = folder / "videos"
        shutil.rmtree(videos, ignore_errors=True)
        return gymnasium.wrappers.RecordVideo(env, str(videos), episode_trigger=lambda _: True, disable_logger=True)
    except gymnasium.error.DependencyNotInstalled as error:
        env.close()
        raise InvalidValueError(
            "Videos need moviepy, which is not installed: pip install 'robust-policies[video]'."
        ) from error


def _check_display() -> None:
    import pygame

    try:
        pygame.display.init()
    except pygame.error as error:
        raise DeviceError(f"No window can be opened here ({error}); use --render video or --render none.") from error
