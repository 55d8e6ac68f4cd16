"""A rollout and an update on a GPU as one CUDA graph each, where they do the same on the device every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from robust_policies.envs.bridges.sb3 import SB3VecEnv
from robust_policies.envs.perturb.vector_wrapper import Wrapper
from robust_policies.envs.snapshot import numeric_places
from robust_policies.envs.wrappers import TensorWrapper
from robust_policies.graphs import Graph, Place
from robust_policies.policies.adam import FusedAdam
from robust_policies.train.ppo.losses import Terms
from robust_policies.train.ppo.policy import Arrays
from robust_policies.train.ppo.rollout import Now, Played, Stage, Step
from robust_policies.train.ppo.update import Settings, Taken, Update
from robust_policies.train.run.ranks import Ranks

GRAPHS = ("auto", "never")
"""Whether CUDA graphs are recorded: where they can be, or not at all."""
_NEVER = "graphs is never"


class RecordedRollout:
    """Plays the rollouts of a stage as one graph: what callbacks are told of its steps they are told after the last.

    Arrays that the weights give are made outside of it, once a rollout: libraries that factor matrices need not be
    able to be recorded for it.

    Args:
        stage: where.
        judge: what follows every rollout on the device alone.
        roots: what else of the model changes in a rollout, objects by name.
        settings: () -> what `judge` depends on besides.
        wanted: one of `GRAPHS`.
    """

    def __init__(
        self,
        stage: Stage,
        judge: Callable[[Played], None],
        roots: dict[str, Any],
        settings: Callable[[], Any],
        wanted: str,
    ) -> None:
        self.stage, self.judge, self.roots = stage, judge, roots
        self.held: tuple[Now, Arrays] | None = None
        device = stage.buffer.device
        self.graph = Graph("A rollout", self._play, self._places, settings, device, _unwanted(wanted))
        _refuse(self.graph, _of_ranks(stage.ranks) or _of_environments(stage.env), stage.ranks)

    @property
    def possible(self) -> bool:
        """Whether rollouts are to be played here."""
        return self.graph.why_not is None

    def __call__(self, now: Now) -> tuple[list[Step], Played]:
        """Return the steps of a rollout and what it ended with; the next one writes into the same tensors."""
        given = now, self.stage.tensors.arrays()
        if self.held is None:
            self.held = tree_map_only(Tensor, torch.clone, given)
        else:
            _write(self.held, given)
        return self.graph()

    def _play(self) -> tuple[list[Step], Played]:
        assert self.held is not None
        now, arrays = self.held
        steps: list[Step] = []

        def told(_: int, step: Step) -> bool:
            steps.append(step)
            return True

        played = self.stage.play(now, told, arrays)
        assert played is not None
        self.judge(played)
        _write(now, played.now)
        return steps, played._replace(now=now)

    def _places(self) -> dict[str, Place]:
        stage = self.stage
        held = {str(number): value for number, value in enumerate(tree_leaves(self.held))}
        policy = _modules(stage.tensors.policy)
        roots = {"bridge": stage.env, "plant": stage.env.inner.plant, "buffer": stage.buffer}
        return dict(numeric_places({**roots, **self.roots, "held": held, **policy}))


class RecordedUpdate:
    """Takes the gradient steps of an update as one graph.

    Rates, limits and the order of environments are read from tensors there; a change of anything else is recorded anew.

    Args:
        update: whose.
        wanted: one of `GRAPHS`.
    """

    def __init__(self, update: Update, wanted: str) -> None:
        self.update = update
        self.settings: Settings | None = None
        device = update.buffer.device
        self.held: dict[str, Tensor] = {
            # The kernel reads it in float32.
            "rate": torch.zeros((), dtype=torch.float32, device=device),
            # Half of a float64 and half of a number of Python's are rounded to float32 alike.
            "clip": torch.zeros((), dtype=torch.float64, device=device),
            "clip_values": torch.zeros((), dtype=torch.float64, device=device),
        }
        self.graph = Graph("An update", self._take, self._places, self._decided, device, _unwanted(wanted))
        optimizer = update.optimizer
        reason = _of_ranks(update.ranks)
        if not isinstance(optimizer, FusedAdam):
            reason = f"the optimizer is a {type(optimizer).__name__}, not Stable-Baselines3's Adam"
        elif update.tensors.cut:
            reason = "an LSTM or GRU is cut where episodes begin, elsewhere in every rollout"
        _refuse(self.graph, reason, update.ranks)

    def possible(self, settings: Settings) -> bool:
        """Return whether updates are to be made here."""
        if settings.target_kl is not None:
            _refuse(self.graph, "target_kl asks after every step whether to go on", self.update.ranks)
        return self.graph.why_not is None

    def __call__(self, settings: Settings) -> Taken:
        """Return what the gradient steps of an update gave; the next one writes into the same tensors."""
        buffer, terms = self.update.buffer, settings.terms
        orders = [one for _ in range(settings.epochs) if (one := buffer.drawn(settings.minibatches)) is not None]
        if orders:
            shape = settings.epochs, buffer.n_envs
            if "orders" not in self.held or self.held["orders"].shape != shape:
                self.held["orders"] = torch.zeros(shape, dtype=torch.int64, device=buffer.device)
            for row, order in zip(self.held["orders"].unbind(), orders, strict=True):
                row.copy_(order)
        self.held["rate"].fill_(self.update.optimizer.param_groups[0]["lr"])
        self.held["clip"].fill_(terms.clip)
        self.held["clip_values"].fill_(0.0 if terms.clip_values is None else terms.clip_values)
        none = None if terms.clip_values is None else 0.0
        self.settings = replace(settings, terms=terms._replace(clip=0.0, clip_values=none))
        taken: Taken = self.graph()
        # A replay changes them unseen.
        torch.autograd.graph.increment_version(self.update.parameters)
        return taken

    def _take(self) -> Taken:
        settings, held, optimizer = self.settings, self.held, self.update.optimizer
        assert settings is not None and isinstance(optimizer, FusedAdam)
        limited = settings.terms.clip_values is not None
        terms = settings.terms._replace(clip=held["clip"], clip_values=held["clip_values"] if limited else None)
        orders = None if settings.minibatches == 1 else held["orders"].unbind()
        taken = Taken()
        with optimizer.at_rate(held["rate"], self.graph.recording):
            self.update.take(replace(settings, terms=Terms(*terms)), self.update, taken, orders)
        return taken

    def _decided(self) -> Any:
        """Return what the steps depend on besides the tensors: settings, the optimizer's, what is frozen."""
        read = {"params", "lr", "capturable"}
        groups = [{k: v for k, v in one.items() if k not in read} for one in self.update.optimizer.param_groups]
        return self.settings, groups, [one.requires_grad for one in self.update.parameters]

    def _places(self) -> dict[str, Place]:
        update = self.update
        states = {str(number): update.optimizer.state.get(one, {}) for number, one in enumerate(update.parameters)}
        roots = {"buffer": update.buffer, "held": self.held, "optimizer": states, **_modules(update.tensors.policy)}
        return dict(numeric_places(roots))


def _modules(policy: nn.Module) -> dict[str, Any]:
    """Return the tensors of a policy's modules as roots of `numeric_places`."""
    modules = dict(policy.named_modules())
    return {
        "parameters": {name: module._parameters for name, module in modules.items()},
        "buffers": {name: module._buffers for name, module in modules.items()},
    }


def _write(held: Any, given: Any) -> None:
    """Copy the tensors of one structure into those of another."""
    for one, other in zip(tree_leaves(held), tree_leaves(given), strict=True):
        if isinstance(one, Tensor) and one is not other:
            one.copy_(other)


def _unwanted(wanted: str) -> str | None:
    return _NEVER if wanted == "never" else None


def _refuse(graph: Graph, reason: str | None, ranks: Ranks) -> None:
    """Let a graph that could be recorded otherwise not be, and the first rank say why."""
    if reason is not None and graph.why_not is None:
        graph.give_up(reason, quiet=not ranks.first)


def _of_ranks(ranks: Ranks) -> str | None:
    return None if ranks.alone else f"{ranks.size} ranks train together"


def _of_environments(env: SB3VecEnv) -> str | None:
    """Return why steps of environments cannot be recorded, None if nothing is known against it."""
    inner, wrapper = env.inner, env.env
    if not inner.plant.differentiable:
        return f"the physics of {inner.plant.kind} is not PyTorch's"
    if inner._steps.reuses_tensors:
        return "compile=True makes a graph of each step"
    while wrapper is not inner:
        ours = type(wrapper).__module__.startswith("robust_policies.")
        if not (ours and isinstance(wrapper, TensorWrapper | Wrapper)):
            return f"a {type(wrapper).__name__} around the environments may keep numbers of its own"
        wrapper = wrapper.env
    return None
