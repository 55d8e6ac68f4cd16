"""Checkpoints: everything a run needs to go on after it was stopped or killed, whole or not there, without pickle.

One folder each, `checkpoints/step_000012800/`:
    training.safetensors   weights, optimizer, environments: all that decides what comes next
    best.safetensors       weights of the best policy so far, if one was evaluated
    state.json             counters, random generators
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from robust_policies.errors import CorruptFileError, SchemaError
from robust_policies.files.atomic import atomic_folder, read_json, write_json
from robust_policies.files.tensors import packed, read_tensors, unpacked, write_tensors
from robust_policies.train.recipe.sections import CheckpointSection
from robust_policies.train.run.ranks import Ranks

CHECKPOINT_SCHEMA = 2
KEPT = 2
Best = dict[str, Tensor] | None


@dataclass
class Progress:
    """Where a run stands between two updates.

    `evaluations` lists all so far: environment steps, CPU seconds of training (earlier evaluations included), and mean
    return of each. `best_rank` is what the best of them was chosen by where that is not the mean return.
    """

    num_timesteps: int = 0
    n_updates: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    last_evaluation: int = 0
    best_reward: float | None = None
    best_timesteps: int | None = None
    best_rank: float | None = None
    evaluations: list[tuple[int, float, float]] = field(default_factory=list)

    def evaluated(self, mean: float, rank: float | None) -> bool:
        """Note an evaluation made now; return whether it is the best so far by `rank`; one without a rank never is."""
        self.last_evaluation = self.num_timesteps
        self.evaluations.append((self.num_timesteps, round(self.cpu_seconds, 2), mean))
        # Checkpoints of trainings whose rank is the mean return have no other.
        best = self.best_reward if self.best_rank is None else self.best_rank
        if rank is None or (best is not None and rank <= best):
            return False
        self.best_reward, self.best_timesteps = mean, self.num_timesteps
        self.best_rank = None if rank == mean else rank
        return True


def reached(section: CheckpointSection, progress: Progress) -> bool:
    """Return whether an evaluation has reached the return at which the recipe stops."""
    best, wanted = progress.best_reward, section.stop_at_reward
    return wanted is not None and best is not None and best >= wanted


def last_checkpoint(folder: Path) -> str:
    """Return a sentence about the newest checkpoint in `folder`."""
    found = checkpoints_in(folder)
    return f"The last checkpoint, {str(found[-1])!r}, is from before that." if found else "There is no checkpoint yet."


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state dict on the CPU."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the complete checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def write_state(
    folder: Path, progress: Progress, tensors: Mapping[str, Tensor], best: Best, facts: Mapping[str, Any]
) -> Path:
    """Return the new checkpoint's folder in `folder`; older ones than the last two are deleted.

    Args:
        folder: `checkpoints/` of the run.
        progress: the counters.
        tensors: all that decides what comes next, of any shape.
        best: weights of the best policy so far.
        facts: JSON data of the same moment.
    """
    target = folder / f"step_{progress.num_timesteps:012d}"
    with atomic_folder(target) as temporary:
        write_tensors(temporary / "training.safetensors", tensors)
        if best is not None:
            write_tensors(temporary / "best.safetensors", best)
        write_json(temporary / "state.json", {"schema": CHECKPOINT_SCHEMA, "progress": vars(progress), **facts})
    for old in checkpoints_in(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint that has been read."""

    path: Path
    progress: Progress
    tensors: dict[str, Tensor]
    best: Best
    facts: dict[str, Any]

    def damaged(self, error: Exception) -> CorruptFileError:
        """Return the error for content that does not fit what is to be continued."""
        return _damaged(self.path, error)


def newest_state(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint in `folder`, None without one; raise `CorruptFileError` if it cannot be read."""
    found = checkpoints_in(folder)
    if not found:
        return None
    newest = found[-1]
    best = newest / "best.safetensors"
    if not (newest / "state.json").is_file():
        raise missing_checkpoint_part(newest)
    facts = read_json(newest / "state.json", "checkpoint", CHECKPOINT_SCHEMA)
    if facts["schema"] < CHECKPOINT_SCHEMA:
        raise SchemaError(
            f"Checkpoint {str(newest)!r} has schema {facts['schema']} and this version continues from "
            f"{CHECKPOINT_SCHEMA}; finish the run with the version that began it, or train into another folder."
        )
    if not (newest / "training.safetensors").is_file():
        raise missing_checkpoint_part(newest)
    try:
        progress = Progress(**facts.pop("progress"))
        tensors = read_tensors(newest / "training.safetensors")
        return Checkpoint(newest, progress, tensors, read_tensors(best) if best.is_file() else None, facts)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(newest, error) from error


def told_to_all(ranks: Ranks, found: Checkpoint | None) -> Checkpoint | None:
    """Return rank 0's checkpoint, there with the best weights; the others need not reach its file."""
    if ranks.alone:
        return found
    said = ranks.told(found and {"path": str(found.path), "progress": vars(found.progress), "facts": found.facts})
    if said is None:
        return None
    tensors = unpacked(ranks.told_bytes(packed(found.tensors) if found else b""))
    return found or Checkpoint(Path(said["path"]), Progress(**said["progress"]), tensors, None, said["facts"])


def _damaged(path: Path, error: Exception) -> CorruptFileError:
    return CorruptFileError(
        f"Checkpoint {str(path)!r} cannot be read ({type(error).__name__}); delete it to resume from an earlier one."
    )


def missing_checkpoint_part(path: Path) -> CorruptFileError:
    """Return the error for a checkpoint that lacks a file."""
    return CorruptFileError(f"Checkpoint {str(path)!r} is incomplete; delete it to resume from an earlier one.")
