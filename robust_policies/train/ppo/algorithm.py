"""sb3-contrib's RecurrentPPO with rollouts, buffer, advantages and minibatches that stay tensors on the device."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from robust_policies.envs.bridges.sb3 import SB3VecEnv
from robust_policies.errors import InvalidValueError
from robust_policies.networks.linalg import full_precision
from robust_policies.policies.adam import FusedAdam, forget_gradients, gradient_norm, take_step
from robust_policies.train.ppo.buffer import Pieces, TensorRolloutBuffer, minibatch_count
from robust_policies.train.ppo.episodes import EpisodeTotals
from robust_policies.train.ppo.fused import fused
from robust_policies.train.ppo.losses import Terms
from robust_policies.train.ppo.minibatches import merge_remainders
from robust_policies.train.ppo.normalization import ObservationScale, RewardScale, from_json, to_json
from robust_policies.train.ppo.on_demand import OnDemand
from robust_policies.train.ppo.policy import Apart, RolloutPolicy, TensorPolicy, unsupported
from robust_policies.train.run.guard import diverged, in_buffer, in_update
from robust_policies.train.run.ranks import ALONE, Ranks

_DEVICE_ONLY = ("normalize_observation", "normalize_reward")
PHASES = ("policy", "environment", "advantages", "update")
# What a CPU differentiates at once: more samples at a time are no faster there and take more memory.
_CPU_ROWS_AT_ONCE = 2**13


class _Truncation(NamedTuple):
    """Episodes that their time limit cut off in step `step`: which (env,), and their last observations' latents."""

    step: int
    rows: Tensor
    latent: Tensor


class TensorRecurrentPPO(RecurrentPPO):
    """Recurrent PPO on the device, for a `RecurrentCellPolicy` in an `SB3VecEnv`; elsewhere sb3-contrib's own.

    The update is sb3-contrib's, on the same data the same to rounding. What differs: a minibatch is a share of the
    environments with their whole sequences, so `batch_size` must be `n_steps` times a divisor of the number of
    environments; episode statistics reach `ep_info_buffer` once per rollout; callbacks find no `infos` in their locals,
    but `info` as the vectorized environment gave it, and `OnDemand` arrays of actions, rewards and dones. The reason
    for which NumPy's path is taken (another environment, policy or device) is given as a warning and in `why_numpy`.

    Args:
        policy, env: as RecurrentPPO's; the rest too, by keyword.
        normalize_observation: the policy's fixed observation scale is set, between updates, to the mean and deviation
            of the observations so far. `predict` and certificate take raw observations.
        normalize_reward: divide rewards by the running deviation of the discounted return.
        spread_episodes: after a reset, count the first episodes as begun at different times, so that rollouts shorter
            than an episode hold all its parts.
        ranks: the processes that train this model together, each in its share of the environments; `batch_size` counts
            the samples of all.

    Attributes:
        why_numpy: why training does not stay on the device; None if it does.
        seconds: time spent in each of `PHASES` since the model was made; on a GPU, until the work was queued.

    Raises:
        InvalidValueError: `batch_size` does not divide the environments evenly, or one of the options above is given
            where only the NumPy path is possible, or besides an observation scale of the policy's own.
    """

    rollout_buffer: Any
    ranks = ALONE

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        normalize_observation: bool = False,
        normalize_reward: bool = False,
        spread_episodes: bool = False,
        ranks: Ranks = ALONE,
        **kwargs: Any,
    ) -> None:
        self.ranks = ranks
        self.normalize_observation, self.normalize_reward = normalize_observation, normalize_reward
        self.spread_episodes = spread_episodes
        self.why_numpy: str | None = None
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._logged_seconds = dict(self.seconds)
        self._scales: dict[str, Any] = {}
        # A model that `load` makes may evaluate in any number of environments; what does not fit is refused by `learn`.
        self._loaded = not kwargs.get("_init_setup_model", True)
        options = dict(kwargs.pop("policy_kwargs", None) or {})
        if normalize_observation:
            for name in ("observation_scale", "observation_offset"):
                if options.get(name) is not None:
                    raise InvalidValueError(
                        f"{name} is {options[name]} and normalize_observation=True, which sets it; leave one of "
                        "them out."
                    )
                options[name] = 1.0 if name == "observation_scale" else 0.0
        super().__init__(policy, env, policy_kwargs=options, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        merge_remainders(self)
        self._numpy_buffer = self.rollout_buffer
        if self.env is not None:
            self._choose_path(self.env)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Train in another environment from now on, as SB3's method; on the device if it allows that."""
        super().set_env(env, force_reset)
        assert self.env is not None
        self._choose_path(self.env)

    def _choose_path(self, env: VecEnv) -> None:
        self.why_numpy = self._reason(env)
        if self.why_numpy is not None and not self.ranks.alone:
            raise InvalidValueError(
                f"{self.ranks.size} ranks train on tensors only, but {self.why_numpy}; start it without torchrun."
            )
        if self.why_numpy is not None:
            self.rollout_buffer = self._numpy_buffer
            asked = [name for name in _DEVICE_ONLY if getattr(self, name)]
            if asked:
                raise InvalidValueError(
                    f"{asked[0]}=True works on the device only, but {self.why_numpy}; leave it out (there is "
                    "Stable-Baselines3's VecNormalize for NumPy)."
                )
            if self.batch_size == 1 and self.normalize_advantage:
                raise InvalidValueError(
                    "batch_size is 1 and normalize_advantage=True: one advantage has no deviation; expected a "
                    "batch_size of at least 2, or normalize_advantage=False."
                )
            without = " and without spread_episodes" if self.spread_episodes else ""
            warnings.warn(
                f"TensorRecurrentPPO trains by sb3-contrib's NumPy path{without}, because {self.why_numpy}.",
                stacklevel=4,
            )
            return
        if not self._loaded:
            self._set_minibatches()
        # Only a `RecurrentCellPolicy` gets here: others have a `why_numpy`.
        self._tensors = TensorPolicy(self.policy, self.ranks)  # pyright: ignore[reportArgumentType]
        discrete = not self._tensors.gaussian
        assert isinstance(env, SB3VecEnv)
        self.rollout_buffer = TensorRolloutBuffer(
            self.n_steps,
            self.n_envs,
            env.observation_space.shape or (),
            env.action_space.shape or (),
            self._tensors.state_sizes,
            self.device,
            torch.int64 if discrete else torch.float32,
            # An offset far from zero is subtracted in the environment's own precision, in updates as in rollouts.
            env.inner.dtype if self._tensors.actor.scaling.offset is not None else torch.float32,
            self.ranks,
        )
        self._episodes = EpisodeTotals(self.n_envs, self.device)
        self._states = self._tensors.initial_states(self.n_envs)
        self._bounds = None
        if not discrete:
            # A Box where actions are no choices.
            low, high = env.action_space.low, env.action_space.high  # pyright: ignore[reportAttributeAccessIssue]
            self._bounds = tuple(torch.as_tensor(bound, device=self.device) for bound in (low, high))
        self._make_scales()

    def _set_minibatches(self) -> None:
        self.minibatches = minibatch_count(self._every, self.n_steps, self.batch_size)

    @property
    def _every(self) -> int:
        """The number of environments of all ranks."""
        return self.n_envs * self.ranks.size

    def _make_scales(self) -> None:
        kept = self.normalization_state()
        self._scales = {}
        if self.normalize_observation:
            # A vector: other observations have a `why_numpy`.
            size = self.observation_space.shape[0]  # pyright: ignore[reportOptionalSubscript]
            self._scales["observation"] = ObservationScale(size, self.device, self.ranks)
        if self.normalize_reward:
            self._scales["reward"] = RewardScale(self.n_envs, self.gamma, self.device, self.ranks)
        self.load_normalization_state({name: kept[name] for name in self._scales if name in kept})

    def _reason(self, env: VecEnv) -> str | None:
        if not isinstance(env, SB3VecEnv):
            inner = env.unwrapped
            around = f" in a {type(env).__name__}" if inner is not env else ""
            return f"the environment is a {type(inner).__name__}{around}, not a bare SB3VecEnv, whose steps are tensors"
        here, there = self.device, env.inner.device
        if here.type != there.type or (here.index or 0) != (there.index or 0):
            return f"the environment computes on {there} and the policy on {here}"
        return unsupported(self.policy)

    def normalization_state(self) -> dict[str, Any]:
        """Return what the normalisations have counted, as JSON data; empty where there are none."""
        return {
            name: to_json(scale.moments) if not isinstance(scale, dict) else scale
            for name, scale in self._scales.items()
        }

    def load_normalization_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that `normalization_state` returned."""
        for name, moments in state.items():
            if name not in self._scales:
                raise InvalidValueError(f"The state normalises the {name}; expected normalize_{name}=True.")
            from_json(self._scales[name].moments, moments)

    def _excluded_save_params(self) -> list[str]:
        here = [
            "ranks",
            "_loaded",
            "_tensors",
            "_episodes",
            "_states",
            "_bounds",
            "_numpy_buffer",
            "_last_obs",
            "_last_episode_starts",
        ]
        return [*super()._excluded_save_params(), *here]

    def save(self, path: Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """Save the model as SB3 does; normalisations as plain numbers."""
        scales, self._scales = self._scales, self.normalization_state()
        try:
            super().save(path, exclude, include)
        finally:
            self._scales = scales

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Fill the buffer with `n_rollout_steps` steps of every environment; return False if a callback stopped it."""
        if self.why_numpy is not None:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        assert isinstance(env, SB3VecEnv)
        self._set_minibatches()
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        self.ranks.same_numbers(self.device)
        before = env.inner.trusts_actions
        # Asking at every step whether the actions are finite would wait for the device; `_finish` asks once.
        env.inner.trusts_actions = True
        try:
            with torch.no_grad(), full_precision(self._states.actor):
                return self._collect(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            env.inner.trusts_actions = before

    def _collect(
        self, env: SB3VecEnv, callback: BaseCallback, rollout_buffer: TensorRolloutBuffer, n_rollout_steps: int
    ) -> bool:
        clock, seconds = time.perf_counter, self.seconds
        observations, starts = self._begin(env)
        buffer, vector = rollout_buffer, env.env
        buffer.actor_state.copy_(self._states.actor)
        buffer.critic_state.copy_(self._states.critic)
        acting = RolloutPolicy(self._tensors, self._states, n_rollout_steps, self.ranks)
        acting.begin(starts)
        cut_off: list[_Truncation] = []
        nobody = torch.zeros_like(starts)
        buffer.dones.zero_()
        buffer.starts[0] = starts
        fixed = {"self": self, "env": env, "rollout_buffer": buffer, "n_rollout_steps": n_rollout_steps}
        before = clock()
        for n_steps in range(n_rollout_steps):
            actions = acting.act(observations, n_steps)
            buffer.observations[n_steps] = observations
            buffer.actions[n_steps] = actions
            clipped_actions = actions if self._bounds is None else actions.clamp(*self._bounds)
            middle = clock()
            observations, rewards, terminated, truncated, info = vector.step(clipped_actions)
            after = clock()
            seconds["policy"] += middle - before
            seconds["environment"] += after - middle
            before = after
            dones = info.get("_final_obs", nobody)
            buffer.rewards[n_steps] = rewards
            self.num_timesteps += self._every
            seen = {"actions": actions, "clipped_actions": clipped_actions, "rewards": rewards, "dones": dones}
            callback.update_locals(
                {**fixed, "n_steps": n_steps, "info": info, **{k: OnDemand(value) for k, value in seen.items()}}
            )
            if not callback.on_step():
                # The environments have gone on without the buffer: `learn` resets them if it is called again.
                self._last_obs = None
                return False
            if dones is not nobody:
                buffer.dones[n_steps] = dones
                cut_off.append(_Truncation(n_steps, truncated & ~terminated, acting.latent(info["final_obs"])))
                acting.begin(dones)
        buffer.starts[1:] = buffer.dones[:-1]
        seconds["policy"] += clock() - before
        # Tensors in the place of the base class's arrays.
        self._last_obs, self._last_episode_starts, self._states = observations, buffer.dones[-1].clone(), acting.states  # pyright: ignore[reportAttributeAccessIssue]
        self._finish(acting, observations, cut_off)
        callback.on_rollout_end()
        return True

    def _begin(self, env: SB3VecEnv) -> tuple[Tensor, Tensor]:
        """Return observations and starts to go on from, whether SB3 has just reset the environments or not."""
        observations, starts = self._last_obs, self._last_episode_starts
        if isinstance(observations, np.ndarray):
            self._episodes = EpisodeTotals(self.n_envs, self.device)
            if "reward" in self._scales:
                self._scales["reward"].restart()
            if self.spread_episodes:
                limit = env.inner.max_episode_steps
                env.inner.elapsed = self.ranks.mine(torch.randint(limit, (self._every,), device=self.device), 0)
                self._episodes.skip_running()
        return torch.as_tensor(observations, device=self.device), torch.as_tensor(starts, device=self.device)

    def _finish(self, acting: RolloutPolicy, last_observations: Tensor, cut_off: list[_Truncation]) -> None:
        began = time.perf_counter()
        buffer, tensors = self.rollout_buffer, self._tensors
        self._check(self.ranks.first_said(in_buffer(buffer)))
        buffer.values.copy_(acting.all_values(buffer.observations))
        buffer.log_probs.copy_(acting.all_log_probs())
        assert self.ep_info_buffer is not None
        self.ep_info_buffer.extend(self._episodes.ended(buffer.rewards, buffer.dones, self._stats_window_size))
        scale = self._scales.get("reward")
        given = self.rewards_of(buffer)
        rewards = given.clone() if scale is None else scale(given, buffer.dones)
        for step, rows, latent in cut_off:
            rewards[step] += torch.where(rows, self.gamma * tensors.values(latent), 0.0)
        buffer.estimate(rewards, tensors.values(acting.latent(last_observations)), self.gamma, self.gae_lambda)
        self.seconds["advantages"] += time.perf_counter() - began

    def rewards_of(self, buffer: TensorRolloutBuffer) -> Tensor:
        """Return the rewards (n_steps, n_envs) that are learnt from in a rollout: the environment's.

        A subclass may learn from others; the episodes' returns that are logged stay the environment's.
        """
        return buffer.rewards

    def _check(self, found: str | None) -> None:
        if found is not None:
            raise diverged(found, self.num_timesteps // (self.n_steps * self._every), self.num_timesteps)

    def train(self) -> None:
        """Update the policy with the rollout in the buffer, by sb3-contrib's loss on whole sequences."""
        if self.why_numpy is not None:
            super().train()
            return
        began = time.perf_counter()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        # A schedule since `_setup_model`, as the learning rate is.
        clip_range = self.clip_range(self._current_progress_remaining)  # pyright: ignore[reportCallIssue]
        # Stable-Baselines3 made it a function.
        clip_range_vf = self.clip_range_vf and self.clip_range_vf(self._current_progress_remaining)  # pyright: ignore[reportCallIssue]
        optimizer, parameters = self.policy.optimizer, list(self.policy.parameters())
        at_once = _CPU_ROWS_AT_ONCE if self.device.type == "cpu" else None
        terms = Terms(clip_range, clip_range_vf, self.vf_coef, self.ent_coef)
        quick = fused(self._tensors, self.rollout_buffer, max(1, self.n_envs // self.minibatches))
        if isinstance(optimizer, FusedAdam):
            optimizer.quick = quick is not None
        if self._tensors.cut:
            self.rollout_buffer.find_begins()
        steps: list[Tensor] = []
        norms: list[Tensor] = []
        divergences: list[Tensor] = []
        stop = False
        try:
            for epoch in range(self.n_epochs):
                divergences = []
                for pieces in self.rollout_buffer.minibatches(self.minibatches, self.normalize_advantage, at_once):
                    differentiate = self._differentiate if quick is None else quick.differentiate
                    found = differentiate(pieces, terms)
                    if not self.ranks.alone:
                        found = torch.stack(self.ranks.sum_gradients(parameters, found.unbind()))
                    divergence = found[5]
                    steps.append(found[:5])
                    divergences.append(divergence)
                    if self.target_kl is not None and float(divergence) > 1.5 * self.target_kl:
                        stop = True
                        if self.verbose >= 1 and self.ranks.first:
                            print(f"Early stopping at step {epoch} due to reaching max kl: {float(divergence):.2f}")
                        break
                    norms.append(gradient_norm(parameters, optimizer))
                    take_step(optimizer, parameters, norms[-1], self.max_grad_norm)
                self._n_updates += 1
                if stop:
                    break
        finally:
            forget_gradients(parameters)
            # A library that refuses to go on is not the cause, and what follows from NaN is not saved.
            self._check(in_update(steps, norms))
        if "observation" in self._scales:
            self._scales["observation"].update(self.rollout_buffer.observations, self.policy)
        self.seconds["update"] += time.perf_counter() - began
        norms = norms or [torch.zeros((), device=self.device)]
        self._log(torch.stack(steps), torch.stack(norms), torch.stack(divergences), clip_range, clip_range_vf)

    def _differentiate(self, pieces: Pieces, terms: Terms) -> Tensor:
        """Leave the gradient of a minibatch's loss in the parameters, in place of what was there.

        Returns loss, policy loss, clip fraction, value loss, entropy loss and approximate divergence, (6,).
        """
        forget_gradients(self.policy.parameters())
        arrays, begins = self._tensors.arrays(), self.rollout_buffer.begins
        apart = None if pieces.whole else Apart(arrays)
        sums: list[Tensor] = []
        for batch, share in pieces:
            used = arrays if apart is None else apart.arrays
            loss, found, entropy = self._tensors.loss(batch, used, terms, begins)
            (loss if apart is None else share * loss).backward()
            parts = (loss.detach(), *found[:3], -entropy, found.divergence)
            if apart is not None:
                parts = [share * part for part in parts]
                parts = [before + part for before, part in zip(sums, parts, strict=True)] if sums else parts
            sums = list(parts)
        if apart is not None:
            apart.backward()
        return torch.stack(sums)

    def _log(
        self, steps: Tensor, norms: Tensor, divergences: Tensor, clip_range: float, clip_range_vf: float | None
    ) -> None:
        buffer = self.rollout_buffer
        spread = self.ranks.variance(buffer.returns)
        unexplained = self.ranks.variance(buffer.returns - buffer.values) / spread
        deviation = self.policy.log_std.detach().exp().mean() if self._tensors.gaussian else torch.zeros_like(spread)
        sums = (*steps.mean(0)[1:], divergences.mean(), steps[-1, 0], 1 - unexplained, deviation, norms.mean())
        policy_loss, fraction, value_loss, entropy_loss, kl, loss, explained, std, norm = torch.stack(sums).tolist()
        record = self.logger.record
        record("train/entropy_loss", entropy_loss)
        record("train/policy_gradient_loss", policy_loss)
        record("train/value_loss", value_loss)
        record("train/approx_kl", kl)
        record("train/clip_fraction", fraction)
        record("train/loss", loss)
        record("train/gradient_norm", norm)
        record("train/explained_variance", explained if np.isfinite(explained) else np.nan)
        if self._tensors.gaussian:
            record("train/std", std)
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("train/clip_range", clip_range)
        for name, spent in self.seconds.items():
            record(f"time/{name}_seconds", spent - self._logged_seconds[name])
        self._logged_seconds = dict(self.seconds)
        if clip_range_vf is not None:
            record("train/clip_range_vf", clip_range_vf)
