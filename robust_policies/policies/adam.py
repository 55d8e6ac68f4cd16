"""Adam in one kernel, and its gradient's norm limited in few calls, whatever the number of parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# PyTorch's operations that it does not export.
_KERNELS: Any = torch


class FusedAdam(torch.optim.Adam):
    """PyTorch's Adam, fused, whose steps are seen as changes of the parameters.

    PyTorch's fused kernel leaves their version counters alone, by which `ScaledCell` knows that its arrays are old.
    """

    # PyTorch's, without what keeps its compiler out of them by importing it: a second and 100 MB of a training.
    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)

    def __init__(self, parameters: Iterable[nn.Parameter], lr: Any = 1e-3, **options: Any) -> None:
        super().__init__(parameters, lr=lr, fused=True, **options)

    def step(self, closure: Any = None) -> Any:
        """Take a step; see `torch.optim.Adam`."""
        if closure is None and self._take(None):
            return None
        loss = super().step(closure)
        for group in self.param_groups:
            torch.autograd.graph.increment_version(group["params"])
        return loss

    def divided_step(self, divisor: Tensor) -> None:
        """Take a step with the gradient divided by `divisor` ()."""
        if self._take(divisor):
            return
        # PyTorch's name of the number by which the kernel divides gradients; its gradient scaler sets the same.
        self.grad_scale = divisor  # pyright: ignore[reportAttributeAccessIssue]
        try:
            self.step()
        finally:
            self.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def _take(self, divisor: Tensor | None) -> bool:
        """Call the kernel alone, a third of PyTorch's step, and return whether PyTorch had nothing to look at first."""
        if divisor is None and getattr(self, "grad_scale", None) is not None:
            return False
        groups = [self._of(group) for group in self.param_groups]
        if self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or None in groups:
            return False
        for group, (parameters, states) in zip(self.param_groups, groups, strict=True):  # pyright: ignore[reportGeneralTypeIssues]
            if not parameters:
                continue
            steps = [state["step"] for state in states]
            _KERNELS._foreach_add_(steps, 1)
            _KERNELS._fused_adam_(
                parameters, [one.grad for one in parameters], [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states], [], steps, lr=float(group["lr"]), beta1=group["betas"][0],
                beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False,
                maximize=group["maximize"], grad_scale=divisor, found_inf=None,
            )  # fmt: skip
            torch.autograd.graph.increment_version(parameters)
        return True

    def _of(self, group: Any) -> tuple[list[nn.Parameter], list[dict[str, Any]]] | None:
        """Return the parameters of a group that have gradients, and their states; None where PyTorch has to look."""
        parameters = [one for one in group["params"] if one.grad is not None]
        if group["amsgrad"] or not all(one.is_cpu for one in parameters[:1]):
            return None
        states = [self.state[one] for one in parameters]
        for one, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), device=one.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(one), torch.zeros_like(one)
        return (parameters, states) if len({(one.dtype, one.device) for one in parameters}) < 2 else None


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
    if not isinstance(optimizer, FusedAdam):
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        optimizer.step()
        return
    optimizer.divided_step(((norm + 1e-6) / limit).clamp_min(1.0))
