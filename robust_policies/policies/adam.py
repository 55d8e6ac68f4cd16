"""Adam in one kernel, and its gradient's norm limited in few calls, whatever the number of parameters."""

from __future__ import annotations

import importlib
import inspect
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

# PyTorch's operations that it does not export.
_KERNELS: Any = torch


@cache
def kernels() -> Any:
    """Return the module of the compiled loops, None where numba is not there or they do not run."""
    try:
        found = importlib.import_module("robust_policies.policies.adam_kernels")
        values = np.ones((4, 1), np.float32)
        table = np.array([[*(one.ctypes.data for one in values[:3]), 1]])
        slopes = np.array([[values[3].ctypes.data, 1]])
        found.step(table, slopes, np.zeros(1, np.float32), 1.0, 0.1, 0.9, 0.999, 0.0, 1e-8, False)
        return found if found.norm(slopes) == 1.0 else None
    except Exception:  # whatever ails the compiler: PyTorch needs none
        return None


class FusedAdam(torch.optim.Adam):
    """PyTorch's Adam, fused, whose steps are seen as changes of the parameters.

    PyTorch's fused kernel leaves their version counters alone, by which `ScaledCell` knows that its arrays are old.

    Attributes:
        quick: whether steps of float32 on a CPU are `adam_kernels`', a tenth of the calls: for what loads numba anyway.
    """

    quick = False
    _seen: tuple[Sequence[Tensor | None], np.ndarray | None] = (), None

    # PyTorch's, without what keeps its compiler out of them by importing it: a second and 100 MB of a training.
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)

    def __init__(self, parameters: Iterable[nn.Parameter], lr: Any = 1e-3, **options: Any) -> None:
        self._known: list[_Group | None] = []
        super().__init__(parameters, lr=lr, fused=True, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see `torch.optim.Optimizer`."""
        self._known = []
        inspect.unwrap(torch.optim.Adam.add_param_group)(self, param_group)

    def load_state_dict(self, state_dict: Any) -> None:
        """Go on from a state; see `torch.optim.Optimizer`."""
        self._known = []
        inspect.unwrap(torch.optim.Adam.load_state_dict)(self, state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._known = []

    def step(self, closure: Any = None) -> Any:
        """Take a step; see `torch.optim.Adam`."""
        if closure is None and self._take(None):
            return None
        loss = super().step(closure)
        for group in self.param_groups:
            torch.autograd.graph.increment_version(group["params"])
        return loss

    def divided_step(self, divisor: Tensor | float) -> None:
        """Take a step with the gradient divided by `divisor`, ()."""
        if self._take(divisor):
            return
        divisor = torch.as_tensor(divisor)
        # PyTorch's name of the number by which the kernel divides gradients; its gradient scaler sets the same.
        self.grad_scale = divisor  # pyright: ignore[reportAttributeAccessIssue]
        try:
            self.step()
        finally:
            self.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]

    @contextmanager
    def at_rate(self, rate: Tensor, recording: bool) -> Iterator[None]:
        """Let steps in the block read the learning rate from `rate`, () on the parameters' device.

        `recording`: they are recorded as a CUDA graph, which PyTorch wants to be told.
        """
        before = [(group["lr"], group["capturable"]) for group in self.param_groups]
        for group in self.param_groups:
            group["lr"], group["capturable"] = rate, recording
        try:
            yield
        finally:
            for group, kept in zip(self.param_groups, before, strict=True):
                group["lr"], group["capturable"] = kept

    def addresses(self, gradients: Sequence[Tensor | None]) -> np.ndarray | None:
        """Return address and count (n, 2) of gradients of any shapes; None where `adam_kernels` is not to read them."""
        if not self.quick or kernels() is None:
            return None
        before, found = self._seen
        # A training may leave them in the same tensors in every step.
        if len(gradients) != len(before) or not all(map(operator.is_, gradients, before)):
            fit = all(one is not None and one.dtype == torch.float32 and one.is_cpu and one.is_contiguous()
                      for one in gradients)  # fmt: skip
            found = np.array([(one.data_ptr(), one.numel()) for one in gradients if one is not None]) if fit else None
            self._seen = gradients, found
        return found

    @torch.no_grad()
    def _take(self, divisor: Tensor | float | None) -> bool:
        """Call the kernel alone, a third of PyTorch's step, and return whether PyTorch had nothing to look at first."""
        if divisor is None and getattr(self, "grad_scale", None) is not None:
            return False
        if self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks:
            return False
        if len(self._known) != len(self.param_groups):
            self._known = [_group(group["params"], self.state) for group in self.param_groups]
        grads = [[one.grad for one in group["params"]] for group in self.param_groups]
        if any(one is None for one in self._known) or any(one is None for some in grads for one in some):
            return False
        if any(group["amsgrad"] for group in self.param_groups):
            return False
        for group, known, some in zip(self.param_groups, self._known, grads, strict=True):
            assert known is not None
            table, slopes = known.table, self.addresses(some)
            if table is not None and slopes is not None:
                table[:, 0] = [one.data_ptr() for one in group["params"]]
                kernels().step(
                    table, slopes, known.counts.numpy(), 1.0 if divisor is None else float(divisor),
                    float(group["lr"]), *map(float, group["betas"]), float(group["weight_decay"]), float(group["eps"]),
                    bool(group["maximize"]),
                )  # fmt: skip
                torch.autograd.graph.increment_version(group["params"])
                continue
            known.counts.add_(1.0)
            _KERNELS._fused_adam_(
                group["params"], some, known.means, known.squares, [], known.steps, lr=float(group["lr"]),
                beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"],
                amsgrad=False, maximize=group["maximize"], found_inf=None,
                grad_scale=None if divisor is None else torch.as_tensor(divisor),
            )  # fmt: skip
            torch.autograd.graph.increment_version(group["params"])
        return True


class _Group(NamedTuple):
    """The states of a group's parameters: what the kernel takes, and all counts of steps in one tensor (n,).

    `table` (n, 4) is what `adam_kernels.step` reads, without the parameters' addresses; None where they have gaps.
    """

    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    counts: Tensor
    table: np.ndarray | None


def _group(parameters: Sequence[nn.Parameter], states: Any) -> _Group | None:
    """Return the states of parameters, made where there are none, None where PyTorch has to look at them."""
    if not parameters[0].is_cpu or len({(one.dtype, one.device) for one in parameters}) > 1:
        return None
    counts = torch.zeros(len(parameters))
    for one, count in zip(parameters, counts, strict=True):
        state = states[one]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(one), torch.zeros_like(one)
        else:
            count.copy_(state["step"])
        state["step"] = count
    kept = [states[one] for one in parameters]
    means, squares = [one["exp_avg"] for one in kept], [one["exp_avg_sq"] for one in kept]
    table = None
    if all(one.is_contiguous() for one in (*parameters, *means, *squares)):
        table = np.array([(0, *map(Tensor.data_ptr, one), one[0].numel()) for one in zip(means, squares, strict=True)])
    return _Group(means, squares, [one["step"] for one in kept], counts, table)


def adam(kind: Any, options: Iterable[str]) -> Any:
    """Return the optimizer's class to use where `kind` was asked for with these options: `FusedAdam` if it fits."""
    given = {"foreach", "fused", "capturable", "differentiable"} & set(options)
    return FusedAdam if kind is torch.optim.Adam and not given else kind


def forget_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Free the gradients."""
    for parameter in parameters:
        parameter.grad = None


def gradient_norm(parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer | None = None) -> Tensor:
    """Return the norm () of the gradient of all parameters that have one, which `optimizer` is to step with."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    slopes = optimizer.addresses(grads) if isinstance(optimizer, FusedAdam) else None
    if slopes is not None and len(slopes):
        return torch.tensor(kernels().norm(slopes), dtype=torch.float32)
    grads = [one.flatten() for one in grads]
    return torch.linalg.vector_norm(torch.cat(grads)) if grads else torch.zeros(())


def take_step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Step with the gradient, `norm` () long, scaled down where that is above `limit`, as `clip_grad_norm_` does."""
    if not isinstance(optimizer, FusedAdam):
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        optimizer.step()
        return
    # In float32, as PyTorch's gradient scaler has it; few calls for few numbers on a CPU.
    if optimizer.quick:
        optimizer.divided_step(float(np.float32(max(1.0, (float(norm) + 1e-6) / limit))))
    else:
        optimizer.divided_step(((norm + 1e-6) / limit).clamp_min(1.0).float())
