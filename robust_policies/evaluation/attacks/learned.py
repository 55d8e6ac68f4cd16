"""A learned adversary: a recurrent policy over perturbations, trained with PPO against the frozen policy.

It is trained on other episodes than those reported, for all sizes at once (the size is among what it reads), and then
plays its mean action. See Zhang et al. 2021, "Robust reinforcement learning on state observations with learned optimal
adversary".
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from robust_policies.envs.batch import make_batch, ours, time_limit
from robust_policies.envs.bridges.sb3 import SB3VecEnv, make_sb3_vec_env
from robust_policies.errors import DivergedError
from robust_policies.evaluation.attacks.adversary import AdversaryVecEnv, AdversaryVectorEnv, Victim, seen, wish
from robust_policies.evaluation.attacks.attack import Attack, Moment, Options, Scene, Tuning
from robust_policies.evaluation.attacks.random import Random, RandomOptions
from robust_policies.evaluation.rollout import play_episodes
from robust_policies.policies.frozen import FrozenActor
from robust_policies.policies.sb3.recurrent import RecurrentCellPolicy
from robust_policies.train.ppo.algorithm import TensorRecurrentPPO


class LearnedOptions(Options):
    """Settings of `learned`."""

    train_steps: PositiveInt = Field(200_000, description="environment steps that the adversary learns for")
    num_envs: PositiveInt = Field(32, description="environments side by side")
    rollout: PositiveInt = Field(64, description="steps of each environment between two updates")
    state_size: PositiveInt = Field(32, description="of the adversary's LSTM; an even number", multiple_of=2)
    learning_rate: float = Field(2e-3, gt=0, description="of Adam, falling to zero")
    discount: float = Field(0.95, gt=0, lt=1, description="of the adversary's return")


class Learned(Attack):
    """Plays the mean action of a trained adversary."""

    Options = LearnedOptions
    needs_preparation = True

    @classmethod
    def prepare(cls, options: LearnedOptions, tuning: Tuning) -> Any:
        """Return the trained adversary's actor; the environments begin with the first tuning seed.

        Raises:
            DivergedError: the policy gives no finite returns to learn from, or training diverged.
        """
        offset, scale, reward_scale = _scales(tuning)
        count = options.num_envs
        env = _environment(tuning, count, reward_scale)
        try:
            with warnings.catch_warnings():
                # Why another environment than ours takes the slower path is no news to the user of an attack.
                warnings.filterwarnings("ignore", message="TensorRecurrentPPO trains by")
                model = TensorRecurrentPPO(
                    RecurrentCellPolicy,
                    env,
                    n_steps=options.rollout,
                    n_epochs=6,
                    seed=tuning.seeds[0],
                    batch_size=options.rollout * math.gcd(count, 8),
                    gamma=options.discount,
                    gae_lambda=0.95,
                    device=tuning.policy.device,
                    learning_rate=lambda left: options.learning_rate * left,
                    policy_kwargs={
                        "cell": "lstm",
                        "cell_kwargs": {"state_size": options.state_size},
                        "critic": "mlp",
                        "observation_scale": scale,
                        "observation_offset": offset,
                        "log_std_init": -0.7,
                    },
                )
            model.learn(options.train_steps)
            # `learn` was given a policy that has one.
            adversary = copy.deepcopy(model.policy.actor).eval().requires_grad_(False)  # type: ignore[union-attr]
        finally:
            env.close()
        return adversary

    def begin(self, scene: Scene) -> None:
        """Forget the last episodes."""
        super().begin(scene)
        self.memory = self.prepared.cell.initial_state(scene.batch)

    def perturbation(self, moment: Moment) -> Tensor:
        """Return what the adversary's mean action stands for."""
        scene, budget = self.scene, self.scene.budget
        with torch.no_grad():
            reads = seen(scene.actor, moment.observation, moment.hidden, budget)
            raw, self.memory = self.prepared.step(torch.nan_to_num(reads), self.memory)
        return wish(budget.norm, raw.clamp(-1.0, 1.0), budget.size, budget.horizon)


def _environment(tuning: Tuning, count: int, reward_scale: float) -> Any:
    actor = FrozenActor(tuning.policy)
    device = actor.low.device
    size = torch.tensor([tuning.sizes[i % len(tuning.sizes)] for i in range(count)], device=device)
    seed = tuning.seeds[0] * 100_003
    if ours(tuning.env_id):
        env = make_batch(tuning.env_id, count, tuning.env_kwargs, tuning.perturbations, device=device)
        horizon = time_limit(env) or tuning.max_steps
        bridge = SB3VecEnv(AdversaryVectorEnv(env, Victim(actor, tuning.norm, size, horizon), reward_scale))
        bridge.seed(seed)
        return bridge
    inner: Any = make_sb3_vec_env(
        tuning.env_id, count, seed, env_kwargs=tuning.env_kwargs, perturbations=tuning.perturbations
    )
    horizon = time_limit(inner.envs[0]) or tuning.max_steps
    victim = Victim(actor, tuning.norm, size, horizon)
    return AdversaryVecEnv(inner, victim, reward_scale)


def _scales(tuning: Tuning) -> tuple[list[float], list[float], float]:
    """Return offset and scale of what the adversary reads, and 1 / the rewards' deviation, from random episodes."""
    yardstick = Random(RandomOptions(where="surface"))
    found = play_episodes(
        tuning.policy,
        tuning.env_id,
        yardstick,
        list(tuning.sizes),
        tuning.episodes,
        tuning.seeds[0],
        norm=tuning.norm,
        env_kwargs=tuning.env_kwargs,
        perturbations=tuning.perturbations,
        max_steps=tuning.max_steps,
        record=tuning.episodes,
    )
    recorded = {
        name: torch.as_tensor(value).flatten(1, 2).to(tuning.policy.device)
        for name, value in found.recorded.items()
        if name != "rewards"
    }
    actions = FrozenActor(tuning.policy).seen(recorded)
    values = torch.cat((recorded["observations"], actions), dim=-1).flatten(0, 1).cpu().numpy()
    values = values[np.isfinite(values).all(axis=1)]
    rewards = found.recorded["rewards"]
    spread = float(np.nanstd(rewards))
    if not len(values) or not np.isfinite(spread):
        raise DivergedError("The tuning episodes of the learned adversary hold no finite rewards.")
    scale = np.maximum(values.std(axis=0), 1e-3)
    size = max(tuning.sizes)
    return [*values.mean(axis=0).tolist(), 0.0, 0.0], [*scale.tolist(), size, 1.0], 1.0 / max(spread, 1e-6)
