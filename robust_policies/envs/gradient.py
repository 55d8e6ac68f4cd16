"""One step through which gradients flow: to the state, the action, the physical parameters and the disturbance.

    plant = load_plant("cartpole_swingup")
    params = plant.prepare(plant.nominal())
    following = step(plant, state, action, params)
    following.reward.sum().backward()

Nothing is written in place, nothing is random and nothing is reset: noise, if wanted, is given, and where an episode
would end is returned, not acted on. The vectorized environments take the same step, without its graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from robust_policies import checks
from robust_policies.envs.plant import Params, Plant
from robust_policies.errors import InvalidValueError


class Transition(NamedTuple):
    """What follows from a state and an action."""

    state: torch.Tensor
    """The next states (..., state_size)."""
    observation: torch.Tensor
    """What is observed there (..., observation_size)."""
    reward: torch.Tensor
    """The reward of the step (...)."""
    terminated: torch.Tensor
    """Where (...) the plant ends the episode, bool."""


def transition(
    plant: Plant,
    state: torch.Tensor,
    action: torch.Tensor,
    params: Params,
    process: torch.Tensor | None = None,
    measurement: torch.Tensor | None = None,
    disturbance: torch.Tensor | None = None,
) -> Transition:
    """Return the step of a plant from states (..., nx) and actions (..., nu), unchecked; see `step`."""
    following = plant.advance(state, action, params, process, disturbance)
    if plant.terminates:
        terminated = plant.terminated(following, params)
    else:
        terminated = torch.zeros(following.shape[:-1], dtype=torch.bool, device=following.device)
    reward = plant.reward(state, action, following, params)
    return Transition(following, plant.observe(following, params, measurement), reward, terminated)


def step(
    plant: Plant,
    state: torch.Tensor,
    action: torch.Tensor,
    params: Params,
    process: torch.Tensor | None = None,
    measurement: torch.Tensor | None = None,
    disturbance: torch.Tensor | None = None,
) -> Transition:
    """Return what follows from states (..., nx) and actions (..., nu), differentiably.

    Args:
        plant: the task's equations, `load_plant(name)` or an environment's `plant`.
        state: where the plant is.
        action: in the plant's units, clipped to its limits (beyond them the gradient is zero); also for a plant of
            discrete actions, where `plant.discrete_actions[choice]` is the action of a choice.
        params: `plant.prepare(physical parameters)`, or an environment's `prepared`.
        process: standard normal numbers (..., process_noise_size); None: no noise.
        measurement: standard normal numbers (..., measurement_noise_size); None: no noise.
        disturbance: (..., len(plant.disturbance_names)); None: none.

    Raises:
        InvalidValueError: the plant is not differentiable (a MuJoCo task). ShapeError: sizes do not fit.
    """
    differentiable(plant)
    batch: tuple[int | None, ...] = tuple(state.shape[:-1])
    for name, value, size in (
        ("state", state, plant.state_size),
        ("action", action, plant.action_size),
        ("process", process, plant.process_noise_size),
        ("measurement", measurement, plant.measurement_noise_size),
        ("disturbance", disturbance, len(plant.disturbance_names)),
    ):
        if value is not None:
            checks.shape(name, value, (*batch, size))
    return transition(plant, state, action, params, process, measurement, disturbance)


def rollout(
    plant: Plant,
    state: torch.Tensor,
    policy: Callable[[torch.Tensor, int], torch.Tensor],
    params: Params,
    steps: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the states (steps + 1, ...), actions and rewards (steps, ...) of a closed loop without noise.

    `policy(observation, t)` returns the action at step t; the graph runs through all steps.
    """
    differentiable(plant)
    checks.positive_int("steps", steps)
    checks.shape("state", state, (*state.shape[:-1], plant.state_size))
    states, actions, rewards = [state], [], []
    observation = plant.observe(state, params)
    for t in range(steps):
        action = policy(observation, t)
        following = step(plant, states[-1], action, params)
        states.append(following.state)
        actions.append(action)
        rewards.append(following.reward)
        observation = following.observation
    return torch.stack(states), torch.stack(actions), torch.stack(rewards)


def differentiable(plant: Plant) -> Plant:
    """Return the plant if gradients flow through its step; raise `InvalidValueError` otherwise."""
    if not plant.differentiable:
        raise InvalidValueError(
            f"The plant {plant.kind!r} is not differentiable; expected a torch-native task "
            "(the pendulums, cart-poles, linear plants, QubeServo, MagLev or the quadrotors)."
        )
    return plant
