"""A recurrent cell whose outputs are bounded step by step, in the l-infinity norm, for every value of its parameters.

x+ = A x + B1 w + B2 u + bx,  v = C1 x + D11 w + D12 u + bv,  y = C2 x + D21 w + D22 u + by,  w = act(v).

The state is in blocks of s = 1 or 2 numbers, |x|_b the Euclidean norm of block b. With levels zbar > 0 of the neurons
and units ubar > 0 of the inputs the rows are scaled so that

    sum_b |C1_kb| + |D11_k| zbar + |D12_k| ubar <= zbar_k       (neurons)
    r_b + sum_k |B1_bk| zbar_k <= rate,   the same + sum_l |B2_bl| ubar_l <= 1    (states; A shrinks by r_b)
    sum_b |C2_ib| + |D21_i| zbar + |D22_i| ubar <= gamma         (outputs)

Slopes lie in [0, 1], so from equal states |u_l| <= ubar_l at every step keeps |w_k| <= zbar_k, |x|_b <= 1 and
|y_i| <= gamma for ever, by the triangle inequality, and under equal inputs max_b |x|_b shrinks by `rate` each step. The
neurons may read one another: in layers (D11 strictly lower triangular in blocks), or all of them, with
|D11_k| zbar <= omega zbar_k, evaluated in a number of passes from zero, each of which maps the levels into themselves.

Sources: S. Jafarpour, A. Davydov, A. V. Proskurnikov and F. Bullo, "Robust implicit networks via non-Euclidean
contractions" (NEMON), NeurIPS 2021, for weighted l-infinity norms of implicit layers (`networks.implicit`); the rows of
a recurrent cell are scaled here as that paper scales those of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.errors import InvalidValueError
from robust_policies.networks.activations import activation_named
from robust_policies.networks.guarantees import Contracting, Guarantee, PeakLipschitz, as_guarantee
from robust_policies.networks.linalg import full_precision
from robust_policies.networks.neuron_cell import NeuronCell, RENExplicit

MOST_PASSES = 200
# Radii of the blocks at first, shares of the rate, and angles of those of two numbers: slow and fast at once.
_RADII, _ANGLES = (0.4, 0.985), (0.05, 1.2)
_OMEGA, _PASSES = 0.8, 25


class NemonCell(NeuronCell):
    """Recurrent cell bounded step by step: every output within gamma for ever while every input is within its unit.

    Args:
        input_size: nu.
        state_size: nx, a multiple of `block_size`.
        output_size: ny.
        features: nv, the number of neurons; None: twice as many as states.
        activation: a name in `ACTIVATIONS`.
        guarantee: Contracting() or PeakLipschitz(gamma, unit).
        rate: upper bound of the contraction rate, 0 < rate < 1.
        block_size: 1, or 2 for states that turn: a slow oscillation needs them; None: 2 where `state_size` is even.
        layers: of neurons, each of which reads those before it, not with `implicit`; None: 2.
        implicit: every neuron reads all others.
        omega: of an implicit cell, the factor in (0, 1) by which each pass comes nearer to the fixed point.
        passes: of an implicit cell, what runs, 1 to 200; the guarantee holds for any number.
    """

    name = "nemon"
    guarantee: Guarantee
    rate: float
    B1: nn.Parameter
    B2: nn.Parameter
    C1: nn.Parameter
    C2: nn.Parameter
    D11: nn.Parameter
    D12: nn.Parameter
    D21: nn.Parameter
    D22: nn.Parameter
    bx: nn.Parameter
    bv: nn.Parameter
    by: nn.Parameter
    mask: Tensor

    def __init__(
        self,
        input_size: int,
        state_size: int,
        output_size: int,
        features: int | None = None,
        activation: str = "relu",
        guarantee: Guarantee | Mapping[str, Any] = Contracting(),  # noqa: B008 (frozen)
        rate: float = 0.99,
        block_size: int | None = None,
        layers: int | None = None,
        implicit: bool = False,
        omega: float | None = None,
        passes: int | None = None,
    ) -> None:
        super().__init__(input_size, state_size, output_size)
        self.features = checks.positive_int("features", 2 * self.state_size if features is None else features)
        self.activation = activation_named(activation)
        self.guarantee = as_guarantee(guarantee, self.input_size, self.output_size, (Contracting, PeakLipschitz))
        self.rate = checks.finite_float("rate", rate, above=0.0)
        if self.rate >= 1:
            raise InvalidValueError(f"rate is {rate!r}; expected a number in (0, 1): the states need room below 1.")
        even = 1 if self.state_size % 2 else 2
        self.block_size = checks.positive_int("block_size", even if block_size is None else block_size)
        if self.block_size > 2 or self.state_size % self.block_size:
            raise InvalidValueError(
                f"block_size is {block_size} and state_size {state_size}; expected 1, or 2 and an even state_size."
            )
        self.implicit = checks.flag("implicit", implicit)
        self._set_passes(layers, omega, passes)
        nu, nx, ny, nv = self.input_size, self.state_size, self.output_size, self.features
        shapes = {"B1": (nx, nv), "B2": (nx, nu), "C1": (nv, nx), "C2": (ny, nx), "D11": (nv, nv), "D12": (nv, nu)}
        for key, (rows, columns) in (shapes | {"D21": (ny, nv), "D22": (ny, nu)}).items():
            self.register_parameter(key, nn.Parameter(torch.randn(rows, columns) / math.sqrt(columns)))
        blocks = nx // self.block_size
        self.radius = nn.Parameter(torch.logit(torch.linspace(*_RADII, blocks)))
        self.angle = nn.Parameter(torch.linspace(*_ANGLES, blocks)) if self.block_size == 2 else None
        self.level = nn.Parameter(torch.zeros(nv))
        for key, width in (("bx", nx), ("bv", nv), ("by", ny)):
            self.register_parameter(key, nn.Parameter(torch.zeros(width)))
        place = torch.arange(nv) * (self.layers or 1) // nv
        mask = torch.ones(nv, nv) if self.implicit else (place[:, None] > place).to(torch.get_default_dtype())
        self.register_buffer("mask", mask, persistent=False)
        self._units: dict[Any, Tensor] = {}

    def _unit(self, of: PeakLipschitz) -> Tensor:
        """Return the size of a unit of each input (nu,), carried to the device once."""
        kind = (self.B1.dtype, self.B1.device)
        if kind not in self._units:
            self._units[kind] = self.B1.new_tensor(of.units(self.input_size))
        return self._units[kind]

    def _set_passes(self, layers: int | None, omega: float | None, passes: int | None) -> None:
        """Set how the neurons read one another, and how often they are evaluated."""
        if self.implicit:
            if layers is not None:
                raise InvalidValueError(f"layers is {layers!r} and implicit true; give one of them.")
            self.layers = None
            self.omega: float | None = checks.finite_float("omega", _OMEGA if omega is None else omega, above=0.0)
            if self.omega >= 1:
                raise InvalidValueError(f"omega is {omega!r}; expected a number in (0, 1): passes converge like it.")
            self.passes = checks.positive_int("passes", _PASSES if passes is None else passes)
            if self.passes > MOST_PASSES:
                needed = math.ceil(math.log(1e-6) / math.log(self.omega))
                raise InvalidValueError(
                    f"passes is {passes}; expected at most {MOST_PASSES} (omega {self.omega:g}: {needed} for 1e-6)."
                )
            return
        for name, value in (("omega", omega), ("passes", passes)):
            if value is not None:
                raise InvalidValueError(f"{name} is {value!r}, which is of implicit cells; add implicit=True.")
        self.omega = None
        self.layers = checks.positive_int("layers", min(2, self.features) if layers is None else layers)
        if self.layers > self.features:
            raise InvalidValueError(f"layers is {layers} and features {self.features}; expected a neuron a layer.")
        self.passes = self.layers

    @classmethod
    def designed(cls, gamma: float | None) -> Guarantee:
        """Return the guarantee that `gamma=` asks for."""
        return Contracting() if gamma is None else PeakLipschitz(gamma)

    @property
    def layered(self) -> bool:
        """Whether D11 is strictly lower triangular, so that the passes are exact."""
        return not self.implicit

    def explicit(self) -> RENExplicit:
        """Return the arrays that run."""
        s, of = self.block_size, self.guarantee
        unit = self._unit(of) if isinstance(of, PeakLipschitz) else self.B1.new_ones(())
        with full_precision(self.B1):
            level = self.level.exp()
            D11 = self.D11 * self.mask
            if self.omega is not None:
                D11 = D11 * fit(D11.abs() @ level, self.omega * level)
            unit = unit.expand(self.input_size)
            rows = _of_columns(self.C1, s).sum(1) + D11.abs() @ level + self.D12.abs() @ unit
            shrink = fit(rows, level)
            C1, D11, D12 = self.C1 * shrink, D11 * shrink, self.D12 * shrink
            r = self.rate * torch.sigmoid(self.radius)
            through = _of_rows(self.B1, s) @ level
            shrink = fit(through, self.rate - r)
            B1 = self.B1 * shrink.repeat_interleave(s, 0)
            reached = r + through * shrink.squeeze(1)
            B2 = self.B2 * fit(_of_rows(self.B2, s) @ unit, 1 - reached).repeat_interleave(s, 0)
            C2, D21, D22 = self.C2, self.D21, self.D22
            if isinstance(of, PeakLipschitz):
                rows = _of_columns(C2, s).sum(1) + D21.abs() @ level + D22.abs() @ unit
                shrink = fit(rows, rows.new_full((), of.gamma))
                C2, D21, D22 = C2 * shrink, D21 * shrink, D22 * shrink
            return RENExplicit(self._turning(r), B1, B2, C1, C2, D11, D12, D21, D22, self.bx, self.bv, self.by)

    def _turning(self, r: Tensor) -> Tensor:
        """Return A (nx, nx), whose blocks shrink by r and, of two numbers, turn."""
        if self.angle is None:
            return torch.diag(r)
        cosine, sine = r * torch.cos(self.angle), r * torch.sin(self.angle)
        columns = torch.stack((cosine, -sine, sine, cosine), 1).reshape(-1, 2, 2)
        # Row a of block b, column c of block d: the product is a matrix of blocks on the diagonal.
        return (columns.unsqueeze(2) * torch.eye(len(r), dtype=r.dtype, device=r.device)[:, None, :, None]).reshape(
            2 * len(r), 2 * len(r)
        )

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "input_size": self.input_size,
            "state_size": self.state_size,
            "output_size": self.output_size,
            "features": self.features,
            "activation": self.activation.name,
            "guarantee": self.guarantee.config(),
            "rate": self.rate,
            "block_size": self.block_size,
            "layers": self.layers,
            "implicit": self.implicit,
            "omega": self.omega,
            "passes": self.passes if self.implicit else None,
        }

    @torch.no_grad()
    def zero_output_(self) -> NemonCell:
        """Zero C2, D21, D22 and by; the gradient with respect to them is not zero."""
        for array in (self.C2, self.D21, self.D22, self.by):
            array.zero_()
        return self


def fit(size: Tensor, room: Tensor) -> Tensor:
    """Return the factors (rows, 1), at most 1, that bring rows of `size` (rows,) within `room` (rows,) or ()."""
    return (1 / (size / room).clamp(min=1.0)).unsqueeze(1)


def _of_rows(matrix: Tensor, s: int) -> Tensor:
    """Return the norms (rows / s, columns) of s rows together."""
    return matrix.abs() if s == 1 else _norm(matrix.unflatten(0, (-1, s)), 1)


def _of_columns(matrix: Tensor, s: int) -> Tensor:
    """Return the norms (rows, columns / s) of s columns together."""
    return matrix.abs() if s == 1 else _norm(matrix.unflatten(1, (-1, s)), 2)


def _norm(blocks: Tensor, dim: int) -> Tensor:
    # The gradient of a norm of zeros is none; that of 1e-30 beside numbers that matter changes nothing.
    return (blocks.square().sum(dim) + 1e-30).sqrt()
