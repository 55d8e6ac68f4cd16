"""The activations a certified network may use: slope in [0, 1], and known from the output alone; MaxMin, Householder.

Householder reflects a pair v where q'v < 0, w = v - 2 q min(q'v, 0) with |q| = 1; MaxMin is q = (1, -1) / sqrt 2. A
rotation R of the pair with R q = (1, -1) / sqrt 2 gives w = R' maxmin(R v): what runs is MaxMin between weights that
have been turned, so all that is known of MaxMin holds of it.

Source: S. Singla, S. Singla and S. Feizi, "Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100", ICLR 2022
(arXiv 2108.04062).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
        slope: `slope(output, out)` writes the derivative into `out`, known from the map's output alone.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    inplace: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GroupActivation:
    """A 1-Lipschitz function of groups of neighbouring entries, whose Jacobian is orthogonal almost everywhere.

    A perceptron and an LBDN may use it; a cell whose guarantee rests on slopes entry by entry may not. `angles` says
    that each pair is turned by an angle of its own before `function`, and back after it.
    """

    name: str
    group: int
    function: Callable[[Tensor], Tensor]
    angles: bool = False


def maxmin(x: Tensor) -> Tensor:
    """Return each pair of neighbouring entries of x (..., 2 n), larger first (GroupSort with groups of 2)."""
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack((torch.maximum(first, second), torch.minimum(first, second)), dim=-1).flatten(-2)


def turned(matrix: Tensor, angle: Tensor) -> Tensor:
    """Return R matrix (2 n, ...) where R turns each pair of neighbouring rows by its angle (n,)."""
    first, second = matrix[0::2], matrix[1::2]
    cosine, sine = (part.reshape(-1, *[1] * (matrix.ndim - 1)) for part in (angle.cos(), angle.sin()))
    return torch.stack((cosine * first - sine * second, sine * first + cosine * second), dim=1).flatten(0, 1)


def _one_minus_square(h: Tensor, out: Tensor) -> Tensor:
    return torch.addcmul(h.new_ones(()), h, h, value=-1, out=out)


_ALL = (
    Activation("relu", torch.relu, torch.relu_, lambda h, out: torch.gt(h, 0, out=out)),
    Activation("tanh", torch.tanh, torch.tanh_, _one_minus_square),
    Activation("sigmoid", torch.sigmoid, torch.sigmoid_, lambda h, out: torch.addcmul(h, h, h, value=-1, out=out)),
    Activation("identity", lambda x: x, lambda x: x, lambda h, out: out.fill_(1.0)),
    Activation(
        "leaky_relu",
        lambda x: functional.leaky_relu(x, _LEAK),
        lambda x: functional.leaky_relu_(x, _LEAK),
        lambda h, out: torch.gt(h, 0, out=out).clamp_(min=_LEAK),
    ),
    Activation("elu", functional.elu, functional.elu_, lambda h, out: torch.add(h, 1, out=out).clamp_(max=1.0)),
    Activation(
        "softplus",
        functional.softplus,
        lambda x: x.copy_(functional.softplus(x)),
        lambda h, out: torch.expm1(-h, out=out).neg_(),
    ),
    Activation("hardtanh", functional.hardtanh, functional.hardtanh_, lambda h, out: torch.lt(h.abs(), 1, out=out)),
    Activation(
        "softsign",
        functional.softsign,
        lambda x: x.div_(x.abs() + 1),
        lambda h, out: torch.sub(1, h.abs(), out=out).square_(),
    ),
)

ACTIVATIONS: dict[str, Activation] = {activation.name: activation for activation in _ALL}

GROUP_ACTIVATIONS: dict[str, GroupActivation] = {
    "maxmin": GroupActivation("maxmin", 2, maxmin),
    "householder": GroupActivation("householder", 2, maxmin, angles=True),
}


def perceptron_activation(name: str, widths: Sequence[int]) -> Activation | GroupActivation:
    """Return the activation `name` of a perceptron with hidden layers `widths`; raises InvalidValueError."""
    if not isinstance(name, str) or name not in GROUP_ACTIVATIONS:
        return activation_named(name, GROUP_ACTIVATIONS)
    group = GROUP_ACTIVATIONS[name].group
    if any(width % group for width in widths):
        raise InvalidValueError(
            f"hidden_sizes is {list(widths)}; {name} needs layers of a multiple of {group} neurons."
        )
    return GROUP_ACTIVATIONS[name]


def activation_named(name: str, others: Iterable[str] = ()) -> Activation:
    """Return the activation `name`; `others` are known too where this one is wanted.

    Raises:
        InvalidValueError: `name` is none of `ACTIVATIONS`; a slope outside [0, 1] (gelu, silu) voids every guarantee.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        known = ", ".join(sorted([*ACTIVATIONS, *others]))
        raise InvalidValueError(f"activation is {name!r}; a slope in [0, 1] is needed: use one of {known}.")
    return ACTIVATIONS[name]
