"""sb3-contrib's RecurrentPPO with rollouts, buffer, advantages and minibatches that stay tensors on the device."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from robust_policies.envs.bridges.sb3 import SB3VecEnv
from robust_policies.errors import InvalidValueError
from robust_policies.networks.linalg import full_precision
from robust_policies.train.ppo.buffer import TensorRolloutBuffer, minibatch_count
from robust_policies.train.ppo.episodes import EpisodeTotals
from robust_policies.train.ppo.losses import Terms
from robust_policies.train.ppo.minibatches import merge_remainders
from robust_policies.train.ppo.normalization import ObservationScale, RewardScale, from_json, to_json
from robust_policies.train.ppo.on_demand import OnDemand
from robust_policies.train.ppo.policy import TensorPolicy, unsupported
from robust_policies.train.ppo.recorded import GRAPHS, RecordedRollout, RecordedUpdate
from robust_policies.train.ppo.rollout import Now, Played, Stage, Step
from robust_policies.train.ppo.update import Settings, Taken, Update
from robust_policies.train.run.guard import diverged, in_buffer, in_update
from robust_policies.train.run.ranks import ALONE, Ranks

_DEVICE_ONLY = ("normalize_observation", "normalize_reward")
PHASES = ("policy", "environment", "advantages", "update")


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
        graphs: auto: on a GPU a rollout, and an update, is one CUDA graph where it does the same every time; callbacks
            are told of the steps of such a rollout when it has ended. never: call by call, as on a CPU.
        spread_episodes: after a reset, count the first episodes as begun at different times, so that rollouts shorter
            than an episode hold all its parts.
        ranks: the processes that train this model together, each in its share of the environments; `batch_size` counts
            the samples of all.

    Attributes:
        why_numpy: why training does not stay on the device; None if it does.
        seconds: time spent in each of `PHASES` since the model was made; on a GPU, until the work was queued. A
            rollout that is one graph counts as the policy's.

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
        graphs: str = "auto",
        ranks: Ranks = ALONE,
        **kwargs: Any,
    ) -> None:
        self.ranks = ranks
        if graphs not in GRAPHS:
            raise InvalidValueError(f"graphs is {graphs!r}; expected one of {', '.join(GRAPHS)}.")
        self.graphs = graphs
        self.normalize_observation, self.normalize_reward = normalize_observation, normalize_reward
        self.spread_episodes = spread_episodes
        self.why_numpy: str | None = None
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
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
            self._bounds = torch.as_tensor(low, device=self.device), torch.as_tensor(high, device=self.device)
        self._make_scales()
        self._stage = Stage(self._tensors, env, self.rollout_buffer, self._bounds, self.ranks, self.seconds)
        self._update = Update(self._tensors, self.rollout_buffer, self.ranks)
        # A reward of a subclass's may be learnt in between.
        self._judged_at_once = type(self).rewards_of is TensorRecurrentPPO.rewards_of
        judge = self._judge if self._judged_at_once else self._stage.value
        roots = {f"{name}_scale": scale for name, scale in self._scales.items()}
        self._recorded_rollout = RecordedRollout(
            self._stage, judge, roots, lambda: (self.gamma, self.gae_lambda), self.graphs
        )
        self._recorded_update = RecordedUpdate(self._update, self.graphs)

    @property
    def why_no_graph(self) -> dict[str, str | None]:
        """Why "rollout" and "update" are not one CUDA graph each; None: one is, or will be after a few calls."""
        if self.why_numpy is not None:
            return dict.fromkeys(("rollout", "update"), self.why_numpy)
        return {"rollout": self._recorded_rollout.graph.why_not, "update": self._recorded_update.graph.why_not}

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
            "_stage",
            "_update",
            "_recorded_rollout",
            "_recorded_update",
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
        self, env: SB3VecEnv, callback: BaseCallback, buffer: TensorRolloutBuffer, n_rollout_steps: int
    ) -> bool:
        fixed = {"self": self, "env": env, "rollout_buffer": buffer, "n_rollout_steps": n_rollout_steps}

        def told(n_steps: int, step: Step) -> bool:
            self.num_timesteps += self._every
            seen = {name: OnDemand(value) for name, value in step._asdict().items() if name != "info"}
            callback.update_locals({**fixed, "n_steps": n_steps, "info": step.info, **seen})
            return callback.on_step()

        now, recorded = self._begin(env), self._recorded_rollout
        at_once = env.inner.clock.alike = recorded.possible
        if at_once:
            steps, played = recorded(now)
            # Those that a callback does not want to hear of any more have been played.
            played = played if all(told(n, step) for n, step in enumerate(steps)) else None
        else:
            played = self._stage.play(now, told)
        if played is None:
            # The environments have gone on without the buffer: `learn` resets them if it is called again.
            self._last_obs = None
            return False
        # Tensors in the place of the base class's arrays.
        self._last_obs, self._last_episode_starts, self._states = played.now  # pyright: ignore[reportAttributeAccessIssue]
        self._finish(played, judged=at_once)
        callback.on_rollout_end()
        return True

    def _begin(self, env: SB3VecEnv) -> Now:
        """Return what to go on from, whether SB3 has just reset the environments or not."""
        observations, starts = self._last_obs, self._last_episode_starts
        if isinstance(observations, np.ndarray):
            self._episodes = EpisodeTotals(self.n_envs, self.device)
            if "reward" in self._scales:
                self._scales["reward"].restart()
            if self.spread_episodes:
                limit = env.inner.max_episode_steps
                env.inner.elapsed = self.ranks.mine(torch.randint(limit, (self._every,), device=self.device), 0)
                self._episodes.skip_running()
        observations, starts = (torch.as_tensor(one, device=self.device) for one in (observations, starts))
        return Now(observations, starts, self._states)

    def _finish(self, played: Played, judged: bool) -> None:
        """Look at what was played; `judged` if `_recorded_rollout` has done on the device what follows."""
        began = time.perf_counter()
        buffer = self.rollout_buffer
        self._check(self.ranks.first_said(in_buffer(buffer)))
        assert self.ep_info_buffer is not None
        self.ep_info_buffer.extend(self._episodes.ended(buffer.rewards, buffer.dones, self._stats_window_size))
        if not judged:
            self._stage.value(played)
        if not (judged and self._judged_at_once):
            self._estimate(played)
        self.seconds["advantages"] += time.perf_counter() - began

    def _judge(self, played: Played) -> None:
        self._stage.value(played)
        self._estimate(played)

    def _estimate(self, played: Played) -> None:
        buffer, scale = self.rollout_buffer, self._scales.get("reward")
        given = self.rewards_of(buffer)
        rewards = given.clone() if scale is None else scale(given, buffer.dones)
        self._stage.estimate(played, rewards, self.gamma, self.gae_lambda)

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
        terms = Terms(clip_range, clip_range_vf, self.vf_coef, self.ent_coef)
        settings = Settings(
            self.n_epochs, self.minibatches, self.normalize_advantage, terms, self.max_grad_norm, self.target_kl
        )
        differentiates, recorded, taken = self._update.ready(settings), self._recorded_update, Taken()
        try:
            if recorded.possible(settings):
                taken = recorded(settings)
            else:
                self._update.take(settings, differentiates, taken)
        finally:
            # A library that refuses to go on is not the cause, and what follows from NaN is not saved.
            self._check(in_update(taken.steps, taken.norms))
        self._n_updates += taken.epochs
        if taken.stopped_at is not None and self.verbose >= 1 and self.ranks.first:
            print(f"Early stopping at step {taken.epochs - 1} due to reaching max kl: {taken.stopped_at:.2f}")
        if "observation" in self._scales:
            self._scales["observation"].update(self.rollout_buffer.observations, self.policy)
        self.seconds["update"] += time.perf_counter() - began
        self._log(self._update.summary(taken), clip_range, clip_range_vf)

    def _log(self, summary: dict[str, float], clip_range: float, clip_range_vf: float | None) -> None:
        record = self.logger.record
        for name, value in summary.items():
            record(f"train/{name}", value)
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("train/clip_range", clip_range)
        for name, spent in self.seconds.items():
            record(f"time/{name}_seconds", spent - self._logged_seconds[name])
        self._logged_seconds = dict(self.seconds)
        if clip_range_vf is not None:
            record("train/clip_range_vf", clip_range_vf)
