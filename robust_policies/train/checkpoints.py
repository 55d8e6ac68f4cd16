"""Checkpoints: everything a run needs to go on after it was stopped or killed, whole or not there.

One folder each, `checkpoints/step_000012800/`:
    model.zip          weights and optimizer, Stable-Baselines3's format
    best.safetensors   weights of the best policy so far, if one was evaluated
    state.json         counters, reward normalisation, random generators
Reading one back takes the tensors of the zip alone, never its pickled part.
"""

from __future__ import annotations

import pickle
import random
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from robust_policies.certificates.files import read_json, write_json
from robust_policies.errors import CorruptFileError
from robust_policies.train.folder import atomic_folder, missing_checkpoint_part
from robust_policies.train.tensor_ppo import TensorRecurrentPPO

CHECKPOINT_SCHEMA = 1
KEPT = 2


@dataclass
class Progress:
    """Where a run stands between two updates.

    `evaluations` lists all so far: environment steps, CPU seconds of training (earlier evaluations included), and mean
    return of each.
    """

    num_timesteps: int = 0
    n_updates: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    last_evaluation: int = 0
    best_reward: float | None = None
    best_timesteps: int | None = None
    evaluations: list[tuple[int, float, float]] = field(default_factory=list)

    def evaluated(self, mean: float) -> bool:
        """Note the mean return of an evaluation made now; return whether it is the best so far."""
        self.last_evaluation = self.num_timesteps
        self.evaluations.append((self.num_timesteps, round(self.cpu_seconds, 2), mean))
        if self.best_reward is not None and mean <= self.best_reward:
            return False
        self.best_reward, self.best_timesteps = mean, self.num_timesteps
        return True


def random_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and PyTorch's global generators, as JSON data."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, next_gauss = random.getstate()
    return {
        "python": [version, list(internal), next_gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [state.cpu().numpy().tobytes().hex() for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the global generators to a state from `random_state`."""

    def tensor(text: str) -> torch.Tensor:
        return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal), next_gauss))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(tensor(state["torch"]))
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([tensor(text) for text in state["cuda"]])


def normalizer_state(env: VecNormalize | None) -> dict[str, float] | None:
    """Return the running statistics of the return that rewards are divided by."""
    if env is None:
        return None
    return {"mean": float(env.ret_rms.mean), "var": float(env.ret_rms.var), "count": float(env.ret_rms.count)}


def restore_normalizer(env: VecNormalize | None, state: dict[str, float] | None) -> None:
    """Set the statistics of `env` to a state from `normalizer_state`."""
    if env is not None and state is not None:
        env.ret_rms.mean, env.ret_rms.var = np.array(state["mean"]), np.array(state["var"])
        env.ret_rms.count = state["count"]


def weights(model: OnPolicyAlgorithm) -> dict[str, torch.Tensor]:
    """Return a copy of the policy's state dict on the CPU."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.policy.state_dict().items()}


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the complete checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def write_checkpoint(
    folder: Path,
    model: OnPolicyAlgorithm,
    progress: Progress,
    best: dict[str, torch.Tensor] | None,
    snapshot: dict[str, Any],
) -> Path:
    """Return the new checkpoint's folder; older ones than the last two are deleted.

    Args:
        folder: `checkpoints/` of the run.
        model: its weights and optimizer are those between two updates.
        progress: counters that belong to these weights.
        best: weights of the best policy so far.
        snapshot: random generators and reward normalisation at the same moment.
    """
    target = folder / f"step_{progress.num_timesteps:012d}"
    with atomic_folder(target) as temporary:
        model.save(temporary / "model.zip")
        if best is not None:
            save_file(best, temporary / "best.safetensors")
        write_json(temporary / "state.json", {"schema": CHECKPOINT_SCHEMA, "progress": vars(progress), **snapshot})
    for old in checkpoints_in(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def read_checkpoint(
    folder: Path, model: OnPolicyAlgorithm, normalizer: VecNormalize | None
) -> tuple[Progress, dict[str, torch.Tensor] | None] | None:
    """Put the newest checkpoint in `folder` into `model` and return its progress and best weights; None without one."""
    found = checkpoints_in(folder)
    if not found:
        return None
    newest = found[-1]
    zipped, best_file = newest / "model.zip", newest / "best.safetensors"
    if not zipped.is_file() or not (newest / "state.json").is_file():
        raise missing_checkpoint_part(newest)
    state = read_json(newest / "state.json", "checkpoint", CHECKPOINT_SCHEMA)
    try:
        model.set_parameters(str(zipped), device=model.device)
        best = load_file(best_file) if best_file.is_file() else None
        progress = Progress(**state["progress"])
        restore_normalizer(normalizer, state["normalizer"])
        if isinstance(model, TensorRecurrentPPO):
            model.load_normalization_state(state.get("on_device", {}))
        restore_random_state(state["random"])
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        SafetensorError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        raise CorruptFileError(
            f"Checkpoint {str(newest)!r} cannot be read ({type(error).__name__}); delete it to resume from an "
            "earlier one."
        ) from error
    model.num_timesteps, model._n_updates = progress.num_timesteps, progress.n_updates
    return progress, best
