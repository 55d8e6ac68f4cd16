"""A batch of environments that end one by one, the checks that a policy fits them, and its steps in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from robust_policies.envs.batch import Environment, make_batch, name_of, time_limit
from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.errors import DivergedError, InvalidValueError, ShapeError
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.frozen import FrozenActor
from robust_policies.policies.observations import encode
from robust_policies.policies.spaces import different, given, short


class Task:
    """`count` environments of one kind whose observations are float32 tensors on one device.

    With `precise`, observations that are float64 stay so: for a policy that subtracts an offset from them.

    Attributes:
        name: how messages call them.
        torch_env: the innermost environment if it is this package's, else None.
        limit: the number of steps an episode can last, None if the environment does not say.
    """

    def __init__(
        self,
        env: Environment,
        count: int,
        kwargs: Mapping[str, Any] | None = None,
        perturbations: Any = (),
        device: torch.device | str = "cpu",
        precise: bool = False,
    ) -> None:
        self.precise = precise
        self.name, self.device = name_of(env), torch.device(device)
        self.env: Any = make_batch(
            env, count, kwargs, perturbations, autoreset=AutoresetMode.DISABLED, device=self.device
        )
        inner = self.env.unwrapped
        self.torch_env = inner if isinstance(inner, TorchVectorEnv) else None
        if self.torch_env is not None:
            # Of an actor's numbers those that are not finite are zeros.
            self.torch_env.trusts_actions = True
        self.limit = time_limit(self.env)
        self.space, self.action_space = self.env.single_observation_space, self.env.single_action_space
        self.count = count

    def check_fit(self, policy: DeployedPolicy) -> None:
        """Raise ShapeError if the policy cannot act here."""
        pairs = {
            "observations": (self.env.single_observation_space, policy.observation_space),
            "actions": (self.env.single_action_space, policy.action_space),
        }
        for name, (here, trained) in pairs.items():
            if different(here, trained):
                raise ShapeError(
                    f"{self.name} has {name} in a {short(here)}; the policy was trained for a {short(trained)}."
                )
        # Entries of a Dict are read in the policy's order, whatever the environment's.
        self.space = policy.observation_space

    def reset(self, seeds: list[int]) -> Tensor:
        """Return the first observations (count, nu)."""
        return self._flat(self.env.reset(seed=seeds)[0])

    def step(self, actions: Tensor, ended: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return (observations, rewards float64, newly ended); environments in `ended` (count,) are reset first.

        `actions` is (count, k), numbers or choices; `ended` is None where none has.
        """
        if ended is not None:
            # Both contracts refuse to step an ended episode; its new one is never counted.
            self.env.reset(options={"reset_mask": ended.cpu().numpy()})
        sent: Any = actions
        if self.torch_env is None or not isinstance(self.action_space, spaces.Box):
            sent = given(self.action_space, actions)
        if self.torch_env is None:
            sent = sent.cpu().numpy().astype(self.action_space.dtype, copy=False)
        observation, reward, terminated, truncated, _ = self.env.step(sent)
        reward = torch.as_tensor(reward, device=self.device).double()
        done = torch.as_tensor(terminated, device=self.device) | torch.as_tensor(truncated, device=self.device)
        return self._flat(observation), reward, done

    def scale(self, name: str, factors: Tensor) -> None:
        """Multiply a physical parameter by `factors` (count,); raises InvalidValueError, UnknownNameError."""
        if self.torch_env is None:
            raise InvalidValueError(
                f"Factors of {name} were given for an environment of another package; use DynamicsShift around it."
            )
        nominal = self.torch_env.params[name]
        each = factors.to(nominal).reshape(-1, *(1,) * nominal.ndim)
        self.torch_env.params[name] = each * nominal

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def _flat(self, observation: Any) -> Tensor:
        if not isinstance(self.space, spaces.Box):
            return encode(self.space, observation, precise=self.precise).to(self.device)
        if not isinstance(observation, Tensor):
            observation = torch.as_tensor(np.asarray(observation))
        double = self.precise and observation.dtype == torch.float64
        kind = torch.float64 if double else torch.float32
        return observation.to(self.device, kind).reshape(self.count, -1)


class Step(NamedTuple):
    """One step of a batch: what there was, and whose episode it belongs to.

    observation, perturbed: (batch, nu), of the environment and as the policy read it. action: (batch, k) as sent.
    reward: (batch,) float64. counted: (batch,) bool, the episode had not ended before. failed: (batch,) bool, so far.
    """

    observation: Tensor
    perturbed: Tensor
    action: Tensor
    reward: Tensor
    counted: Tensor
    failed: Tensor


def steps_of(
    task: Task, actor: FrozenActor, seeds: list[int], limit: int, perturb: Callable[[int, Tensor, Tensor], Tensor]
) -> Iterator[Step]:
    """Yield the steps of one episode of each environment, until all have ended.

    Args:
        task: the environments, whose checks the policy has passed.
        actor: acts.
        seeds: of the environments.
        limit: of steps.
        perturb: (step, observations (batch, nu), state (batch, nx)) -> what the policy reads.

    An episode in which the policy's action or the environment's reward is not finite ends there and has failed. Raises
    DivergedError where all have.
    """
    observation = task.reset(seeds)
    hidden = actor.initial_state(task.count)
    ended = torch.zeros(task.count, dtype=torch.bool, device=observation.device)
    fresh, failed, counted, some = None, ended, ~ended, False
    for t in range(limit):
        perturbed = perturb(t, observation, hidden)
        if some:
            perturbed = torch.where(counted.unsqueeze(-1), perturbed, observation)
        with torch.no_grad():
            mean, hidden = actor.step(perturbed, hidden)
            action, finite = actor.applied(mean)
        # A failed or ended episode's environment goes on uncounted, whatever its state.
        hidden = torch.nan_to_num(hidden)
        following, reward, done = task.step(action, fresh)
        broken = counted & ~(finite & torch.isfinite(reward))
        stops = broken | done
        stopped = bool(stops.any())
        if stopped:
            failed = failed | broken
            if bool(failed.all()):
                raise DivergedError(
                    f"The policy's action in {task.name}, or the reward, is NaN or infinite in all episodes (step {t});"
                    " train the policy again."
                )
        yield Step(observation, perturbed, action, reward, counted, failed)
        observation, fresh = following, None
        if stopped:
            ended = ended | stops
            fresh, counted, some = (done if bool(done.any()) else None), ~ended, True
            if bool(ended.all()):
                return
