"""A base controller, its observer and a trained Youla parameter as one policy for the unwrapped environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robust_policies import policies as face
from robust_policies.certificates import Certificate
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.scope import Scope
from robust_policies.errors import InvalidValueError, NotCertifiableError, ShapeError
from robust_policies.networks import Cell
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.records import from_parts, to_parts
from robust_policies.policies.running import RunningPolicy
from robust_policies.policies.running_arrays import BASE_ARRAYS, PREFIX, check_arrays
from robust_policies.policies.spaces import choose, space_from_json, space_to_json
from robust_policies.policies.youla.base import BaseController, YoulaOptions
from robust_policies.policies.youla.certify import certify_youla, loop_arrays, searched_loop
from robust_policies.policies.youla.running import running_youla
from robust_policies.policies.youla.wrapper import youla_base


class YoulaCell(Cell):
    """From the environment's observation to its input: a base controller with the actor of a Youla parameter in it.

    The state (batch, nx), float64, is the base controller's beside the actor's.
    """

    name = "youla"

    def __init__(self, controller: BaseController, actor: Actor) -> None:
        sizes = controller.observation_space.shape[0], controller.action_space.shape[0]
        super().__init__(sizes[0], controller.state_size + actor.cell.state_size, sizes[1])
        self.controller = controller
        self.actor = actor

    def explicit(self) -> Any:
        """Return the arrays of the actor's cell."""
        return self.actor.cell.explicit()

    def step(self, explicit: Any, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (input to send (batch, m), next state) for an observation (batch, p + references)."""
        innovation, seen, hidden = self.before(input, state)
        actor = self.actor
        outputs, hidden = actor.cell.step(explicit, actor.body.scaling(actor.normalized(seen)), hidden)
        return self.after(innovation, actor.head(outputs), hidden, state)

    def before(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the innovation (batch, p), what the actor reads, and the actor's part of the state (batch, nx)."""
        innovation = self.controller.innovation(observation, state)
        # As the wrapper does, whose observations have the environment's number type.
        hidden = state[..., self.controller.state_size :].to(next(self.actor.parameters()).dtype)
        return innovation, self.controller.seen(innovation, observation), hidden

    def after(self, innovation: Tensor, youla: Tensor, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (input to send, next state) for a normalised Youla input (batch, m) and the actor's next part."""
        own = state[..., : self.controller.state_size]
        sent = self.controller.command(innovation, youla, own)
        _, own = self.controller.update(innovation, sent, own)
        return sent, torch.cat((own, hidden.to(own.dtype)), -1)

    def run(self, explicit: Any, inputs: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (outputs, final state), step by step: the observer needs each input before the next innovation."""
        return self.unroll(explicit, inputs, state, starts)

    def initial_state(self, batch_size: int) -> Tensor:
        """Return zeros (batch, nx) in float64."""
        return self.controller.A.new_zeros(batch_size, self.state_size, dtype=torch.float64)

    def as_actor(self) -> Actor:
        """Return the actor of the unwrapped environment: this cell between maps that change nothing."""
        scaling = Scaling(self.input_size).double()
        return YoulaActor(ScaledCell(self, scaling), MeanHead(self.output_size, self.output_size, linear=False))

    def options(self) -> dict[str, Any]:
        """Return what the actor's cell is made of."""
        return {"cell": self.actor.cell.config()}

    def zero_output_(self) -> YoulaCell:
        """Let the Youla input be zero at first."""
        self.actor.cell.zero_output_()
        return self


class YoulaActor(Actor):
    """The actor of the unwrapped environment whose cell is a `YoulaCell`."""

    def deployed(self, observation_space: spaces.Space, action_space: spaces.Space) -> YoulaPolicy:
        """Return the Youla policy that this actor is the whole of, for the environment of its base controller."""
        return YoulaPolicy.of_cell(cast(YoulaCell, self.cell))


@dataclass
class Monitor:
    """What happened in the steps that `predict` was called for, since it was made or `reset`."""

    steps: int = 0
    region_exits: int = 0
    saturations: int = 0

    def count(self, outside: Tensor, saturated: Tensor) -> None:
        """Add one step of some environments, (batch,) bool each."""
        self.steps += len(outside)
        self.region_exits += int(outside.sum())
        self.saturations += int(saturated.sum())

    def reset(self) -> None:
        """Begin at zero."""
        self.steps = self.region_exits = self.saturations = 0

    def report(self) -> str:
        """Return one sentence."""
        return (
            f"Of {self.steps} steps the estimate was outside the region in {self.region_exits}, and an input at "
            f"its limit in {self.saturations}."
        )


class YoulaPolicy(DeployedPolicy):
    """Observations of the unwrapped environment in, its actions out: what a policy trained in a YoulaWrapper does.

    Args:
        design, model: the base controller's gains, and the linear model they are for.
        policy: the Youla parameter: a `DeployedPolicy`, or what `deploy` makes one of, trained in the wrapper.
        observation_space, action_space: of the unwrapped environment.
        options: the wrapper's options.
        scope: what is known of the plant beside the model; None: nothing.

    `YoulaPolicy.of(env, policy)` takes all but the policy from a wrapped environment. Saved and loaded as every other
    policy (`save_policy`, `load_policy`). The state of `predict` is float64: the observer's, then the policy's own.
    `monitor` counts region exits and saturated inputs while `predict` is called.

    Raises:
        ShapeError: the policy does not read the innovation (and reference) alone, or gives something else than a
        Youla input. InvalidValueError: as `BaseController`, or the policy cannot be deployed.
    """

    kind: ClassVar[str] = "youla_policy"
    cell: YoulaCell

    def __init__(
        self,
        design: LQGDesign,
        model: LinearModel,
        policy: Any,
        *,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        options: YoulaOptions | None = None,
        scope: Scope | None = None,
    ) -> None:
        inner = policy if isinstance(policy, DeployedPolicy) else face.deploy(policy)
        controller = BaseController(model, design, observation_space, action_space, options)
        _check_reads(inner, controller)
        super().__init__(
            YoulaCell(controller, inner.actor).as_actor(), controller.observation_space, controller.action_space
        )
        self.policy = inner
        self.monitor = Monitor()
        self.controller = controller
        self.scope = (Scope("linear") if model.exact else Scope()) if scope is None else scope

    @classmethod
    def of(cls, env: Any, policy: Any) -> YoulaPolicy:
        """Return the policy for the environment inside the Youla wrapper that `env` wears."""
        return cls.around(youla_base(env), policy)

    @classmethod
    def around(cls, base: BaseController, policy: Any) -> YoulaPolicy:
        """Return the policy of a base controller, of its design, options and scope, with a Youla parameter.

        Raises InvalidValueError for one whose observer is no linear one: a policy would need the plant's equations.
        """
        if type(base) is not BaseController:
            raise InvalidValueError(
                "The Youla wrapper's observer is not the linear one: it holds the plant's equations, or a model of its "
                "own, and cannot be part of a policy; run the policy inside the wrapper."
            )
        return cls(
            base.design,
            base.model,
            policy,
            observation_space=base.observation_space,
            action_space=base.action_space,
            options=base.options,
            scope=base.scope,
        )

    @classmethod
    def of_cell(cls, cell: YoulaCell) -> YoulaPolicy:
        """Return the policy of a base controller with the actor of a Youla parameter in it."""
        base = cell.controller
        return cls.around(base, DeployedPolicy(cell.actor, base.youla_observation_space, base.youla_action_space))

    @property
    def model(self) -> LinearModel:
        """The linear model."""
        return self.controller.model

    @property
    def design(self) -> LQGDesign:
        """The base controller's gains."""
        return self.controller.design

    def to(self, device: str | torch.device) -> YoulaPolicy:
        """Return this policy after moving it; raises DeviceError."""
        super().to(device)
        self.policy.to(device)
        return self

    def peak(self, weights: Sequence[float] | None = None) -> dict[str, Any] | None:
        """Return None: what is judged is a closed loop, not what an action does with an observation."""
        return None

    def certificate(self, weights: Sequence[float] | None = None) -> Certificate:
        """Return the certificate of the closed loop: plant's linear model, observer, feedback and Youla parameter.

        That of the Youla parameter alone is `policy.certificate()`. Raises NotCertifiableError where nothing is proven,
        InvalidValueError where `weights` are given: the loop's signals have the design's.
        """
        if weights is not None:
            raise InvalidValueError(
                "weights were given for the closed loop of a Youla policy, whose disturbance and "
                "performance have the units of its design; expected none."
            )
        return certify_youla(self)

    def matrices(self) -> Any:
        """Raise NotCertifiableError: its matrices hold an observer, and are those of `certificate`."""
        raise NotCertifiableError("A Youla policy holds an observer beside its cell; its own bound is that of `youla`.")

    def running(self) -> RunningPolicy:
        """Return the policy in float64, and the loops that it closes; inside it clips the Youla input."""
        return running_youla(self)

    def running_arrays(self) -> dict[str, Any]:
        """Return the arrays that run, the base controller's too."""
        return loop_arrays(self)

    def searched(self) -> Any:
        """Return the closed loop as a cell, which is what the certificate's gain is of; None if it cannot be run so."""
        return searched_loop(self)

    def follow(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the actions, and what gives the next state for the actions that the observer is told were applied."""
        innovation, seen, hidden = self.cell.before(observation, state)
        youla, hidden = self.policy.actor.step(seen, hidden)
        base = self.controller
        own = state[..., : base.state_size]

        def after(applied: Tensor) -> Tensor:
            return torch.cat((base.update(innovation, applied.to(own.dtype), own)[1], hidden.to(own.dtype)), -1)

        return base.command(innovation, youla, own), after

    def monitored(self, observations: Tensor, actions: Tensor, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Return for each episode how many steps had an estimate outside the region, and an input at its limit.

        Exits are left out where the policy states no region. The observer runs again over what it read and sent, so
        this is what the policy itself would have counted.
        """
        base = self.controller
        state = base.initial_state(observations.shape[1])
        last = torch.as_tensor(lengths, device=state.device)
        exits, saturations = torch.zeros_like(last), torch.zeros_like(last)
        for t, (observation, action) in enumerate(zip(observations, actions, strict=True)):
            innovation, sent = base.innovation(observation, state), action.to(base.A.dtype)
            exits += base.outside(base.estimate(innovation, state)) & (t < last)
            saturations += base.saturated(sent) & (t < last)
            _, state = base.update(innovation, sent, state)
        counted = {"region_exits": exits} if base.options.region else {}
        return {name: count.cpu().numpy() for name, count in (counted | {"saturations": saturations}).items()}

    def parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what describes the policy in JSON, and its tensors by name: what `from_parts` makes it of."""
        inner, weights = self.policy.parts()
        content: dict[str, Any] = {"policy": inner}
        tensors = {f"policy.{name}": tensor for name, tensor in weights.items()}
        records = {
            "model": self.model,
            "design": self.design,
            "options": self.controller.options,
            "scope": self.scope,
        }
        for name, record in records.items():
            content[name], numbers = to_parts(record, name)
            tensors |= numbers
        content["observation_space"] = space_to_json(self.observation_space)
        content["action_space"] = space_to_json(self.action_space)
        runs, arrays = self._base()
        content["runtime"] = {"base": runs}
        return content, tensors | arrays

    def _base(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what the base controller runs with: in words and names of arrays, and those by name."""
        base, options = self.controller, self.controller.options
        stored = {name: f"{PREFIX}base.{name}" for name in BASE_ARRAYS}
        arrays = {stored[name]: getattr(base, name).detach().cpu().contiguous().clone() for name in BASE_ARRAYS}
        kinds = {"numbers": str(base.numbers), "inputs": str(base.inputs)}
        words = {name: kind.removeprefix("torch.") for name, kind in kinds.items()}
        return {"arrays": stored, "delay": options.delay, "quantum": options.quantum, **words}, arrays

    @classmethod
    def from_parts(cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path) -> YoulaPolicy:
        """Return the policy of which `parts` made the parts, tensors of any shapes; raises as `DeployedPolicy`'s."""
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(("policy.", PREFIX))}
        weights = {
            name.removeprefix("policy."): tensor for name, tensor in tensors.items() if name.startswith("policy.")
        }
        policy = cls(
            from_parts(LQGDesign, content["design"], own, "design"),
            from_parts(LinearModel, content["model"], own, "model"),
            DeployedPolicy.from_parts(content["policy"], weights, source),
            observation_space=space_from_json(content["observation_space"]),
            action_space=space_from_json(content["action_space"]),
            options=from_parts(YoulaOptions, content["options"], own, "options"),
            scope=from_parts(Scope, content["scope"], own, "scope") if "scope" in content else None,
        )
        if "runtime" in content:
            runs, arrays = policy._base()
            check_arrays(arrays, tensors, {"base": runs}, content["runtime"], source)
        return policy

    @property
    def _double(self) -> bool:
        return True

    def _act(self, observations: Tensor, state: Tensor, deterministic: bool) -> tuple[np.ndarray, Tensor]:
        cell, inner = self.cell, self.policy
        innovation, seen, hidden = cell.before(observations, state)
        # Through the same function as in the wrapper, so that the actions agree in every bit, exploration too.
        numbers, hidden = inner.actor.step(seen, hidden)
        youla = choose(inner.action_space, numbers, inner.log_std, deterministic)
        own = state[..., : self.controller.state_size]
        outside = self.controller.outside(self.controller.estimate(innovation, own))
        sent, state = cell.after(innovation, torch.as_tensor(youla, device=state.device), hidden, state)
        self.monitor.count(outside, self.controller.saturated(sent))
        return sent.cpu().numpy().astype(self.action_space.dtype), state


def _check_reads(policy: DeployedPolicy, controller: BaseController) -> None:
    for what, given, wanted in (
        ("reads", policy.observation_space, controller.youla_observation_space),
        ("gives", policy.action_space, controller.youla_action_space),
    ):
        if given.shape != wanted.shape:
            raise ShapeError(
                f"The policy {what} {given}; expected {wanted}, the normalised innovation (and reference) in and the "
                "normalised Youla input out. A policy that also reads outputs or estimates closes a loop that nothing "
                "guarantees: train it in a YoulaWrapper."
            )
    trained, allowed = cast(spaces.Box, policy.action_space).high, controller.youla_action_space.high
    if not np.array_equal(trained, allowed):
        raise InvalidValueError(
            f"The policy was trained with Youla inputs up to {trained}; these options allow {allowed}. Give the "
            "options of its wrapper."
        )
