"""What R2DN and REN share: a guarantee, a contraction rate, free parameters and the trained or fixed gain bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.errors import InvalidValueError
from robust_policies.networks import rows
from robust_policies.networks.activations import activation_named
from robust_policies.networks.cell import Cell
from robust_policies.networks.compiled import Collapsed, run
from robust_policies.networks.guarantees import Contracting, Guarantee, Lipschitz, as_guarantee
from robust_policies.networks.linalg import frobenius
from robust_policies.networks.supply import Supply, supply_of
from robust_policies.networks.whole_run import run_with_parameters

OUTPUTS = ("free", "state")
INITS = ("random", "long_memory", "timescales")
# What the fastest and the slowest state forget at first, a share of itself each step.
_FORGOTTEN = {"long_memory": (0.05, 0.005), "timescales": (0.7, 0.001)}


class RobustCell(Cell):
    """A linear system in feedback with a nonlinearity, whose guarantee holds for every value of its parameters.

    Args:
        input_size, state_size, output_size: nu, nx, ny.
        features: nv, the width of the nonlinearity.
        activation: a name in `ACTIVATIONS`.
        guarantee: Contracting(), Lipschitz(gamma) or Dissipative(Q, S, R), or the config of one.
        rate: upper bound of the contraction rate, 0 < rate <= 1.
        init: "random"; "long_memory" for A close to rate * I; "timescales" for A diagonal with memories from one step
            to a thousand, spaced logarithmically, and inputs scaled so that white noise drives all states alike (as
            A. Orvieto et al., "Resurrecting recurrent neural networks for long sequences", ICML 2023, normalise).
        eps: absolute regularization of the Gram matrix H; None scales it with trace(H).
        output: "free", or "state": y = x, the state before the step, with C2, D21, D22 and by no parameters. Then
            output_size is state_size, and the guarantee Contracting().
    """

    guarantee: Guarantee
    rate: float
    X: nn.Parameter
    B2: nn.Parameter
    C2: nn.Parameter | Tensor
    D12: nn.Parameter
    D21: nn.Parameter | Tensor
    D22: nn.Parameter | Tensor
    bx: nn.Parameter
    bv: nn.Parameter
    by: nn.Parameter | Tensor

    def __init__(
        self,
        input_size: int,
        state_size: int,
        output_size: int,
        features: int,
        activation: str,
        guarantee: Guarantee | Mapping[str, Any],
        rate: float,
        init: str,
        eps: float | None,
        output: str,
    ) -> None:
        super().__init__(input_size, state_size, output_size)
        self.features = checks.positive_int("features", features)
        self.activation = activation_named(activation)
        self.guarantee = as_guarantee(guarantee, self.input_size, self.output_size)
        self.rate = checks.finite_float("rate", rate, above=0.0, at_most=1.0)
        self.eps = None if eps is None else checks.finite_float("eps", eps, above=0.0)
        if init not in INITS:
            raise InvalidValueError(f"init is {init!r}; expected one of {', '.join(map(repr, INITS))}.")
        self.init = init
        if output not in OUTPUTS:
            raise InvalidValueError(f"output is {output!r}; expected one of {', '.join(map(repr, OUTPUTS))}.")
        self.output = output
        if self.gives_state:
            self._check_state_output()

    def register_direct(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Create the free matrices `shapes`, the size p of X, the biases, and log(gamma) if it is trained."""
        if self.gives_state:
            self.register_buffer("C2", torch.eye(self.state_size), persistent=False)
            for key in ("D21", "D22"):
                self.register_buffer(key, torch.zeros(shapes[key]), persistent=False)
            self.register_buffer("by", torch.zeros(self.output_size), persistent=False)
        for key, shape in shapes.items():
            if key in self._buffers:
                continue
            value = torch.empty(shape)
            self.register_parameter(key, nn.Parameter(nn.init.xavier_normal_(value) if value.numel() else value))
        self.p = nn.Parameter(frobenius(self.X.detach()).reshape(1))
        for key, width in (("bx", self.state_size), ("bv", self.features), ("by", self.output_size)):
            if key not in self._buffers:
                self.register_parameter(key, nn.Parameter(torch.zeros(width)))
        self._direct = (*shapes, "p")
        self.log_gamma: nn.Parameter | None = None
        if isinstance(self.guarantee, Lipschitz) and self.guarantee.trainable:
            self.log_gamma = nn.Parameter(torch.tensor([math.log(self.guarantee.gamma)]))

    def first_poles(self) -> Tensor:
        """Return the diagonal (nx,) of A that the initialisation asks for, float64."""
        fast, slow = _FORGOTTEN[self.init]
        forgotten = torch.logspace(math.log10(fast), math.log10(slow), self.state_size, dtype=torch.float64)
        return self.rate * (1 - forgotten)

    @torch.no_grad()
    def drive_alike(self, poles: Tensor, across: Sequence[str], along: Sequence[str] = ()) -> None:
        """Scale matrices into (`across`) and out of (`along`) the states by what a pole makes of white noise."""
        scale = (1.0 - (poles / self.rate).square()).sqrt().to(self.X.dtype)
        for key in across:
            getattr(self, key).mul_(scale.unsqueeze(1))
        for key in along:
            getattr(self, key).mul_(scale)

    @property
    def contracting_only(self) -> bool:
        """Whether the guarantee is contraction without a supply rate."""
        return isinstance(self.guarantee, Contracting)

    @property
    def gives_state(self) -> bool:
        """Whether the output is the state."""
        return self.output == "state"

    def _check_state_output(self) -> None:
        """Raise `InvalidValueError` where the output cannot be the state."""
        if self.output_size != self.state_size:
            raise InvalidValueError(
                f"output is 'state' and output_size {self.output_size}; expected state_size, {self.state_size}."
            )
        if not self.contracting_only:
            raise InvalidValueError(f"output is 'state' with {type(self.guarantee).__name__}; expected Contracting().")

    def _refuse_zero_output(self) -> None:
        if self.gives_state:
            raise InvalidValueError("zero_output_ was called with output='state', which is never zero.")

    def run_now(self, inputs: Tensor, state: Tensor, starts: Tensor | None, way: Any = None) -> tuple[Tensor, Tensor]:
        """Return (outputs, final state) by one node of the graph for parametrization and scan where there is one."""
        name, sizes, found = self.activation.name, self.step_sizes(), None
        # A subclass may have arrays or a run of its own.
        own = type(self).explicit.__module__ == type(self).run.__module__ == type(self).step_sizes.__module__
        if sizes is not None and own:
            found = run_with_parameters(self, name, sizes, self._step_alone, inputs, state, starts, way or rows)
        if found is None and way is not None:
            return run(name, starts, inputs, state, cast(Collapsed, self.collapsed(self.explicit())), way)
        return super().run_now(inputs, state, starts) if found is None else found

    def _with_collapsed(self) -> tuple[Any, Collapsed]:
        """Return the arrays that run and the collapsed step they make."""
        raise NotImplementedError

    def _step_alone(self) -> Collapsed:
        return self._with_collapsed()[1]

    def run_states(self, explicit: Any, inputs: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (outputs, states after each step) by the fastest run there is: the next state is a further output."""
        e = explicit
        both = e._replace(
            C2=torch.cat((e.C2, e.A)),
            D21=torch.cat((e.D21, e.B1)),
            D22=torch.cat((e.D22, e.B2)),
            by=torch.cat((e.by, e.bx)),
        )
        outputs, _ = self.run(both, inputs, state, starts)
        return outputs[..., : len(e.C2)], outputs[..., len(e.C2) :]

    @property
    def gamma(self) -> float | None:
        """The certified incremental l2 gain, None unless the guarantee is Lipschitz."""
        if not isinstance(self.guarantee, Lipschitz):
            return None
        return self.guarantee.gamma if self.log_gamma is None else math.exp(float(self.log_gamma.detach()))

    def direct(self) -> dict[str, Tensor]:
        """Return the free matrices and p, by name."""
        return {key: getattr(self, key) for key in self._direct}

    def supply(self, eps: float = 0.0) -> Supply:
        """Return the supply rate of a Lipschitz or dissipative guarantee, tightened by `eps`."""
        return supply_of(self.guarantee, self.log_gamma, self.input_size, self.output_size, self.X, eps)

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
            "init": self.init,
            "eps": self.eps,
            **({"output": self.output} if self.gives_state else {}),
        }
