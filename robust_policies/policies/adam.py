"""Adam in one kernel, and its gradient's norm limited in few calls, whatever the number of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FusedAdam(torch.optim.Adam):
    """PyTorch's Adam, fused, whose steps are seen as changes of the parameters.

    PyTorch's fused kernel leaves their version counters alone, by which `ScaledCell` knows that its arrays are old.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: Any = 1e-3, **options: Any) -> None:
        super().__init__(parameters, lr=lr, fused=True, **options)

    def step(self, closure: Any = None) -> Any:
        """Take a step; see `torch.optim.Adam`."""
        loss = super().step(closure)
        for group in self.param_groups:
            torch.autograd.graph.increment_version(group["params"])
        return loss


def adam(kind: Any, options: Iterable[str]) -> Any:
    """Return the optimizer's class to use where `kind` was asked for with these options: `FusedAdam` if it fits."""
    given = {"foreach", "fused", "capturable", "differentiable"} & set(options)
    return FusedAdam if kind is torch.optim.Adam and not given else kind


def forget_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Free the gradients."""
    for parameter in parameters:
        parameter.grad = None


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the norm () of the gradient of all parameters that have one."""
    grads = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.cat(grads)) if grads else torch.zeros(())


def take_step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Step with the gradient, `norm` () long, scaled down where that is above `limit`, as `clip_grad_norm_` does."""
    if not all(group.get("fused") for group in optimizer.param_groups):
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        optimizer.step()
        return
    # PyTorch's name of the number by which the kernel divides gradients; its gradient scaler sets the same, in float32.
    optimizer.grad_scale = ((norm + 1e-6) / limit).clamp_min(1.0).float()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        optimizer.step()
    finally:
        optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
