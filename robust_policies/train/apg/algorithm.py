"""Analytic policy gradients: the return of a short horizon, differentiated through the plant's own equations.

All environments run `horizon` steps under the present policy; the sum of the discounted rewards, and the value that
stands for what follows them, is differentiated with respect to the policy's parameters through every step of plant
and policy. Then plant and policy go on from where they are, cut off from the past. Without the value tail it is plain
truncated back-propagation through time, for tasks whose horizon is long enough to see what an action does.

Source: J. Xu et al., "Accelerated Policy Learning with Parallel Differentiable Simulation" (ICLR 2022), the
short-horizon actor-critic, here with a deterministic policy that has memory.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from robust_policies.envs import arguments
from robust_policies.envs.gradient import differentiable, transition
from robust_policies.envs.plant import Plant
from robust_policies.envs.plants.linear import LinearPlant
from robust_policies.errors import DivergedError, NotCertifiableError
from robust_policies.files.tensors import load_optimizer, optimizer_tensors, under
from robust_policies.networks.perceptron import regression
from robust_policies.networks.stepping import Steps, stepping
from robust_policies.policies.actor import Actor
from robust_policies.policies.adam import FusedAdam, forget_gradients, gradient_norm, take_step
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.train.actor import InwardClip
from robust_policies.train.apg.adversary import worst_observations
from robust_policies.train.apg.certified import CertifiedCost
from robust_policies.train.apg.critic import Experience, ValueTail, follow, lambda_returns, target_of
from robust_policies.train.apg.horizon import discount_factors, steps_at_limits, totals
from robust_policies.train.apg.world import World
from robust_policies.train.recipe.apg import ApgSection
from robust_policies.train.recipe.rates import rate_at
from robust_policies.train.run.guard import LinAlgError, diverged, in_rollout, in_weights, too_large

_EPISODES_SHOWN = 100


class AnalyticPolicyGradient:
    """Trains an actor on a differentiable plant.

    Args:
        plant: a task whose step is differentiable.
        actor: its parameters are trained in place.
        settings: see `ApgSection`.
        num_envs: n, environments side by side.
        seed: of start states, noise and the value's first weights.
        max_episode_steps: the time limit; None: the task's own.

    Attributes:
        certified: what is added for a certified_size, None without one.

    Raises:
        InvalidValueError: the plant is not differentiable.
    """

    def __init__(
        self,
        plant: Plant,
        actor: Actor,
        settings: ApgSection,
        num_envs: int,
        seed: int = 0,
        max_episode_steps: int | None = None,
    ) -> None:
        self.plant, self.actor, self.settings, self.num_envs = differentiable(plant), actor, settings, num_envs
        self.limit = max_episode_steps or plant.max_episode_steps
        self.device = next(actor.parameters()).device
        self.params = plant.prepare(plant.nominal(self.device))
        self.low, self.high = (
            torch.as_tensor(bound, dtype=torch.float64, device=self.device)
            for bound in (plant.action_low, plant.action_high)
        )
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.optimizer = FusedAdam(actor.parameters(), betas=(settings.betas[0], settings.betas[1]))
        self.value: ValueTail | None = None
        if settings.value_tail:
            size = plant.observation_size + plant.state_size
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                value = ValueTail(size, settings.critic_sizes, settings.critic).to(self.device)
            self.value, self.target = value, target_of(value)
            self.value_optimizer = FusedAdam(value.parameters())
        self.certified: CertifiedCost | None = None
        if settings.certified_size is not None:
            if not isinstance(plant, LinearPlant):
                raise NotCertifiableError(f"algorithm.certified_size needs a linear plant, not {plant.kind!r}.")
            self.certified = CertifiedCost(plant, actor, self.optimizer, settings)
        self.n_updates = 0
        self.episodes: deque[tuple[float, int]] = deque(maxlen=_EPISODES_SHOWN)
        self.world = self._spread(self.fresh(num_envs, self.generator))

    @property
    def steps_per_update(self) -> int:
        """Environment steps between two updates."""
        return self.num_envs * self.settings.horizon

    def fresh(self, count: int, generator: torch.Generator) -> World:
        """Return `count` environments at the start of an episode."""
        plant = self.plant
        uniform = torch.rand(count, plant.reset_size, generator=generator, dtype=torch.float64, device=self.device)
        state = plant.initial(uniform, self.params)
        noise = self._normal(generator, count, plant.measurement_noise_size)
        zeros = torch.zeros(count, dtype=torch.float64, device=self.device)
        observation = plant.observe(state, self.params, noise)
        return World(state, observation, self.actor.cell.initial_state(count), zeros.long(), zeros, zeros == 0.0)

    def update(self, remaining: float) -> dict[str, float]:
        """Return the scalars of one update: `horizon` steps, a step of the policy, and of the value.

        Raises:
            DivergedError: the objective or its gradient is NaN or infinite, and the policy as it was; or the policy is.
        """
        settings, parameters = self.settings, list(self.actor.parameters())
        clock = [time.perf_counter()]
        if self.certified is not None:
            self.certified.renew(self.n_updates)
        try:
            perturbed = None
            if settings.adversary is not None:
                perturbed = worst_observations(self, self.world, settings.adversary, remaining)
            objective, experience, world = self.rollout(self.world, perturbed)
        except LinAlgError as error:
            raise self._diverged(too_large(self.actor)) from error
        clock.append(time.perf_counter())
        forget_gradients(parameters)
        total, bound = -objective, {}
        if self.certified is not None:
            total, bound = self.certified.loss(total, remaining)
        total.backward()
        norm = gradient_norm(parameters, self.optimizer)
        loss, size = float(total.detach()), float(norm)
        if not (np.isfinite(loss) and np.isfinite(size)):
            raise self._diverged(self._cause(experience, loss, size))
        pace = 1.0 if self.certified is None else self.certified.pace
        rate = _set_rate(self.optimizer, settings.learning_rate, remaining, pace)
        take_step(self.optimizer, parameters, norm, settings.max_grad_norm)
        spoilt = in_weights(self.actor.state_dict())
        if spoilt:
            raise self._diverged(spoilt)
        self.world = world.detached()
        clock.append(time.perf_counter())
        found = {"train/loss": loss, "train/gradient_norm": size, "train/learning_rate": rate, **bound}
        if self.value is not None:
            found["train/value_loss"] = self._fit(self.value, experience, remaining)
        clock.append(time.perf_counter())
        self.n_updates += 1
        found |= {"rollout/step_reward_mean": float(experience.rewards.mean()), "train/n_updates": self.n_updates}
        names = ("time/rollout_seconds", "time/gradient_seconds", "time/value_seconds")
        return found | {name: after - before for name, before, after in zip(names, clock, clock[1:], strict=False)}

    def rollout(self, world: World, perturbed: Tensor | None = None) -> tuple[Tensor, Experience, World]:
        """Return the objective () of one horizon from `world`, what it says about values, and the world at its end.

        The objective is the mean over environments of the discounted rewards plus the discounted value at the
        horizon's end (and at time limits within it), divided by the number of steps. `perturbed` (horizon, n,
        observation_size) is added to what the policies observe.
        """
        plant, horizon = self.plant, self.settings.horizon
        explicit = self.actor.cell.explicit()
        process = self._noise(horizon, plant.process_noise_size)
        measurement = self._noise(horizon, plant.measurement_noise_size)
        explored = self._noise(horizon, plant.action_size) if self.settings.action_noise else None
        step = stepping(self.actor.cell, explicit, horizon, self.num_envs)
        self.optimizer.quick = isinstance(step, Steps)
        ahead = None
        last = int(world.elapsed.max()) + horizon
        if perturbed is None and self.value is None and not plant.observes_actions and last <= self.limit:
            outputs, memory = self._ahead(world, explicit, process, measurement)
            ahead, world = self._action(outputs, explored), world._replace(memory=memory)
        limits = steps_at_limits(world.elapsed, self.limit, horizon, plant.terminates)
        nobody = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        seen: list[tuple[Tensor, ...]] = []
        ends: dict[int, tuple[Tensor, Tensor]] = {}
        for t in range(horizon):
            action, memory = nobody if ahead is None else ahead[t], world.memory
            if ahead is None:
                observed = world.observation if perturbed is None else world.observation + perturbed[t]
                output, memory = step(self.inputs(observed), memory)
                action = self._action(output, _at(explored, t))
            state = plant.advance(world.state, action, self.params, _at(process, t))
            observation = plant.observe(state, self.params, _at(measurement, t))
            elapsed = world.elapsed + 1
            terminated = plant.terminated(state, self.params) if plant.terminates else nobody
            ended = terminated | (elapsed >= self.limit) if t in limits else terminated
            seen.append((world.state, action, state, terminated, ended))
            world = World(state, observation, memory, elapsed, world.gained, world.whole)
            if bool(ended.any()) if plant.terminates else t in limits:
                ends[t] = elapsed, ended & world.whole
                world = self._restarted(world, ended)
        before, actions, after, terminated, ended = map(torch.stack, zip(*seen, strict=True))
        rewards = plant.reward(before, actions, after, self.params).double()
        factors = discount_factors(ended, ends, self.settings.discount)
        total = (factors * rewards).sum(0)
        features = following = factors
        if self.value is not None:
            with torch.no_grad():
                features, following = self._features(before), self._features(after)
            # What follows the last step, and time limits before it.
            steps = [*(t for t in ends if t + 1 < horizon), horizon - 1]
            counts = ended[steps] & ~terminated[steps]
            counts[-1] = ~terminated[-1]
            values = torch.where(counts, self.target(self._features(after[steps])).double(), 0.0)
            total = total + (self.settings.discount * factors[steps] * values).sum(0)
        rewards = rewards.detach()
        gained, episodes = totals(world.gained, rewards, ended, ends)
        self.episodes.extend(episodes)
        experience = Experience(features, following, rewards.float(), terminated, ended, actions.detach())
        return total.mean() / horizon, experience, world._replace(gained=gained)

    def evaluate(self, episodes: int, seed: int) -> tuple[float, float]:
        """Return the mean return and length of `episodes` whole episodes that begin the same for the same seed."""
        generator = torch.Generator(self.device).manual_seed(seed)
        plant = self.plant
        with torch.no_grad():
            world = self.fresh(episodes, generator)
            explicit = self.actor.cell.explicit()
            running = torch.ones(episodes, dtype=torch.bool, device=self.device)
            length = torch.zeros(episodes, dtype=torch.float64, device=self.device)
            for _ in range(self.limit):
                output, memory = self.actor.cell.step(explicit, self.inputs(world.observation), world.memory)
                noises = (
                    self._normal(generator, episodes, size)
                    for size in (plant.process_noise_size, plant.measurement_noise_size)
                )
                after = transition(plant, world.state, self.actor.head(output), self.params, *noises)
                gained = world.gained + torch.where(running, after.reward.double(), 0.0)
                length += running
                running = running & ~after.terminated
                world = World(after.state, after.observation, memory, world.elapsed, gained, world.whole)
                if plant.terminates and not bool(running.any()):
                    break
        return float(world.gained.mean()), float(length.mean())

    def value_of(self, state: Tensor) -> Tensor | float:
        """Return the value (n,) that stands for what follows plant states (n, state_size), 0 without one."""
        return 0.0 if self.value is None else self.target(self._features(state)).double()

    def deployed(self) -> DeployedPolicy:
        """Return a copy of the actor as it is, with the task's spaces, on the CPU."""
        return copy.deepcopy(self.actor).cpu().deployed(*arguments.spaces(self.plant, torch.float32))

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that decides how training goes on, by name, as copies on the CPU."""
        found = {f"actor.{name}": value for name, value in self.actor.state_dict().items()}
        found |= {f"world.{name}": value for name, value in self.world._asdict().items()}
        found |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        if self.value is not None:
            found |= {f"value.{name}": value for name, value in self.value.state_dict().items()}
            found |= {f"target.{name}": value for name, value in self.target.state_dict().items()}
            saved = optimizer_tensors(self.value_optimizer)
            found |= {f"value_optimizer.{name}": value for name, value in saved.items()}
        if self.certified is not None:
            found |= {f"certified.{name}": value for name, value in self.certified.tensors().items()}
        found["generator"] = self.generator.get_state()
        found["episodes"] = torch.tensor(list(self.episodes), dtype=torch.float64).reshape(-1, 2)
        found["n_updates"] = torch.tensor(self.n_updates)
        return {name: value.detach().cpu().clone() for name, value in found.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` returned, of the same shapes; raises KeyError or RuntimeError elsewhere."""
        self.actor.load_state_dict(under("actor", tensors))
        saved = under("world", tensors)
        # Checkpoints of earlier versions do not say which episodes are whole.
        saved = {"whole": torch.ones_like(saved["elapsed"], dtype=torch.bool), **saved}
        self.world = World(**{name: value.to(self.device) for name, value in saved.items()})
        load_optimizer(self.optimizer, under("optimizer", tensors))
        if self.value is not None:
            self.value.load_state_dict(under("value", tensors))
            self.target.load_state_dict(under("target", tensors))
            load_optimizer(self.value_optimizer, under("value_optimizer", tensors))
        if self.certified is not None:
            self.certified.load_tensors(under("certified", tensors))
        self.generator.set_state(tensors["generator"])
        self.episodes.clear()
        self.episodes.extend((float(total), int(length)) for total, length in tensors["episodes"])
        self.n_updates = int(tensors["n_updates"])

    def _diverged(self, what: str) -> DivergedError:
        return diverged(what, self.n_updates + 1, (self.n_updates + 1) * self.steps_per_update)

    @staticmethod
    def _cause(experience: Experience, loss: float, norm: float) -> str:
        """Return what was not finite first where the loss or the norm of its gradient is not."""
        found = in_rollout(observation=experience.features, action=experience.actions, reward=experience.rewards)
        return found or (f"the gradient's norm was {norm}" if np.isfinite(loss) else f"the loss was {loss}")

    def _fit(self, value: ValueTail, experience: Experience, remaining: float) -> float:
        """Return the value's mean squared error, in units of its scale, before its steps."""
        settings = self.settings
        _set_rate(self.value_optimizer, settings.critic_learning_rate, remaining)
        if not float(value.seen):
            steps = min(1.0 / max(1.0 - settings.discount, 1e-9), self.limit)
            value.set_scale(experience.rewards, steps)
            value.observe(experience.features)
            follow(self.target, value, 1.0)
        else:
            value.observe(experience.features)
        with torch.no_grad():
            later = self.target(experience.following)
        wanted = lambda_returns(experience, later, settings.discount, settings.critic_lambda) / value.scale
        parameters, features, first = list(value.parameters()), value.normalised(experience.features), 0.0
        error = regression([*value.network], features, wanted)
        self.value_optimizer.quick = error is not None
        for k in range(settings.critic_updates):
            if error is None:
                loss = functional.mse_loss(value.scaled(features), wanted)
                forget_gradients(parameters)
                loss.backward()
                found = float(loss.detach()) if k == 0 else first
            else:
                found = error()
            take_step(self.value_optimizer, parameters, gradient_norm(parameters, self.value_optimizer), 1.0)
            first = found if k == 0 else first
        forget_gradients(parameters)
        follow(self.target, value, settings.target_rate)
        return first

    def _features(self, state: Tensor) -> Tensor:
        """Return what the value reads (n, size): the observation without noise, and the plant's state.

        Not what the policy remembers, whose meaning changes with every update: with it the pendulum is not learned.
        """
        return torch.cat((self.plant.observe(state, self.params), state), dim=-1)

    def _ahead(
        self, world: World, explicit: Any, process: Tensor | None, measurement: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the cell's outputs (h, n, ny) of a whole horizon and its final state, by the cell's fastest path.

        Only where no action changes an observation and no episode ends before the horizon does.
        """
        plant, observations, state = self.plant, [world.observation], world.state
        nothing = torch.zeros(self.num_envs, plant.action_size, dtype=state.dtype, device=self.device)
        with torch.no_grad():
            for t in range(self.settings.horizon - 1):
                state = plant.advance(state, nothing, self.params, _at(process, t))
                observations.append(plant.observe(state, self.params, _at(measurement, t)))
        return self.actor.cell.run(explicit, self.inputs(torch.stack(observations)), world.memory, None)

    def _action(self, output: Tensor, noise: Tensor | None) -> Tensor:
        """Return the action (n, action_size) within its limits for a cell's output, with exploration if any."""
        action = self.actor.head(output).double()
        if noise is not None:
            action = action + self.settings.action_noise * 0.5 * (self.high - self.low) * noise
        return InwardClip.apply(action, self.low, self.high)

    def inputs(self, observation: Tensor) -> Tensor:
        """Return what the cell reads (n, nu) of observations (n, observation_size)."""
        return self.actor.body.scaling(self.actor.normalized(observation))

    def _restarted(self, world: World, ended: Tensor) -> World:
        """Return the world with new episodes where (n,) `ended`; the others keep their past, `gained` all of it."""
        fresh = self.fresh(self.num_envs, self.generator)._replace(gained=world.gained)
        pick = ended.unsqueeze(-1)
        return World(
            *(torch.where(pick if new.ndim == 2 else ended, new, old) for new, old in zip(fresh, world, strict=True))
        )

    def _spread(self, world: World) -> World:
        """Return the world with ages spread over an episode, so that a value sees all of it in every horizon.

        Whole episodes without a value begin together: then every update sees the same part of each.
        """
        if self.value is None:
            return world
        ages = torch.arange(self.num_envs, device=self.device) * self.limit // self.num_envs
        return world._replace(elapsed=ages, whole=ages == 0)

    def _noise(self, steps: int, size: int) -> Tensor | None:
        """Return standard normal numbers (steps, n, size), None if size is 0."""
        drawn = self._normal(self.generator, steps * self.num_envs, size)
        return None if drawn is None else drawn.reshape(steps, self.num_envs, size)

    def _normal(self, generator: torch.Generator, count: int, size: int) -> Tensor | None:
        if not size:
            return None
        return torch.randn(count, size, generator=generator, dtype=torch.float64, device=self.device)


def _at(noise: Tensor | None, t: int) -> Tensor | None:
    return None if noise is None else noise[t]


def _set_rate(optimizer: torch.optim.Optimizer, rate: float | str, remaining: float, pace: float = 1.0) -> float:
    number = pace * rate_at(rate, remaining)
    for group in optimizer.param_groups:
        group["lr"] = number
    return number
