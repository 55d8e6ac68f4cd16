"""Teachers: what to do in a batch of situations, and how their memory goes on when somebody else acts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.errors import InvalidValueError, ShapeError, UserError
from robust_policies.policies import DeployedPolicy, YoulaVectorWrapper, load_policy
from robust_policies.policies.youla.base import BaseController
from robust_policies.train.recipe.imitation import GIVEN, LQG

Follow = Callable[[Tensor], Any]


class Teacher(Protocol):
    """What can be imitated."""

    def act(self, observation: Tensor, state: Any, starts: Tensor) -> tuple[Tensor, Follow]:
        """Return the actions (n, na) for observations (n, nu), and what gives the next state.

        Args:
            observation: the environment's.
            state: what `Follow` returned last, None at first.
            starts: (n,) bool: an episode starts here, so the memory is to be empty.

        `Follow` takes the actions (n, na) that were applied, the teacher's or not.
        """
        ...


class LQGTeacher:
    """Observer and state feedback: the observer is told the applied input, whoever chose it."""

    def __init__(self, base: BaseController) -> None:
        self.base = base

    def act(self, observation: Tensor, state: Any, starts: Tensor) -> tuple[Tensor, Follow]:
        """Return the actions (n, na) and what gives the next state; see `Teacher`."""
        base, state = self.base, _begun(state, self.base.initial_state(len(observation)), starts)
        innovation = base.innovation(observation, state)
        sent = base.command(innovation, base.u0.new_zeros(len(observation), base.model.m), state)
        return sent, lambda applied: base.update(innovation, applied.to(sent.dtype), state)[1]


class PolicyTeacher:
    """A deployed policy's mean actions."""

    def __init__(self, policy: DeployedPolicy) -> None:
        self.policy = policy
        # Teachers act in Boxes alone: `Stage` refuses other spaces before.
        low, high = policy.action_space.low, policy.action_space.high  # type: ignore[attr-defined]
        self.low, self.high = (torch.as_tensor(bound, device=policy.device).flatten() for bound in (low, high))

    def act(self, observation: Tensor, state: Any, starts: Tensor) -> tuple[Tensor, Follow]:
        """Return the actions (n, na) and what gives the next state; see `Teacher`."""
        policy = self.policy
        state = _begun(state, policy.cell.initial_state(len(observation)), starts)
        actions, follow = policy.follow(observation, state)
        return actions.clamp(self.low, self.high), follow


class PredictTeacher:
    """Anything with Stable-Baselines3's `predict`, a model of it or a controller of one's own, in NumPy."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def act(self, observation: Tensor, state: Any, starts: Tensor) -> tuple[Tensor, Follow]:
        """Return the actions (n, na) and what gives the next state; see `Teacher`.

        Raises:
            ShapeError: the model's predict gave another number of actions than it was given observations.
        """
        given = observation.cpu().numpy()
        begins = starts.cpu().numpy()
        actions, state = self.model.predict(given, state=state, episode_start=begins, deterministic=True)
        actions = np.asarray(actions, dtype=np.float32)
        if actions.shape[:1] != given.shape[:1]:
            raise ShapeError(
                f"The teacher's predict gave actions of shape {actions.shape} for {len(given)} observations; expected "
                "one action for each."
            )
        return torch.as_tensor(actions.reshape(len(given), -1), device=observation.device), lambda _: state


def teacher_of(name: str, given: Any, env: VectorEnv, device: str) -> Teacher:
    """Return the teacher that a recipe names.

    Args:
        name: "lqg", the path of a run folder or policy, or "given".
        given: a policy, or anything with Stable-Baselines3's `predict`; with "given" alone.
        env: the environments of the task, not perturbed ones where that matters to the teacher.
        device: where it runs.

    Raises:
        UserError: there is no such teacher, or it does not fit the task.
    """
    if (name == GIVEN) != (given is not None):
        raise InvalidValueError(
            f"algorithm.teacher is {name!r} and {'an' if given is not None else 'no'} object was given; a teacher that "
            f"is an object in Python goes with {GIVEN!r}: robust_policies.train.imitate(teacher, task, folder)."
        )
    if name == LQG:
        return LQGTeacher(_controller(env))
    policy = given if given is not None else _loaded(name)
    if isinstance(policy, DeployedPolicy):
        _check_fit(policy, env)
        return PolicyTeacher(policy.to(device))
    if not callable(getattr(policy, "predict", None)):
        raise InvalidValueError(
            f"The teacher is a {type(policy).__name__}; expected a policy of this package, or an object with "
            "predict(observation, state, episode_start, deterministic) -> (actions, state)."
        )
    return PredictTeacher(policy)


def _controller(env: VectorEnv) -> BaseController:
    if not isinstance(env.unwrapped, TorchVectorEnv):
        raise InvalidValueError(
            f"algorithm.teacher is {LQG!r}, and {env} has no equations known here to design it for; expected a task "
            "of this package (robust_policies/...), or the folder of a trained policy."
        )
    # A Box: `Stage` refuses other spaces before.
    high = env.single_action_space.high  # type: ignore[attr-defined]
    # No Youla input is ever added, but where actions have no limits one has to be stated.
    return YoulaVectorWrapper(env, limit=None if np.isfinite(high).all() else 1.0).controller


def _loaded(name: str) -> DeployedPolicy:
    if not Path(name).exists():
        raise InvalidValueError(
            f"algorithm.teacher is {name!r}, and there is no such file or folder; expected {LQG!r}, a run folder or a "
            "policy.json."
        )
    try:
        return load_policy(name)
    except UserError as error:
        raise type(error)(f"algorithm.teacher: {error}") from error


def _check_fit(policy: DeployedPolicy, env: VectorEnv) -> None:
    for what, has, wanted in (
        ("reads", policy.observation_space, env.single_observation_space),
        ("gives", policy.action_space, env.single_action_space),
    ):
        if has.shape != wanted.shape:
            raise ShapeError(f"The teacher {what} {has}; the task has {wanted}.")


def _begun(state: Tensor | None, initial: Tensor, starts: Tensor) -> Tensor:
    """Return the state (n, nx), the initial one where an episode starts."""
    return initial if state is None else torch.where(starts.unsqueeze(-1), initial, state)
