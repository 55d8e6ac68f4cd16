"""Where a PPO run stands between two updates, beside its weights: all that decides what comes next."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from robust_policies.envs.bridges.sb3 import SB3VecEnv
from robust_policies.envs.snapshot import Snapshot, capture, restore
from robust_policies.files.tensors import load_optimizer, optimizer_tensors, under
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
    def of(cls, model: OnPolicyAlgorithm) -> Moment:
        """Return the present moment of a model that is about to collect a rollout."""
        normalizer = model.get_vec_normalize_env()
        facts: dict[str, Any] = {
            "random": random_state(),
            "arrays": isinstance(model._last_obs, np.ndarray),
            "episodes": [[float(one["r"]), int(one["l"]), float(one["t"])] for one in model.ep_info_buffer or ()],
            "successes": [float(one) for one in model.ep_success_buffer or ()],
            "normalizer": None if normalizer is None else _statistics(normalizer),
        }
        roots = _roots(model)
        snapshot = capture(**roots)
        facts |= {"values": snapshot.values, "same": snapshot.same}
        return cls(snapshot.tensors, facts)

    def resume(self, model: OnPolicyAlgorithm) -> None:
        """Put the model there.

        Where the environments' state could not be read, they begin new episodes from seeds of their own.
        """
        episodes = ({"r": total, "l": length, "t": seconds} for total, length, seconds in self.facts["episodes"])
        model.ep_info_buffer = deque(episodes, maxlen=model._stats_window_size)
        model.ep_success_buffer = deque(self.facts["successes"], maxlen=model._stats_window_size)
        normalizer, statistics = model.get_vec_normalize_env(), self.facts["normalizer"]
        if normalizer is not None and statistics is not None:
            _restore_statistics(normalizer, statistics)
        roots = _roots(model)
        restore(Snapshot(dict(self.tensors), self.facts["values"], self.facts["same"]), **roots)
        if "session" in roots:
            _sit_down(model, roots["session"], self.facts["arrays"])
        restore_random_state(self.facts["random"])


def continues(model: OnPolicyAlgorithm) -> bool:
    """Return whether the state of the model's environments can be read, so that their episodes go on."""
    return _bridge(model) is not None


def _bridge(model: OnPolicyAlgorithm) -> SB3VecEnv | None:
    inner = None if model.env is None else model.env.unwrapped
    return inner if isinstance(inner, SB3VecEnv) else None


def _roots(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """Return the objects whose numbers change from rollout to rollout, by name."""
    roots: dict[str, Any] = {}
    if isinstance(model, TensorRecurrentPPO) and model.why_numpy is None:
        roots |= {f"{name}_scale": scale for name, scale in model._scales.items()}
    bridge = _bridge(model)
    if bridge is None:
        return roots
    session: dict[str, Any] = {"observations": model._last_obs, "starts": model._last_episode_starts}
    if isinstance(model, TensorRecurrentPPO) and model.why_numpy is None:
        session |= {"actor": model._states.actor, "critic": model._states.critic}
        roots["episodes"] = model._episodes
    else:
        # Of `RecurrentPPO`, the other class of these models.
        states: Any = model._last_lstm_states  # pyright: ignore[reportAttributeAccessIssue]
        session |= {f"{part}_{i}": state for part in ("pi", "vf") for i, state in enumerate(getattr(states, part))}
        normalizer = model.get_vec_normalize_env()
        if normalizer is not None:
            session["returns"] = normalizer.returns
    return roots | {"session": session, "bridge": bridge}


def _sit_down(model: OnPolicyAlgorithm, session: Mapping[str, Any], arrays: bool) -> None:
    """Let the model find what it saw last, `arrays` as NumPy's; its states have been overwritten in place."""
    observations, starts = session["observations"], session["starts"]
    if arrays:
        observations, starts = observations.cpu().numpy(), starts.cpu().numpy()
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        normalizer.returns = session["returns"]
        normalizer.old_obs = observations
    model._last_obs, model._last_episode_starts = observations, starts


def _statistics(env: VecNormalize) -> dict[str, float]:
    """Return the running statistics of the return that rewards are divided by."""
    return {"mean": float(env.ret_rms.mean), "var": float(env.ret_rms.var), "count": float(env.ret_rms.count)}


def _restore_statistics(env: VecNormalize, state: Mapping[str, float]) -> None:
    env.ret_rms.mean, env.ret_rms.var = np.array(state["mean"]), np.array(state["var"])
    env.ret_rms.count = state["count"]


def model_tensors(model: OnPolicyAlgorithm, moment: Moment) -> dict[str, Tensor]:
    """Return all tensors that decide how training goes on, by name; `moment` belongs to weights and optimizer."""
    tensors = {f"policy.{name}": value for name, value in model.policy.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(model.policy.optimizer).items()}
    return tensors | {f"moment.{name}": value for name, value in moment.tensors.items()}


def load_model(
    model: OnPolicyAlgorithm, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], progress: Progress
) -> None:
    """Let a model go on from `model_tensors`, of the same shapes, and the facts of that moment.

    Raises KeyError, RuntimeError, ValueError, TypeError or AttributeError where they do not fit.
    """
    model.policy.load_state_dict(under("policy", tensors))
    load_optimizer(model.policy.optimizer, under("optimizer", tensors))
    Moment(under("moment", tensors), facts).resume(model)
    model.num_timesteps, model._n_updates = progress.num_timesteps, progress.n_updates
