"""Where a run of Stable-Baselines3 stands between two updates, beside its weights: all that decides what comes next."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from robust_policies.envs.bridges.sb3 import SB3VecEnv
from robust_policies.envs.snapshot import Snapshot, capture, restore
from robust_policies.files.tensors import load_optimizer, optimizer_tensors, under
from robust_policies.policies.sb3.history import history_of
from robust_policies.train.ppo.algorithm import TensorRecurrentPPO
from robust_policies.train.run.checkpoints import Progress


def random_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and PyTorch's global generators, as JSON data."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, next_gauss = random.getstate()
    return {
        "python": [version, list(internal), next_gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [state.cpu().numpy().tobytes().hex() for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to a state from `random_state`."""

    def tensor(text: str) -> Tensor:
        return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal), next_gauss))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(tensor(state["torch"]))
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([tensor(text) for text in state["cuda"]])


class Moment:
    """One moment between two updates, copied so that the run may go on meanwhile.

    Attributes:
        tensors: by name; where the environments' state can be read, theirs too.
        facts: JSON data: generators, recent episodes, running statistics, and what `Snapshot` holds beside tensors.
    """

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self.tensors, self.facts = tensors, facts

    @classmethod
    def of(cls, model: BaseAlgorithm) -> Moment:
        """Return the present moment of a model that is about to collect a rollout."""
        normalizer = model.get_vec_normalize_env()
        facts: dict[str, Any] = {
            "random": random_state(),
            "arrays": isinstance(model._last_obs, np.ndarray),
            "episodes": [[float(one["r"]), int(one["l"]), float(one["t"])] for one in model.ep_info_buffer or ()],
            "successes": [float(one) for one in model.ep_success_buffer or ()],
            "normalizer": None if normalizer is None else _statistics(normalizer),
        }
        if isinstance(model, OffPolicyAlgorithm):
            # What it draws its first actions from, and what it counts.
            facts |= {"action_space": model.action_space.np_random.bit_generator.state, "number": model._episode_num}
        roots = _roots(model)
        snapshot = capture(**roots)
        facts |= {"values": snapshot.values, "same": snapshot.same}
        return cls(snapshot.tensors, facts)

    def resume(self, model: BaseAlgorithm) -> None:
        """Put the model there.

        Where the environments' state could not be read, they begin new episodes from seeds of their own.
        """
        episodes = ({"r": total, "l": length, "t": seconds} for total, length, seconds in self.facts["episodes"])
        model.ep_info_buffer = deque(episodes, maxlen=model._stats_window_size)
        model.ep_success_buffer = deque(self.facts["successes"], maxlen=model._stats_window_size)
        normalizer, statistics = model.get_vec_normalize_env(), self.facts["normalizer"]
        if normalizer is not None and statistics is not None:
            _restore_statistics(normalizer, statistics)
        if isinstance(model, OffPolicyAlgorithm):
            model.action_space.np_random.bit_generator.state = self.facts["action_space"]
            model._episode_num = self.facts["number"]
        roots = _roots(model)
        restore(Snapshot(dict(self.tensors), self.facts["values"], self.facts["same"]), **roots)
        if "bridge" in roots:
            # When the next episode can end is known of these environments anew: others may have been beside them.
            roots["bridge"].inner.elapsed = roots["bridge"].inner.elapsed
        if "session" in roots:
            _sit_down(model, roots["session"], self.facts["arrays"])
        restore_random_state(self.facts["random"])


def continues(model: BaseAlgorithm) -> bool:
    """Return whether the state of the model's environments can be read, so that their episodes go on."""
    return _bridge(model) is not None


def _bridge(model: BaseAlgorithm) -> SB3VecEnv | None:
    inner = None if model.env is None else model.env.unwrapped
    return inner if isinstance(inner, SB3VecEnv) else None


def _roots(model: BaseAlgorithm) -> dict[str, Any]:
    """Return the objects whose numbers change from rollout to rollout, by name."""
    roots: dict[str, Any] = {}
    on_device = model if isinstance(model, TensorRecurrentPPO) and model.why_numpy is None else None
    if on_device is not None:
        roots |= {f"{name}_scale": scale for name, scale in on_device._scales.items()}
    bridge = _bridge(model)
    if bridge is None:
        return roots
    session: dict[str, Any] = {"observations": model._last_obs, "starts": model._last_episode_starts}
    if on_device is not None:
        session |= {"actor": on_device._states.actor, "critic": on_device._states.critic}
        roots["episodes"] = on_device._episodes
    else:
        # Of `RecurrentPPO` alone.
        if (states := getattr(model, "_last_lstm_states", None)) is not None:
            session |= {f"{part}_{i}": state for part in ("pi", "vf") for i, state in enumerate(getattr(states, part))}
        normalizer, history = model.get_vec_normalize_env(), history_of(model.env)
        if normalizer is not None:
            session["returns"] = normalizer.returns
            if normalizer.norm_obs:
                session["original"] = normalizer.old_obs if model._last_obs is not None else None
        if history is not None:
            session["windows"] = history.windows
    return roots | {"session": session, "bridge": bridge}


def _sit_down(model: BaseAlgorithm, session: dict[str, Any], arrays: bool) -> None:
    """Let the model find what it saw last, `arrays` as NumPy's; its states have been overwritten in place."""
    if arrays:
        for name in ("observations", "starts", "original"):
            if isinstance(value := session.get(name), Tensor):
                session[name] = value.cpu().numpy()
    observations, history = session["observations"], history_of(model.env)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        normalizer.returns = session["returns"]
        normalizer.old_obs = session.get("original", observations)
    if history is not None:
        history.windows[:] = session["windows"]
    model._last_obs, model._last_episode_starts = observations, session["starts"]
    model._last_original_obs = observations if normalizer is None else normalizer.get_original_obs()


def _statistics(env: VecNormalize) -> dict[str, Any]:
    """Return the running statistics of the return that rewards are divided by, and of observations."""
    found: dict[str, Any] = {
        "mean": float(env.ret_rms.mean),
        "var": float(env.ret_rms.var),
        "count": float(env.ret_rms.count),
    }
    for name, moments in observation_moments(env).items():
        found[f"observation {name}"] = [moments.mean.tolist(), moments.var.tolist(), float(moments.count)]
    return found


def observation_moments(env: VecNormalize) -> dict[str, RunningMeanStd]:
    """Return the running statistics of observations, by the key of a Dict, "" for others; none without them."""
    if not env.norm_obs:
        return {}
    return dict(env.obs_rms) if isinstance(env.obs_rms, dict) else {"": env.obs_rms}


def _restore_statistics(env: VecNormalize, state: Mapping[str, Any]) -> None:
    env.ret_rms.mean, env.ret_rms.var = np.array(state["mean"]), np.array(state["var"])
    env.ret_rms.count = state["count"]
    for name, moments in observation_moments(env).items():
        mean, var, moments.count = state[f"observation {name}"]
        moments.mean, moments.var = np.array(mean), np.array(var)


def model_tensors(model: OnPolicyAlgorithm, moment: Moment) -> dict[str, Tensor]:
    """Return all tensors that decide how training goes on, by name; `moment` belongs to weights and optimizer."""
    tensors = {f"policy.{name}": value for name, value in model.policy.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(model.policy.optimizer).items()}
    return tensors | {f"moment.{name}": value for name, value in moment.tensors.items()}


def load_model(
    model: OnPolicyAlgorithm,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    progress: Progress,
    mine: Callable[[Moment], Moment] = lambda moment: moment,
) -> None:
    """Let a model go on from `model_tensors`, of the same shapes, and the facts of that moment.

    `mine` returns the part of the moment that belongs to the model's environments.

    Raises KeyError, RuntimeError, ValueError, TypeError or AttributeError where they do not fit.
    """
    model.policy.load_state_dict(under("policy", tensors))
    load_optimizer(model.policy.optimizer, under("optimizer", tensors))
    mine(Moment(under("moment", tensors), facts)).resume(model)
    model.num_timesteps, model._n_updates = progress.num_timesteps, progress.n_updates
