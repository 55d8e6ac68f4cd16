"""A `RecurrentCellPolicy` run on tensors (time, env, ...): step by step for a rollout, and over whole sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from robust_policies import checks
from robust_policies.errors import InvalidValueError
from robust_policies.networks.baselines import GRUCell, LSTMCell
from robust_policies.networks.cell import Cell, FixedStep
from robust_policies.networks.perceptron import layers
from robust_policies.policies import RecurrentCellPolicy
from robust_policies.policies.actor import ScaledCell
from robust_policies.train.ppo.buffer import Minibatch
from robust_policies.train.ppo.losses import Parts, Terms, clipped_loss, gaussian_log_prob, gaussian_loss
from robust_policies.train.run.ranks import ALONE, Ranks

_ROWS_AT_ONCE = 2**11


class Arrays(NamedTuple):
    """The explicit arrays of actor and critic; None where the critic has no cell."""

    actor: Any
    critic: Any


class States(NamedTuple):
    """Actor's and critic's states, (env, nx) each; of width 0 where there is none."""

    actor: Tensor
    critic: Tensor


def unsupported(policy: Any) -> str | None:
    """Return why `policy` cannot be run on tensors here, None if it can."""
    if not isinstance(policy, RecurrentCellPolicy):
        return f"the policy is a {type(policy).__name__}, not a RecurrentCellPolicy"
    if policy.use_sde:
        return "use_sde=True draws its noise in the policy"
    if policy.features_extractor_class is not FlattenExtractor:
        return f"the policy reads its observations through a {policy.features_extractor_class.__name__}"
    if not isinstance(policy.observation_space, spaces.Box) or len(policy.observation_space.shape) != 1:
        return f"the observation space is {checks.space_text(policy.observation_space)}, not a Box of vectors"
    if not isinstance(policy.action_space, spaces.Box | spaces.Discrete):
        return f"the action space is {checks.space_text(policy.action_space)}, not a Box or Discrete"
    return None


class TensorPolicy:
    """The parts of a policy in the order in which training on tensors needs them.

    Memoryless critics see a rollout at once, after its last step; a critic with memory steps beside the actor, because
    the value of an episode's last observation depends on its state there.
    """

    def __init__(self, policy: RecurrentCellPolicy, ranks: Ranks = ALONE) -> None:
        self.policy = policy
        self.actor: ScaledCell = policy.lstm_actor
        self.critic: ScaledCell | None = policy.lstm_critic
        self.shared = policy.lstm_actor.with_inputs
        self.gaussian = isinstance(policy.action_dist, DiagGaussianDistribution)
        # Choices from 0 on. Elsewhere than on a CPU a distribution of PyTorch's would wait to check its arguments, and
        # over several ranks all have to draw the same numbers.
        plain = isinstance(policy.action_space, spaces.Discrete) and int(policy.action_space.start) == 0
        self.choices = plain and (policy.device.type != "cpu" or not ranks.alone)
        if not ranks.alone and not (plain or self.gaussian):
            raise InvalidValueError(
                f"{ranks.size} ranks draw actions from a Gaussian or choices from 0 on, and the policy's are "
                f"{type(policy.action_dist).__name__} in {checks.space_text(policy.action_space)}; start it without "
                "torchrun."
            )
        parts = (self.actor.cell, None if self.critic is None else self.critic.cell)
        # Elsewhere than on a CPU these would ask the device in every minibatch where episodes begin.
        self.cut = policy.device.type != "cpu" and any(isinstance(one, LSTMCell | GRUCell) for one in parts)
        self.state_sizes = (
            self.actor.cell.state_size,
            0 if self.critic is None else self.critic.cell.state_size,
        )

    def initial_states(self, n_envs: int) -> States:
        """Return the states (env, nx) of episodes that begin."""
        parameter = next(self.policy.parameters())
        actor, critic = (parameter.new_zeros(n_envs, size) for size in self.state_sizes)
        return States(actor, critic)

    def values(self, latent: Tensor) -> Tensor:
        """Return the values (...) of the critic's latents (..., width)."""
        return layers((*self.policy.mlp_extractor.value_net, self.policy.value_net), latent).squeeze(-1)

    def arrays(self) -> Arrays:
        """Return the explicit arrays of the present weights."""
        return Arrays(self.actor.explicit(), None if self.critic is None else self.critic.explicit())

    def loss(
        self, batch: Minibatch, arrays: Arrays, terms: Terms, begins: Sequence[int] | None = None
    ) -> tuple[Tensor, Parts, Tensor]:
        """Return the loss () of sequences, its parts, and the mean entropy (), without a gradient.

        `begins` are the steps in which episodes of the rollout begin, where they are known.
        """
        observations, starts = batch.observations, batch.starts
        outputs = _sequence(self.actor, arrays.actor, observations, batch.actor_state, starts, begins)
        if self.critic is not None:
            latent = _sequence(self.critic, arrays.critic, observations, batch.critic_state, starts, begins)
        elif self.shared:
            latent = torch.cat((outputs.detach(), self.actor.scaling(batch.observations)), dim=-1)
        else:
            # There is a critic where actor and critic share nothing.
            latent = self.policy.critic(batch.observations)  # pyright: ignore[reportOptionalCall]
        values = self.values(latent)
        if self.gaussian:
            return gaussian_loss(values, self.policy.action_net(outputs), self.policy.log_std, batch, terms)
        if self.choices:
            every = self.policy.action_net(outputs).log_softmax(-1)
            loss, parts = clipped_loss(values, chosen(every, batch.actions), batch, *terms[:3])
            entropy = -(every * every.exp()).sum(-1).mean()
            return loss - terms.entropy * entropy, parts, entropy.detach()
        distribution = self.policy._get_action_dist_from_latent(outputs.flatten(0, 1))
        log_probs = distribution.log_prob(batch.actions.flatten(0, 1)).view_as(values)
        entropy = distribution.entropy()
        entropy = -log_probs.mean() if entropy is None else entropy.mean()
        loss, parts = clipped_loss(values, log_probs, batch, *terms[:3])
        return loss - terms.entropy * entropy, parts, entropy.detach()


def chosen(log_probs: Tensor, actions: Tensor) -> Tensor:
    """Return the log-probabilities (...) of actions (...) int64 among those of all, (..., n)."""
    return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def _sequence(
    body: ScaledCell, arrays: Any, observations: Tensor, state: Tensor, starts: Tensor, begins: Sequence[int] | None
) -> Tensor:
    inputs, cell = body.scaling(observations), body.cell
    if begins is not None and isinstance(cell, LSTMCell | GRUCell):
        return cell.run_between(arrays, inputs, state, starts, begins)[0]
    return cell.run(arrays, inputs, state, starts if cell.state_size else None)[0]


def _stepping(cell: Cell, explicit: Any) -> Callable[[Tensor, Tensor], Any]:
    """Return (input (env, nu), state (env, nx)) -> (output, next state, ...) with fixed arrays, as `run` rounds it."""
    fixed = cell.fixed_step(explicit)
    return fixed.forward if isinstance(fixed, FixedStep) else fixed


class Apart:
    """Arrays cut off from the parameters that they come from, so that gradients of many pieces are summed there first.

    Attributes:
        arrays: the same values, as leaves.
    """

    def __init__(self, arrays: Arrays) -> None:
        found, kind = tree_flatten(arrays)
        leaves = [v.detach().requires_grad_(v.requires_grad) if isinstance(v, Tensor) else v for v in found]
        self._joints = [(v, leaf) for v, leaf in zip(found, leaves, strict=True) if getattr(v, "requires_grad", False)]
        self.arrays: Arrays = tree_unflatten(leaves, kind)

    def backward(self) -> None:
        """Hand the sums on to the parameters."""
        reached = [(value, leaf.grad) for value, leaf in self._joints if leaf.grad is not None]
        if reached:
            torch.autograd.backward([value for value, _ in reached], [slope for _, slope in reached])


class RolloutPolicy:
    """A policy whose weights stay as they are for one rollout, with `TensorPolicy.arrays` of them (None: made here)."""

    def __init__(
        self, tensors: TensorPolicy, states: States, n_steps: int, ranks: Ranks = ALONE, arrays: Arrays | None = None
    ) -> None:
        self.tensors, self.policy, self.ranks = tensors, tensors.policy, ranks
        self.actor, self.critic = tensors.actor, tensors.critic
        arrays = tensors.arrays() if arrays is None else arrays
        self._act = _stepping(self.actor.cell, arrays.actor)
        self._judge = None if self.critic is None else _stepping(self.critic.cell, arrays.critic)
        self.states = states
        self.latents: list[Tensor] = []
        self._values: list[Tensor] = []
        # In pieces: the hidden layers of all steps at once would take many times the rollout's memory.
        self._length = max(1, _ROWS_AT_ONCE // len(states.actor))
        self.log_probs: list[Tensor] = []
        self.noise = self.deviation = None
        if tensors.gaussian:
            size = (n_steps, ranks.size * len(states.actor), self.policy.log_std.shape[0])
            self.noise = ranks.mine(torch.randn(size, device=states.actor.device, dtype=states.actor.dtype), 1)
            self.deviation = self.policy.log_std.exp()

    def act(self, observations: Tensor, t: int) -> Tensor:
        """Return sampled actions (env, na) for step t's observations (env, nu), and move the states one step on."""
        inputs = self.actor.scaling(observations)
        outputs, actor_state = self._act(inputs, self.states.actor)[:2]
        critic_state = self.states.critic
        if self.critic is not None and self._judge is not None:
            latent, critic_state = self._judge(self.critic.scaling(observations), critic_state)[:2]
            self._keep(latent)
        elif self.tensors.shared:
            self._keep(torch.cat((outputs, inputs), dim=-1))
        self.states = States(actor_state, critic_state)
        if self.noise is not None and self.deviation is not None:
            return torch.addcmul(self.policy.action_net(outputs), self.noise[t], self.deviation)
        if self.tensors.choices:
            every = self.policy.action_net(outputs).log_softmax(-1)
            # The largest of log-probabilities plus Gumbel's numbers has these probabilities; NaN is found in `loss`.
            drawn = every.new_empty(self.ranks.size * len(every), every.shape[1]).exponential_()
            actions = (every - self.ranks.mine(drawn, 0).log()).argmax(-1)
            self.log_probs.append(chosen(every, actions))
            return actions
        distribution = self.policy._get_action_dist_from_latent(outputs)
        actions = distribution.get_actions()
        self.log_probs.append(distribution.log_prob(actions))
        return actions

    def begin(self, starting: Tensor) -> None:
        """Put the states of the environments that `starting` (env,) bool marks back to the beginning."""
        mask = starting.unsqueeze(-1)
        self.states = States(*(state.masked_fill(mask, 0.0) for state in self.states))

    def latent(self, observations: Tensor) -> Tensor:
        """Return the critic's latent (env, width) of observations that follow the step just taken."""
        if self.critic is not None and self._judge is not None:
            return self._judge(self.critic.scaling(observations), self.states.critic)[0]
        if self.tensors.shared:
            inputs = self.actor.scaling(observations)
            outputs = self._act(inputs, self.states.actor)[0]
            return torch.cat((outputs, inputs), dim=-1)
        # As above.
        return self.policy.critic(observations)  # pyright: ignore[reportOptionalCall]

    def write_values(self, observations: Tensor, values: Tensor) -> None:
        """Write the values (time, env) of the rollout's observations (time, env, nu), after its last step."""
        self._value_latents()
        if self._values:
            torch.cat(self._values, out=values)
            return
        for piece, found in zip(observations.split(self._length), values.split(self._length), strict=True):
            found.copy_(self.tensors.values(self.latent(piece)))

    def _keep(self, latent: Tensor) -> None:
        self.latents.append(latent)
        if len(self.latents) == self._length:
            self._value_latents()

    def _value_latents(self) -> None:
        if self.latents:
            self._values.append(self.tensors.values(torch.stack(self.latents)))
            self.latents.clear()

    def all_log_probs(self) -> Tensor:
        """Return the log-probabilities (time, env) of the sampled actions, after the rollout's last step."""
        if self.noise is not None:
            return gaussian_log_prob(self.noise, self.policy.log_std)
        return torch.stack(self.log_probs)
