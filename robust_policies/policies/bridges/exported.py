"""One step of an actor whose arrays are constants, as rsl_rl's own exporters take it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robust_policies.policies.actor import Actor


class UntracedStep(nn.Module):
    """(obs (1, nu), h_in (1, 1, nx)) -> (actions (1, na), h_out (1, 1, nx)); names as rsl_rl gives those of a GRU.

    An actor without a state takes and gives no state.
    """

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        self.scaling, self.head = actor.body.scaling, actor.head
        self.input_size, self.state_size = actor.cell.input_size, actor.cell.state_size
        self.is_recurrent = self.state_size > 0
        with torch.no_grad():
            self._cell, self._explicit = [actor.cell], actor.cell.explicit()

    def forward(self, obs: Tensor, h_in: Tensor | None = None) -> Any:
        """Return the actions, and what the state becomes; see the class for shapes."""
        state = obs[:, :0] if h_in is None else h_in[0]
        outputs, state = self._cell[0].step(self._explicit, self.scaling(obs), state)
        actions = self.head(outputs)
        return (actions, state.unsqueeze(0)) if self.is_recurrent else actions

    def get_dummy_inputs(self) -> tuple[Tensor, ...]:
        """Return an example of the inputs, (1, nu) and (1, 1, nx)."""
        inputs = torch.zeros(1, self.input_size), torch.zeros(1, 1, self.state_size)
        return inputs if self.is_recurrent else inputs[:1]

    @property
    def input_names(self) -> list[str]:
        """The names of the inputs."""
        return ["obs", "h_in"] if self.is_recurrent else ["obs"]

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs."""
        return ["actions", "h_out"] if self.is_recurrent else ["actions"]


class TracedStep(nn.Module):
    """An observation (1, nu) -> action (1, na), the state kept inside until `reset`, as rsl_rl's TorchScript files."""

    # TorchScript reads these and the annotations of methods, and no other annotation.
    __constants__ = ("memory",)

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        step = UntracedStep(actor).eval()
        self.memory = step.is_recurrent
        with torch.no_grad():
            self.step: Any = torch.jit.trace(step, step.get_dummy_inputs())
        self.hidden_state: Any
        self.register_buffer("hidden_state", torch.zeros(1, 1, step.state_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the action (1, na) for an observation (1, nu)."""
        if self.memory:
            actions, state = self.step(x, self.hidden_state)
            self.hidden_state[:] = state
            return actions
        return self.step(x)

    @torch.jit.export
    def reset(self) -> None:
        """Begin an episode."""
        self.hidden_state[:] = 0.0
