"""What a teacher of adversarial imitation did: episodes that are played for it, or a Minari data set on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_policies.errors import InvalidValueError, ShapeError, UserError
from robust_policies.train.imitation.rollout import Stage
from robust_policies.train.imitation.teacher import teacher_of
from robust_policies.train.recipe.gail import GailSection
from robust_policies.train.recipe.recipe import Recipe


class Shown(NamedTuple):
    """Steps of a teacher, on the CPU."""

    observations: Tensor
    """(N, nu), float32."""
    actions: Tensor
    """(N, na), float32, within their limits."""
    episodes: int
    """How many they are from."""
    mean_return: float
    """Of these episodes, of the task's own reward."""


def shown(recipe: Recipe[GailSection], stage: Stage, seed: int, given: Any, device: str) -> Shown:
    """Return what the recipe's teacher did.

    Args:
        recipe: names teacher, episodes and steps.
        stage: `demonstrations` environments of the task, in which it plays; for a data set, what it has to fit.
        seed: of the environments.
        given: the teacher where the recipe's is "given".
        device: where it plays.

    Raises:
        UserError: there is no such teacher or data set, it does not fit the task, or there is no time limit.
    """
    settings = recipe.algorithm
    data = Path(settings.teacher) / "data"
    if given is None and (data / "main_data.hdf5").is_file():
        return read_minari(data / "main_data.hdf5", stage, settings)
    if given is None and (data / "metadata.json").is_file():
        raise InvalidValueError(
            f"algorithm.teacher is {settings.teacher!r}, a Minari data set without data/main_data.hdf5; expected its "
            "HDF5: collect it with data_format='hdf5'."
        )
    horizon = settings.horizon or stage.limit
    if horizon is None:
        raise InvalidValueError("algorithm.horizon is null and the task has no time limit; expected a number.")
    teacher = teacher_of(settings.teacher, given, stage.env, device)
    played = stage.play(seed, horizon, teacher)
    observations, actions = played.demonstrations.observations, played.actions
    _check_finite(settings.teacher, observations, actions)
    return Shown(
        observations.flatten(0, 1).cpu(), actions.flatten(0, 1).cpu(), stage.count, float(played.returns.mean())
    )


def read_minari(path: Path, stage: Stage, settings: GailSection) -> Shown:
    """Return the first episodes of a Minari data set: HDF5, groups episode_K with observations, actions, rewards.

    Raises:
        InvalidValueError: h5py is not installed, or the file is none of those.
        ShapeError: an episode does not fit the task.
    """
    try:
        import h5py
    except ImportError as error:
        raise InvalidValueError(
            f"{path} is a Minari data set, which needs h5py, and that is not installed: pip install "
            "'robust-policies[minari]'."
        ) from error
    observations: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    returns: list[float] = []
    sizes = (stage.observation_size, stage.action_size)
    try:
        with h5py.File(path, "r") as file:
            names = sorted(
                (name for name in map(str, file) if name.startswith("episode_")), key=lambda name: int(name[8:])
            )
            for name in names[: settings.demonstrations]:
                episode: Any = file[name]
                parts = [episode[part] for part in ("observations", "actions", "rewards")]
                if any(isinstance(part, h5py.Group) for part in parts):
                    raise ShapeError(f"{path}: {name} has observations or actions of several parts; expected vectors.")
                seen, done, rewards = (np.asarray(part, dtype=np.float64) for part in parts)
                if seen.shape[1:] != sizes[:1] or done.shape[1:] != sizes[1:] or len(seen) != len(done) + 1:
                    raise ShapeError(
                        f"{path}: {name} has observations {seen.shape} and actions {done.shape}; the task has "
                        f"observations ({len(done)} + 1, {sizes[0]}) and actions ({len(done)}, {sizes[1]})."
                    )
                steps = settings.horizon or len(done)
                # The last observation is the one after the last action.
                observations.append(seen[:-1][:steps])
                actions.append(done[:steps])
                returns.append(float(rewards[:steps].sum()))
    except UserError:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise InvalidValueError(f"{path} is no Minari data set that can be read: {_line(error)}.") from error
    if not observations:
        raise InvalidValueError(f"{path} holds no episodes; expected groups episode_0, episode_1, ...")
    seen, done = (torch.as_tensor(np.concatenate(values), dtype=torch.float32) for values in (observations, actions))
    _check_finite(str(path), seen, done)
    low, high = stage.low.cpu(), stage.high.cpu()
    return Shown(seen, done.clamp(low, high), len(returns), float(np.mean(returns)))


def _check_finite(what: str, observations: Tensor, actions: Tensor) -> None:
    for name, values in (("observations", observations), ("actions", actions)):
        if not bool(torch.isfinite(values).all()):
            raise InvalidValueError(f"The demonstrations of {what} have {name} that are NaN or infinite.")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
