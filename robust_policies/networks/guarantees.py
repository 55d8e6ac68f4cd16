"""What a cell promises by construction.

A guarantee is about increments, the difference of any two trajectories of the same cell (u difference of inputs, y of
outputs). All of them include contraction: the effect of the initial state dies out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_policies import checks
from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError


@dataclass(frozen=True)
class Contracting:
    """Two trajectories under the same input converge, at the cell's rate; the input-output gain is not bounded."""

    def config(self) -> dict[str, Any]:
        """Return the JSON-able description that `guarantee_from_config` reads."""
        return {"type": "contracting"}


@dataclass(frozen=True)
class Lipschitz:
    """The incremental l2 gain is at most gamma: sum |y|^2 <= gamma^2 sum |u|^2 from equal initial states.

    Attributes:
        gamma: the bound, > 0.
        trainable: gamma is then the initial value and log(gamma) a parameter of the cell.
    """

    gamma: float
    trainable: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", checks.finite_float("gamma", self.gamma, above=0.0))
        if not isinstance(self.trainable, bool):
            raise InvalidValueError(f"trainable is {self.trainable!r}; expected True or False.")

    def config(self) -> dict[str, Any]:
        """Return the JSON-able description that `guarantee_from_config` reads."""
        return {"type": "lipschitz", "gamma": self.gamma, "trainable": self.trainable}


@dataclass(frozen=True)
class PeakLipschitz:
    """If |u_l| <= unit_l at every step, then |y_i| <= gamma at every step for ever, from equal initial states.

    Attributes:
        gamma: the bound of every output, > 0.
        unit: (nu,) how far each input may differ at every step, > 0; None: 1 each.
    """

    gamma: float
    unit: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", checks.finite_float("gamma", self.gamma, above=0.0))
        if self.unit is None:
            return
        given = self.unit.tolist() if hasattr(self.unit, "tolist") else self.unit  # pyright: ignore
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise InvalidValueError(f"unit is {given!r}; expected a number > 0 for each input, or None.")
        unit = tuple(checks.finite_float("an entry of unit", value, above=0.0) for value in given)
        object.__setattr__(self, "unit", unit)

    def units(self, input_size: int) -> tuple[float, ...]:
        """Return the unit of each of the inputs; raises ShapeError where there are as many of another number."""
        unit = (1.0,) * input_size if self.unit is None else self.unit
        if len(unit) != input_size:
            raise ShapeError(
                f"unit of PeakLipschitz has {len(unit)} number(s); the cell reads {input_size}: give one for each."
            )
        return unit

    def config(self) -> dict[str, Any]:
        """Return the JSON-able description that `guarantee_from_config` reads."""
        return {
            "type": "peak_lipschitz",
            "gamma": self.gamma,
            "unit": None if self.unit is None else list(self.unit),
        }


@dataclass(frozen=True, eq=False)
class Dissipative:
    """The increments obey sum (y'Q y + 2 u'S y + u'R u) >= 0 from equal initial states.

    Q (ny, ny) symmetric negative definite, S (nu, ny), R (nu, nu) symmetric with R - S Q^-1 S' > 0: otherwise no
    contracting cell satisfies it. Arrays, nested lists or tensors; kept as float64 tensors.
    """

    Q: Tensor
    S: Tensor
    R: Tensor

    def __post_init__(self) -> None:
        for name in ("Q", "S", "R"):
            object.__setattr__(self, name, _matrix(name, getattr(self, name)))
        ny, nu = self.Q.shape[0], self.R.shape[0]
        checks.shape("Q", self.Q, (ny, ny))
        checks.shape("R", self.R, (nu, nu))
        checks.shape("S", self.S, (nu, ny))
        for name in ("Q", "R"):
            matrix = getattr(self, name)
            if not torch.allclose(matrix, matrix.mT, rtol=1e-6, atol=1e-6 * float(matrix.abs().max())):
                raise InvalidValueError(
                    f"{name} is not symmetric; expected {name} = {name}': pass ({name} + {name}')/2."
                )
            object.__setattr__(self, name, (matrix + matrix.mT) / 2)
        largest = float(torch.linalg.eigvalsh(self.Q)[-1])
        if largest >= 0:
            raise InvalidValueError(
                f"Q has the eigenvalue {largest:.3g}; expected Q negative definite: subtract a small multiple of I."
            )
        smallest = float(torch.linalg.eigvalsh(self.R - self.S @ torch.linalg.solve(self.Q, self.S.mT))[0])
        if smallest <= 0:
            raise InvalidValueError(
                f"R - S Q^-1 S' has the eigenvalue {smallest:.3g}; expected positive definite: increase R."
            )

    def config(self) -> dict[str, Any]:
        """Return the JSON-able description that `guarantee_from_config` reads."""
        return {"type": "dissipative", "Q": self.Q.tolist(), "S": self.S.tolist(), "R": self.R.tolist()}


Guarantee = Contracting | Lipschitz | Dissipative | PeakLipschitz
KINDS: dict[str, type[Guarantee]] = {
    "contracting": Contracting,
    "lipschitz": Lipschitz,
    "dissipative": Dissipative,
    "peak_lipschitz": PeakLipschitz,
}
_CALLS = {
    Contracting: "Contracting()",
    Lipschitz: "Lipschitz(gamma)",
    Dissipative: "Dissipative(Q, S, R)",
    PeakLipschitz: "PeakLipschitz(gamma, unit)",
}
_OF_MOST: tuple[type[Guarantee], ...] = (Contracting, Lipschitz, Dissipative)


def guarantee_from_config(config: Mapping[str, Any]) -> Guarantee:
    """Return the guarantee whose `config()` is `config`."""
    options = dict(config)
    kind = options.pop("type", None)
    if kind not in KINDS:
        raise UnknownNameError.among("guarantee", str(kind), KINDS)
    try:
        return KINDS[kind](**options)
    except TypeError as error:
        raise InvalidValueError(f"The options {sorted(options)} do not fit the guarantee {kind!r}: {error}.") from error


def as_guarantee(
    value: Any, input_size: int, output_size: int, kinds: tuple[type[Guarantee], ...] = _OF_MOST
) -> Guarantee:
    """Return `value` if it is a guarantee whose sizes fit a cell with these sizes; a config mapping is converted.

    `kinds` are those that the cell can have.
    """
    if isinstance(value, Mapping):
        value = guarantee_from_config(value)
    if not isinstance(value, kinds):
        *others, last = (_CALLS[kind] for kind in kinds)
        expected = f"{', '.join(others)} or {last}" if others else last
        hint = ""
        if isinstance(value, Guarantee):
            hint = f": this cell has no {type(value).__name__}"
            hint += ", use the cell 'nemon'" if isinstance(value, PeakLipschitz) else ", use 'r2dn' or 'ren'"
        raise InvalidValueError(f"guarantee is {value!r}; expected {expected}{hint}.")
    if isinstance(value, Dissipative) and value.S.shape != (input_size, output_size):
        raise ShapeError(
            f"S of the dissipative guarantee has shape {tuple(value.S.shape)}; expected (input_size, output_size) = "
            f"({input_size}, {output_size})."
        )
    if isinstance(value, PeakLipschitz):
        value.units(input_size)
    return value


def _matrix(name: str, value: Any) -> Tensor:
    try:
        matrix = torch.as_tensor(value, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name} is not a matrix of numbers: {error}.") from error
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ShapeError(f"{name} has shape {tuple(matrix.shape)}; expected a non-empty matrix.")
    return checks.finite_tensor(name, matrix)
