"""The Lipschitz recurrent neural network: a linear part and a recurrent part, each symmetric and skew by shares.

dh/dt = A h + act(W h + U u + b),  y = C h + by,  with A = (1 - beta) (M + M') + beta (M - M') - shift I from a free M
and W likewise from another, integrated over `step_size` by Euler's method or the midpoint rule (RK2) at every step.

What is published is a Lipschitz constant of the right-hand side, |A| + |W|, which says something of a fixed horizon
(`published_growth`), and a condition of continuous time: where the symmetric part of A lies below -|W| the flow
contracts (`published_margin`). Nothing of the latter holds by construction here: `certificates.verify` looks for a
proof of the arrays of the discrete map that runs, and refuses where it finds none.

Source: N. B. Erichson, O. Azencot, A. Queiruga, L. Hodgkinson and M. W. Mahoney, "Lipschitz recurrent neural networks",
ICLR 2021 (arXiv 2006.12070).
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.errors import InvalidValueError
from robust_policies.networks.activations import activation_named
from robust_policies.networks.linalg import full_precision, identity_like
from robust_policies.networks.neuron_cell import NeuronCell, RENExplicit

METHODS = ("euler", "rk2")


class LipschitzRNN(NeuronCell):
    """Lipschitz recurrent neural network, without a guarantee by construction; proofs are looked for afterwards.

    Args:
        input_size: nu.
        state_size: nx, the number of neurons too.
        output_size: ny.
        activation: a name in `ACTIVATIONS`.
        step_size: of the integration, > 0.
        method: "euler" or "rk2".
        beta_A, beta_W: shares of the skew part, 0 to 1; 1 is skew, 0.5 is neither.
        shift_A, shift_W: what is subtracted from the diagonals, >= 0.
    """

    name = "lipschitz_rnn"

    def __init__(
        self,
        input_size: int,
        state_size: int,
        output_size: int,
        activation: str = "tanh",
        step_size: float = 0.1,
        method: str = "euler",
        beta_A: float = 0.75,
        beta_W: float = 0.75,
        shift_A: float = 1.0,
        shift_W: float = 0.0,
    ) -> None:
        super().__init__(input_size, state_size, output_size)
        self.activation = activation_named(activation)
        self.step_size = checks.finite_float("step_size", step_size, above=0.0)
        if method not in METHODS:
            raise InvalidValueError(f"method is {method!r}; expected one of {', '.join(map(repr, METHODS))}.")
        self.method = method
        self.passes = 1 + METHODS.index(method)
        self.beta_A, self.beta_W = (
            checks.finite_float(key, value, at_least=0.0, at_most=1.0)
            for key, value in (("beta_A", beta_A), ("beta_W", beta_W))
        )
        self.shift_A, self.shift_W = (
            checks.finite_float(key, value, at_least=0.0) for key, value in (("shift_A", shift_A), ("shift_W", shift_W))
        )
        nu, nx, ny = self.input_size, self.state_size, self.output_size
        self.MA, self.MW, self.U, self.C = (
            nn.Parameter(torch.randn(rows, columns) / math.sqrt(columns))
            for rows, columns in ((nx, nx), (nx, nx), (nx, nu), (ny, nx))
        )
        self.b, self.by = nn.Parameter(torch.zeros(nx)), nn.Parameter(torch.zeros(ny))

    def flow(self) -> tuple[Tensor, Tensor]:
        """Return A and W (nx, nx) of the differential equation."""
        return _split(self.MA, self.beta_A, self.shift_A), _split(self.MW, self.beta_W, self.shift_W)

    def explicit(self) -> RENExplicit:
        """Return the arrays of the discrete map; of the midpoint rule the neurons of both of its stages."""
        h, none = self.step_size, self.MA.new_zeros
        nu, nx, ny = self.input_size, self.state_size, self.output_size
        with full_precision(self.MA):
            A, W = self.flow()
            eye = identity_like(A)
            if self.method == "euler":
                v = (W, none(nx, nx), self.U, self.b)
                x = (eye + h * A, h * eye)
            else:
                half = eye + 0.5 * h * A
                inside = torch.cat((none(nx, 2 * nx), torch.cat((0.5 * h * W, none(nx, nx)), 1)))
                v = (torch.cat((W, W @ half)), inside, self.U.repeat(2, 1), self.b.repeat(2))
                x = (eye + h * A @ half, torch.cat((0.5 * h * h * A, h * eye), 1))
            (C1, D11, D12, bv), (A, B1) = v, x
            rest = (none(ny, len(bv)), none(ny, nu), none(nx), bv, self.by)
            return RENExplicit(A, B1, none(nx, nu), C1, self.C, D11, D12, *rest)

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        own = ("step_size", "method", "beta_A", "beta_W", "shift_A", "shift_W")
        return {
            "input_size": self.input_size,
            "state_size": self.state_size,
            "output_size": self.output_size,
            "activation": self.activation.name,
            **{key: getattr(self, key) for key in own},
        }

    @torch.no_grad()
    def zero_output_(self) -> LipschitzRNN:
        """Zero C and by; the gradient with respect to C is not zero."""
        self.C.zero_()
        self.by.zero_()
        return self


def published_margin(A: Tensor, W: Tensor) -> float:
    """Return -(largest eigenvalue of the symmetric part of A) - |W|, for A, W (nx, nx).

    Where it is above 0 the flow of continuous time contracts at least at this rate; it says nothing of a discrete map.
    """
    with torch.no_grad():
        A, W = A.double(), W.double()
        return -float(torch.linalg.eigvalsh(0.5 * (A + A.mT))[-1]) - float(torch.linalg.matrix_norm(W, 2))


def published_growth(A: Tensor, W: Tensor, time: float) -> float:
    """Return exp((|A| + |W|) time) for A, W (nx, nx): what distances of states are multiplied by at most in a time > 0.

    The right-hand side has the Lipschitz constant |A| + |W|, so this is Gronwall's inequality for the flow under equal
    inputs; it holds for Euler's method and the midpoint rule too, whose steps h multiply by at most
    1 + (|A| + |W|) h and half its square more. It grows with the horizon without a limit.
    """
    time = checks.finite_float("time", time, above=0.0)
    with torch.no_grad():
        exponent = time * sum(float(torch.linalg.matrix_norm(part.double(), 2)) for part in (A, W))
    return math.exp(exponent) if exponent < math.log(sys.float_info.max) else math.inf


def _split(M: Tensor, beta: float, shift: float) -> Tensor:
    return (1 - beta) * (M + M.mT) + beta * (M - M.mT) - shift * identity_like(M)
