"""NaN and infinity while training: which quantity held them first, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from robust_policies.errors import DivergedError

# PyTorch documents it under this name, and exports it from a private module.
LinAlgError: type[Exception] = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]
"""What PyTorch's linear algebra raises where it cannot compute."""

THEIRS = "the environment's "
"""How a quantity is called that an environment made, from actions that were finite."""
_MADE_THERE = ("observation", "reward")


def diverged(what: str, update: int, steps: int) -> DivergedError:
    """Return the error for `what` ("an action in step 3 ... was nan"), found in an update (from 1) after `steps`.

    What begins with `THEIRS` is no divergence, and no setting of the training helps against it.
    """
    if what.startswith(THEIRS):
        return DivergedError(
            f"Training ended in update {update}, after {steps} steps: {what}, and nothing that the policy did before "
            "was NaN or infinite. Look for it in the environment's own step and reset."
        )
    return DivergedError(
        f"Training diverged in update {update}, after {steps} steps: {what}. Lower algorithm.learning_rate or "
        "algorithm.max_grad_norm."
    )


def in_rollout(**quantities: Any) -> str | None:
    """Return which of the quantities of a rollout, (time, env, ...) tensors or arrays, was not finite first, or None.

    They are given by name in the order in which one follows from the other within a step, so observations and rewards
    that are first come from finite actions and are called the environment's. Where all is finite the device is asked
    once.
    """
    found = {name: torch.as_tensor(value) for name, value in quantities.items()}
    found = {name: value for name, value in found.items() if value.is_floating_point() and value.numel()}
    # Of NaN both are NaN; neither needs memory for an answer about each number.
    ends = [end.double() for value in found.values() for end in torch.aminmax(value)]
    if not ends or bool(torch.isfinite(torch.stack(ends)).all()):
        return None
    bad: list[tuple[int, int, str, float]] = []
    for rank, (name, value) in enumerate(found.items()):
        steps = (~torch.isfinite(value)).flatten(1).any(1)
        if bool(steps.any()):
            step = int(steps.int().argmax())
            row = value[step].flatten()
            bad.append((step, rank, name, float(row[~torch.isfinite(row)][0])))
    if not bad:
        return None
    step, _, name, number = min(bad)
    return f"{THEIRS if name in _MADE_THERE else 'the '}{name} in step {step + 1} of the rollout was {number}"


def in_buffer(buffer: Any) -> str | None:
    """Return what was not finite first in a rollout buffer, tensors or arrays (time, env, ...); None if all is."""
    seen = buffer.observations
    if isinstance(seen, Mapping):
        entries = {f"observation {name!r}": value for name, value in seen.items()}
        return in_rollout(**entries, action=buffer.actions, reward=buffer.rewards)
    return in_rollout(observation=seen, action=buffer.actions, reward=buffer.rewards)


def in_update(losses: Sequence[Tensor], norms: Sequence[Tensor]) -> str | None:
    """Return what was not finite first in the gradient steps of an update; None if all is, or there was none.

    Args:
        losses: () of each step, or (n,) with further numbers behind the loss.
        norms: () of the gradients, one for each step; the last may be missing.
    """
    if not norms:
        return None
    values, sizes = torch.stack(list(losses[: len(norms)])).reshape(len(norms), -1)[:, 0], torch.stack(list(norms))
    good = torch.isfinite(values) & torch.isfinite(sizes)
    if bool(good.all()):
        return None
    step = int((~good).int().argmax())
    name, value = ("gradient", sizes[step]) if bool(torch.isfinite(values[step])) else ("loss", values[step])
    return f"the {name} in gradient step {step + 1} was {float(value)}"


def in_weights(weights: Mapping[str, Tensor]) -> str | None:
    """Return which of the weights, tensors of any shape by name, is not finite; None if all are."""
    real = {name: value.detach() for name, value in weights.items() if value.is_floating_point() and value.numel()}
    if not real or bool(torch.isfinite(torch.stack([value.sum(dtype=torch.float64) for value in real.values()])).all()):
        return None
    names = [name for name, value in real.items() if not bool(torch.isfinite(value).all())]
    return f"the weights {names[0]} hold NaN or infinity" if names else None


def too_large(module: nn.Module) -> str:
    """Return what happened where linear algebra on the weights failed."""
    largest = max(float(value.detach().abs().max()) for value in module.parameters() if value.numel())
    return f"the weights grew until the policy's arrays could not be computed (the largest is {largest:.3g})"


def why_it_failed(model: BaseAlgorithm, error: Exception) -> str | None:
    """Return what was not finite when a library refused to compute (`error`); None if it was something else."""
    last = getattr(model, "_last_obs", None)
    for seen in last.values() if isinstance(last, Mapping) else [last]:
        if isinstance(seen, Tensor | np.ndarray) and not bool(torch.isfinite(torch.as_tensor(seen)).all()):
            return f"{THEIRS}observation was NaN or infinite"
    buffer: Any = getattr(model, "rollout_buffer", None)
    found = None
    if buffer is not None:
        # An update leaves NumPy's buffer in another shape, of a rollout that has been looked at already.
        seen = buffer.observations
        shape = next(iter(seen.values())) if isinstance(seen, Mapping) else seen
        found = in_buffer(buffer) if shape.ndim > 2 else None
    found = found or in_weights(model.policy.state_dict())
    if found is None and isinstance(error, LinAlgError):
        found = too_large(model.policy)
    return found


class GradientNorms:
    """The gradient's norm before clipping, of every step that an optimizer takes, for loops that do not tell it.

    A step whose gradient is not finite is refused with the error that `refusal` makes of what happened: the weights
    stay as they are.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        refusal: Callable[[str], Exception],
    ) -> None:
        self.refusal = refusal
        self.taken: list[Tensor] = []
        self._parts: list[Tensor] = []
        self._handles = [p.register_post_accumulate_grad_hook(self._note) for p in parameters if p.requires_grad]
        self._handles.append(optimizer.register_step_pre_hook(self._check))

    def _note(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._parts.append(torch.linalg.vector_norm(parameter.grad))

    def _check(self, *_: Any) -> None:
        norm = torch.linalg.vector_norm(torch.stack(self._parts)) if self._parts else torch.zeros(())
        self._parts = []
        self.taken.append(norm)
        if not bool(torch.isfinite(norm)):
            raise self.refusal(f"the gradient in gradient step {len(self.taken)} was {float(norm)}")

    def mean(self) -> float | None:
        """Return the mean norm since the last call, None without a step."""
        taken, self.taken = self.taken, []
        return float(torch.stack(taken).mean()) if taken else None

    def close(self) -> None:
        """Look no further."""
        for handle in self._handles:
            handle.remove()
