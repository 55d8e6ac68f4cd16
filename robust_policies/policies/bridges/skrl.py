"""Cells as recurrent models of skrl, and its recurrent PPO with the states that belong to its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.policies.actor import FrozenNormalizer
from robust_policies.policies.bridges.model import CellModel, CellOptions, copied
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.sb3.reading import reads_raw

try:
    from skrl.agents.torch.ppo import PPO_RNN
    from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
    from skrl.resources.preprocessors.torch import RunningStandardScaler

    from robust_policies.envs.bridges.skrl import SkrlWrapper
except ImportError as error:
    raise InvalidValueError("SkrlCellPolicy needs skrl; install it with: pip install skrl.") from error

READS = ("observations", "states")


class _SkrlCell(Model, CellModel):
    """Scaled input -> cell -> linear head (or none), by skrl's contract for recurrent models.

    In a rollout each call is one step (num_envs, n) from the states (1, n, nx) that the agent keeps. In training
    a minibatch holds whole sequences of `sequence_length` steps, one after the other: each runs from the state that is
    stored with its first step, and from zero after every end of an episode in it.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        state_space: spaces.Space | None,
        outputs: int,
        reads: str,
        num_envs: int,
        sequence_length: int,
        device: str | torch.device | None,
        options: dict[str, Any],
        acts: bool,
    ) -> None:
        if reads not in READS:
            raise UnknownNameError.among("input", reads, READS)
        read = observation_space if reads == "observations" else state_space
        for name, space in ((reads[:-1] + "_space", read), ("action_space", action_space)):
            if not isinstance(space, spaces.Box):
                raise InvalidValueError(f"{name} is {space}; expected a Box: cells read and give numbers.")
        Model.__init__(
            self,
            observation_space=observation_space,
            state_space=state_space,
            action_space=action_space,
            device=device,
        )
        self.reads = reads
        self.num_envs = checks.positive_int("num_envs", num_envs)
        self.sequence_length = checks.positive_int("sequence_length", sequence_length)
        inputs = int(spaces.flatdim(read))
        self.body, self.head = CellOptions.of(options).build(inputs, outputs, action_space if acts else None)

    def get_specification(self) -> dict[str, Any]:
        """Return skrl's description of the state (1, n, nx), nothing for a cell without one."""
        if self.cell.state_size == 0:
            return {}
        sizes = [(1, self.num_envs, self.cell.state_size)]
        return {"rnn": {"sequence_length": self.sequence_length, "sizes": sizes}}

    def outputs(self, inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Return what follows the head (batch, na), and the states after the step as skrl keeps them.

        Raises InvalidValueError where sequences do not fit into a minibatch.
        """
        observations = inputs[self.reads]
        if self.cell.state_size == 0:
            outputs, _ = self.body.step(observations, self.cell.initial_state(len(observations)))
            return self.head(outputs), {}
        (stored,) = inputs["rnn"]
        if not self.training:
            outputs, state = self.body.step(observations, stored[0])
            return self.head(outputs), {"rnn": [state.unsqueeze(0)]}
        length = self.sequence_length
        if len(observations) % length:
            raise InvalidValueError(
                f"A minibatch has {len(observations)} steps, no multiple of sequence_length {length}; "
                f"let rollouts be one, and num_envs * rollouts / {length} a multiple of mini_batches."
            )
        sequences = observations.unflatten(0, (-1, length)).swapaxes(0, 1)
        state = stored[0].unflatten(0, (-1, length))[:, 0]
        ended = (inputs["terminated"] | inputs["truncated"]).reshape(-1, length).swapaxes(0, 1)
        starts = torch.cat((torch.zeros_like(ended[:1]), ended[:-1]))
        outputs, state = self.body.run(sequences, state, starts if bool(starts.any()) else None)
        return self.head(outputs).swapaxes(0, 1).flatten(0, 1), {"rnn": [state.unsqueeze(0)]}


class SkrlCellPolicy(GaussianMixin, _SkrlCell):
    """A cell as skrl's stochastic policy: its output is the mean action, the log-deviation a free vector.

    Args:
        observation_space, action_space: Boxes, the environment's.
        num_envs: as many as step together.
        sequence_length: steps of a training sequence; it divides the agent's `rollouts`.
        state_space: of the environment, where the critic reads it.
        device: where it runs.
        log_std: at first, of each action.
        clip_mean_actions, clip_log_std, min_log_std, max_log_std: as skrl's GaussianMixin has them.
        options: `cell`, `cell_kwargs`, `cell_output_size`, `observation_scale`, `observation_offset`, `action_scale`,
            `action_offset`, `zero_init`, as `RecurrentCellPolicy` has them.

    Raises:
        InvalidValueError, UnknownNameError, ShapeError: an option is wrong; the message says which and why.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        num_envs: int,
        sequence_length: int = 16,
        *,
        state_space: spaces.Space | None = None,
        device: str | torch.device | None = None,
        log_std: float = 0.0,
        clip_mean_actions: bool = False,
        clip_log_std: bool = True,
        min_log_std: float = -20.0,
        max_log_std: float = 2.0,
        **options: Any,
    ) -> None:
        size = int(spaces.flatdim(action_space)) if isinstance(action_space, spaces.Box) else 1
        spaces_and_size = observation_space, action_space, state_space, size
        _SkrlCell.__init__(self, *spaces_and_size, "observations", num_envs, sequence_length, device, options, True)
        GaussianMixin.__init__(
            self,
            clip_mean_actions=clip_mean_actions,
            clip_log_std=clip_log_std,
            min_log_std=min_log_std,
            max_log_std=max_log_std,
        )
        self.log_std = nn.Parameter(torch.full((size,), checks.finite_float("log_std", log_std)))

    # skrl's mixin passes the role by position, its base class declares it by name.
    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Tensor, dict[str, Any]]:  # pyright: ignore
        """Return the mean actions (batch, na), the log-deviation and the states after the step."""
        mean, states = self.outputs(inputs)
        return mean, {"log_std": self.log_std, **states}

    def deployed(self, owner: Any = None, env: Any = None) -> DeployedPolicy:
        """Return a copy, on the CPU, that runs without skrl; the agent's RunningStandardScaler is frozen into it.

        Args:
            owner: the agent that has the model, whose preprocessor of observations counts.
            env: the environment it acts in; only of a `SkrlWrapper` it is known what the policy reads.

        Raises:
            InvalidValueError: observations go through another preprocessor.
        """
        modules = getattr(owner, "checkpoint_modules", {})
        actor = copied(self.body, self.head, _frozen(modules.get("observation_preprocessor")))
        log_std = self.log_std.detach().cpu()
        if self._g_clip_log_std:
            log_std = log_std.clamp(self._g_min_log_std, self._g_max_log_std)
        raw = isinstance(env, SkrlWrapper) and reads_raw(env._env)
        reads, acts = self.observation_space, self.action_space
        assert reads is not None and acts is not None  # refused above
        return DeployedPolicy(actor, reads, acts, log_std, raw=raw)


class SkrlCellValue(DeterministicMixin, _SkrlCell):
    """A cell as skrl's critic, one number a step.

    Args:
        observation_space, action_space, num_envs, sequence_length, state_space, device: as `SkrlCellPolicy` has them.
        reads: "observations", or "states" for a critic that knows more than the actor.
        options: as there; those of the action scale the value.

    Raises:
        InvalidValueError, UnknownNameError, ShapeError: an option is wrong; the message says which and why.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        num_envs: int,
        sequence_length: int = 16,
        *,
        reads: str = "observations",
        state_space: spaces.Space | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> None:
        spaces_and_size = observation_space, action_space, state_space, 1
        _SkrlCell.__init__(self, *spaces_and_size, reads, num_envs, sequence_length, device, options, False)
        DeterministicMixin.__init__(self)

    # As above.
    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Tensor, dict[str, Any]]:  # pyright: ignore
        """Return the values (batch, 1), and the states after the step."""
        return self.outputs(inputs)

    def deployed(self, owner: Any = None, env: Any = None) -> DeployedPolicy:
        """Refuse: raises InvalidValueError, for a critic does not act."""
        raise InvalidValueError("This model is a critic; deploy the policy.")


class SkrlPPO(PPO_RNN):
    """skrl's PPO_RNN, with two things as its own PPO without memory and its documentation have them.

    A step is stored with the state before it. PPO_RNN of skrl 2.1.1 stores the policy's state after it, so sequences
    begin one step late and the first ratio of an update is not 1. And with `time_limit_bootstrap` an advantage ends at
    a time limit, whose value it already has; there it goes on into the next episode. All else is skrl's.
    """

    def act(
        self, observations: Tensor, states: Tensor | None, *, timestep: int, timesteps: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return actions (n, na) for observations (n, nu) and states, and what the policy says of them."""
        self._rnn_final_states = dict(self._rnn_final_states)
        return super().act(observations, states, timestep=timestep, timesteps=timesteps)

    def record_transition(self, *, terminated: Tensor, truncated: Tensor, **transition: Any) -> None:
        """Record a step of all environments: terminated and truncated (n, 1), and the rest as skrl has it."""
        ended = terminated | truncated if self.cfg.time_limit_bootstrap else terminated
        super().record_transition(terminated=ended, truncated=truncated, **transition)


def _frozen(preprocessor: Any) -> FrozenNormalizer | None:
    """Return the present statistics of an agent's preprocessor of observations, None for none."""
    if preprocessor is None:
        return None
    if type(preprocessor) is not RunningStandardScaler:
        raise InvalidValueError(
            f"Observations go through a {type(preprocessor).__name__}; expected skrl's RunningStandardScaler, or none."
        )
    std = preprocessor.running_variance.cpu().sqrt() + preprocessor.epsilon
    return FrozenNormalizer(preprocessor.running_mean.cpu(), std, preprocessor.clip_threshold)
