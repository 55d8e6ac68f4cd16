"""A training in small before the training: whatever can refuse at its end is asked before its first step."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robust_policies.errors import DiskError, DivergedError, NotCertifiableError, NotEnoughMemoryError
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.policies import load_policy
from robust_policies.train import Recipe, train
from robust_policies.train.apg.certified import UnprovenStartError
from robust_policies.train.run.guard import LinAlgError

# Enough to see that observations, actions and attacks fit; a whole episode may take long.
_STEPS = 20
_NEVER = 2**62
# What a training of another size would say otherwise: the training itself does. Linear algebra fails where one update
# has let the weights grow without limit, which the training calls a divergence; one round of imitation
# rarely proves a loop.
_NOT_ASKED = (UnprovenStartError, DivergedError, NotEnoughMemoryError, DiskError, LinAlgError, np.linalg.LinAlgError)


def rehearse(recipe: Recipe, device: str = "cpu", *, teacher: Any = None, evaluate: bool = True) -> None:
    """Make one update of a recipe in a scratch folder, save, load, certify and evaluate its policy, and forget it.

    The random generators are as before afterwards, and no object is shared with a training.

    Args:
        recipe: what is going to be trained.
        device: where.
        teacher: of imitation, as of `train`.
        evaluate: play a few steps of an episode of every task of the evaluation too.

    Raises:
        UserError: what the training, or one of the commands after it, would refuse.
    """
    with (
        _same_random_numbers(),
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        suppress(*_NOT_ASKED),
    ):
        # What is worth a warning is said by the training.
        warnings.simplefilter("ignore")
        folder = Path(scratch) / "run"
        train(in_small(recipe), folder, device=device, teacher=teacher)
        policy = load_policy(folder)
        with suppress(NotCertifiableError):
            policy.certificate()
        if not evaluate:
            return
        section, task = recipe.evaluation, recipe.task
        wrappers = task.perturbations if section.perturbations is None else section.perturbations
        for name in section.tasks or [task.id]:
            options = task.kwargs if name == task.id else {}
            run_episodes(
                policy, name, "uniform", [0.0], 1, 0, env_kwargs=options, perturbations=wrappers, max_steps=_STEPS
            )


def in_small(recipe: Recipe) -> Recipe:
    """Return a recipe of a single update with the same task, policy and algorithm."""
    algorithm, envs = recipe.algorithm, min(recipe.task.num_envs, 2)
    often = {
        "every": _NEVER,
        "evaluate_every": _NEVER,
        "evaluate_episodes": 1,
        "certify_every": min(recipe.checkpoints.certify_every, 1),
        "stop_at_reward": None,
        "policies": False,
    }
    return recipe.model_copy(
        update={
            "task": recipe.task.model_copy(update={"num_envs": envs}),
            "algorithm": algorithm.model_copy(update=algorithm.in_small(envs)),
            "checkpoints": recipe.checkpoints.model_copy(update=often),
            "target": None,
        }
    )


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Leave Python's, NumPy's and PyTorch's random generators as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
