"""One gradient step of Adam with its gradient's norm limited, in few calls whatever the number of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def adam(parameters: Iterable[nn.Parameter], **options: Any) -> torch.optim.Adam:
    """Return an Adam whose step is one kernel for all parameters; the options are PyTorch's."""
    return torch.optim.Adam(parameters, lr=1e-3, fused=True, **options)


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
    # PyTorch's name of the number by which the kernel divides gradients; its gradient scaler sets the same.
    optimizer.grad_scale = ((norm + 1e-6) / limit).clamp_min(1.0)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        optimizer.step()
    finally:
        optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
