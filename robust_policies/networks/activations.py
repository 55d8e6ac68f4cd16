"""The activations a certified network may use: slope in [0, 1], and known from the output alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robust_policies.errors import InvalidValueError

_LEAK = 0.01


@dataclass(frozen=True)
class Activation:
    """A scalar function with slope in [0, 1], applied entry by entry.

    Attributes:
        name: the name in `ACTIVATIONS`.
        function: the differentiable map.
        inplace: the same map, overwriting its argument (no gradient).
        backward: `backward(grad, output, out)` writes grad * slope into `out`, the slope taken from the map's output.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    inplace: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]


def _from_slope(slope: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda grad, output, out: torch.mul(grad, slope(output), out=out)


_threshold_backward = torch.ops.aten.threshold_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input

_ALL = (
    Activation("relu", torch.relu, torch.relu_, lambda g, h, out: _threshold_backward(g, h, 0, grad_input=out)),
    Activation("tanh", torch.tanh, torch.tanh_, lambda g, h, out: _tanh_backward(g, h, grad_input=out)),
    Activation("sigmoid", torch.sigmoid, torch.sigmoid_, lambda g, h, out: _sigmoid_backward(g, h, grad_input=out)),
    Activation("identity", lambda x: x, lambda x: x, lambda g, h, out: out.copy_(g)),
    Activation(
        "leaky_relu",
        lambda x: functional.leaky_relu(x, _LEAK),
        lambda x: functional.leaky_relu_(x, _LEAK),
        _from_slope(lambda h: torch.where(h > 0, 1.0, _LEAK).to(h.dtype)),
    ),
    Activation("elu", functional.elu, functional.elu_, _from_slope(lambda h: torch.clamp(h + 1, max=1.0))),
    Activation(
        "softplus",
        functional.softplus,
        lambda x: x.copy_(functional.softplus(x)),
        _from_slope(lambda h: -torch.expm1(-h)),
    ),
    Activation("hardtanh", functional.hardtanh, functional.hardtanh_, _from_slope(lambda h: (h.abs() < 1).to(h.dtype))),
    Activation(
        "softsign",
        functional.softsign,
        lambda x: x.div_(x.abs() + 1),
        _from_slope(lambda h: (1 - h.abs()).square()),
    ),
)

ACTIVATIONS: dict[str, Activation] = {activation.name: activation for activation in _ALL}


def activation_named(name: str) -> Activation:
    """Return the activation `name`.

    Raises:
        InvalidValueError: `name` is none of `ACTIVATIONS`; a slope outside [0, 1] (gelu, silu) voids every guarantee.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise InvalidValueError(
            f"activation is {name!r}; a slope in [0, 1] is needed: use one of {', '.join(sorted(ACTIVATIONS))}."
        )
    return ACTIVATIONS[name]
