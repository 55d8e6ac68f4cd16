"""Soft actor-critic whose actor and critics have a memory.

A gradient step takes sequences of steps from the replay buffer. Each begins with the states that the networks had
there; `burn_in` steps bring these up to date with the present weights, and the loss is that of the steps after them. An
episode that ends inside is followed by the next one, from the initial state; the step at which a time limit cut it is
left out of the critics' loss, since nothing tells what would have come.

Sources: T. Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018); stored states and burn-in:
S. Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement Learning" (ICLR 2019).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robust_policies.errors import DivergedError
from robust_policies.files.tensors import load_optimizer, optimizer_tensors, under
from robust_policies.policies.actor import Actor
from robust_policies.policies.adam import FusedAdam, gradient_norm, take_step
from robust_policies.train.recipe.rates import rate_at
from robust_policies.train.recipe.recurrent_sac import RecurrentSacSection
from robust_policies.train.recipe.sb3 import entropy_weight
from robust_policies.train.recurrent_sac.networks import SequenceCritic, StochasticActor
from robust_policies.train.recurrent_sac.replay import SequenceReplay
from robust_policies.train.recurrent_sac.stage import Stage
from robust_policies.train.run.guard import diverged, in_rollout, in_update, in_weights

_EPISODES_SHOWN = 100
_MEASURED = ("train/critic_loss", "train/actor_loss", "train/ent_coef", "train/ent_coef_loss", "train/entropy")


class Networks(nn.Module):
    """All that is trained, and the target: what a checkpoint and the best policy are made of."""

    def __init__(self, actor: StochasticActor, critic: SequenceCritic, weight: float) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic
        self.target = copy.deepcopy(critic).requires_grad_(False)
        self.log_weight = nn.Parameter(torch.tensor(weight).log())


class RecurrentSAC:
    """Trains an actor in the environments of a `Stage`.

    Args:
        stage: n environments.
        networks: trained in place; those of the same seed begin with the same weights.
        settings: see `RecurrentSacSection`.
        seed: of exploration and of the choice of sequences.
    """

    def __init__(self, stage: Stage, networks: Networks, settings: RecurrentSacSection, seed: int) -> None:
        self.stage, self.networks, self.settings = stage, networks, settings
        self.actor, self.critic = networks.actor, networks.critic
        self.learns_entropy = entropy_weight(settings.ent_coef)[1]
        wanted = settings.target_entropy
        self.target_entropy = -float(stage.action_size) if wanted == "auto" else float(wanted)
        self.parameters = {
            "actor": list(self.actor.parameters()),
            "critic": list(self.critic.parameters()),
            "entropy": [networks.log_weight],
        }
        self.optimizers = {name: FusedAdam(parameters) for name, parameters in self.parameters.items()}
        self.generator = torch.Generator(stage.device).manual_seed(seed)
        self.steps = self.n_updates = 0
        self.episodes: deque[tuple[float, int]] = deque(maxlen=_EPISODES_SHOWN)
        self._unseen: list[dict[str, Tensor]] = []
        # Of what is on a GPU an answer is waited for.
        self._looks_at_once = not stage.torch or stage.device.type == "cpu"
        self.now = self._beginning()
        shapes = {name: tuple(value.shape[1:]) for name, value in self.now.items() if name not in ("gained", "age")}
        shapes |= {"action": (stage.action_size,), "reward": (), "terminated": (), "ended": ()}
        rows = settings.buffer_size // stage.count
        self.replay = SequenceReplay(rows, shapes, {"start", "terminated", "ended"}, stage.count, stage.device)

    @property
    def steps_per_update(self) -> int:
        """Environment steps between two updates."""
        return self.stage.count * self.settings.train_freq

    def update(self, remaining: float) -> dict[str, float]:
        """Return the scalars of one update, when the share `remaining` of the training is left: steps, then gradients.

        Raises:
            DivergedError: something became NaN or infinite.
        """
        settings = self.settings
        for _ in range(settings.train_freq):
            self._step()
            if self._looks_at_once:
                self._look()
        if not self._looks_at_once:
            self._look()
        self.n_updates += 1
        if self.steps <= settings.learning_starts or self.replay.filled < settings.rows:
            return {}
        rate = rate_at(settings.learning_rate, remaining)
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = rate
        measured, norms = zip(*(self._gradient_step() for _ in range(settings.gradient_steps)), strict=True)
        if found := in_update(measured, norms) or in_weights(self.networks.state_dict()):
            raise self._diverged(found)
        means = torch.stack(measured).mean(0).tolist()
        norm = float(torch.stack(norms).mean())
        return {**dict(zip(_MEASURED, means, strict=True)), "train/gradient_norm": norm, "train/learning_rate": rate}

    def tensors(self) -> dict[str, Tensor]:
        """Return everything but the environments that decides how training goes on, by name."""
        found = {f"networks.{name}": value for name, value in self.networks.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            found |= {f"{name}_optimizer.{key}": value for key, value in optimizer_tensors(optimizer).items()}
        found |= {f"replay.{name}": value for name, value in self.replay.tensors().items()}
        found |= {f"now.{name}": value for name, value in self.now.items()}
        found["generator"] = self.generator.get_state()
        found["episodes"] = torch.tensor(list(self.episodes), dtype=torch.float64).reshape(-1, 2)
        found["counts"] = torch.tensor([self.steps, self.n_updates])
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor], *, begun: bool) -> None:
        """Go on from what `tensors` returned, of the same shapes; raises KeyError or RuntimeError elsewhere.

        Args:
            tensors: by name.
            begun: the environments are in the middle of the same episodes; else new ones begin.
        """
        self.networks.load_state_dict(under("networks", tensors))
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, under(f"{name}_optimizer", tensors))
        self.replay.load_tensors(under("replay", tensors))
        if not begun and self.replay.filled:
            # Nothing tells what came after the last step, as where a time limit cuts an episode.
            self.replay.arrays["ended"][self.replay.position - 1] = True
        if begun:
            self.now = {name: value.to(self.stage.device) for name, value in under("now", tensors).items()}
        self.generator.set_state(tensors["generator"])
        self.episodes.clear()
        self.episodes.extend((float(total), int(length)) for total, length in tensors["episodes"])
        self.steps, self.n_updates = tensors["counts"].tolist()

    def _beginning(self) -> dict[str, Tensor]:
        """Return what is before the first step: (n, ...) tensors by name."""
        stage, count = self.stage, self.stage.count
        ones = torch.ones(count, dtype=torch.bool, device=stage.device)
        return {
            "observation": stage.reset(),
            "start": ones,
            "previous": torch.zeros(count, stage.action_size, device=stage.device),
            "actor": self.actor.actor.cell.initial_state(count),
            "critic": self.critic.body.cell.initial_state(count).detach(),
            "gained": torch.zeros(count, dtype=torch.float64, device=stage.device),
            "age": torch.zeros(count, dtype=torch.int64, device=stage.device),
        }

    @torch.no_grad()
    def _step(self) -> None:
        """Act once in every environment, and store what happened."""
        stage, now = self.stage, self.now
        size = (stage.count, stage.action_size)
        outputs, actor = self.actor.actor.body.step(now["observation"], now["actor"])
        if self.steps < self.settings.learning_starts:
            action = torch.rand(size, generator=self.generator, device=stage.device) * 2.0 - 1.0
        else:
            action = self.actor.sample(outputs, self._normal(*size))[0]
        critic = self.critic.follow(now["observation"], now["previous"], now["critic"])
        observation, reward, terminated, ended = stage.step(action)
        kept = {name: value for name, value in now.items() if name not in ("gained", "age")}
        self.replay.add(**kept, action=action, reward=reward, terminated=terminated, ended=ended)
        self.steps += stage.count
        gained, age, over = now["gained"] + reward, now["age"] + 1, ended.unsqueeze(-1)
        seen = {"action": action, "observation": observation, "reward": reward}
        self._unseen.append({**seen, "ended": ended, "gained": gained, "age": age})
        # The initial state is zero.
        after = {"previous": action, "actor": actor, "critic": critic}
        self.now = {
            "observation": observation,
            "start": ended,
            **{name: value.masked_fill(over, 0.0) for name, value in after.items()},
            "gained": gained.masked_fill(ended, 0.0),
            "age": age.masked_fill(ended, 0),
        }

    def _look(self) -> None:
        """Note which episodes ended since the last look; raises `DivergedError` where something was not finite."""
        steps = {name: torch.stack([step[name] for step in self._unseen]) for name in self._unseen[0]}
        self._unseen.clear()
        if found := in_rollout(**{name: steps[name] for name in ("action", "observation", "reward")}):
            raise self._diverged(found)
        ends = steps["ended"].nonzero(as_tuple=True)
        totals, lengths = steps["gained"][ends].tolist(), steps["age"][ends].tolist()
        self.episodes.extend(zip(totals, lengths, strict=True))

    def _gradient_step(self) -> tuple[Tensor, Tensor]:
        """Return (what `_MEASURED` names, the norm of the gradients) of one step of all networks."""
        settings, networks = self.settings, self.networks
        seen = self.replay.sample(settings.batch_size, settings.rows, self.generator)
        # To ask a device would be to wait for it.
        starts = seen["start"] if self.stage.device.type != "cpu" or bool(seen["start"].any()) else None
        burnt = settings.burn_in
        states = self._burnt_in(seen, starts)
        observed, previous = seen["observation"][burnt:], seen["previous"][burnt:]
        later = None if starts is None else starts[burnt:]
        action, reward = seen["action"][burnt:-1], seen["reward"][burnt:-1]
        body = self.actor.actor.body
        outputs, _ = body.run(observed, states["actor"], later)
        drawn, density = self.actor.sample(outputs, self._normal(*outputs.shape[:2], self.stage.action_size))
        weight = networks.log_weight.detach().exp()
        with torch.no_grad():
            # In one run, from the stored state through the burn-in.
            target = networks.target.features(seen["observation"], seen["previous"], seen["critic"][0], starts)[0]
            values = networks.target.value(target[burnt + 1 :], drawn[1:])
            soft = values.amin(0) - weight * density[1:]
            wanted = reward + settings.discount * soft.masked_fill(seen["terminated"][burnt:-1], 0.0)
            # A time limit: the row after it is another episode's.
            counts = (~seen["ended"] | seen["terminated"])[burnt:-1].to(wanted.dtype)
            counts = counts / counts.sum().clamp_min(1.0)
        begun = None if later is None else later[:-1]
        features, _ = self.critic.features(observed[:-1], previous[:-1], states["critic"], begun)
        loss = (0.5 * (self.critic.value(features, action) - wanted).square() * counts).sum()
        critic_norm = self._take("critic", loss)
        least = self.critic.value(features.detach(), drawn[:-1]).amin(0)
        actor_loss = (weight * density[:-1] - least).mean()
        actor_norm = self._take("actor", actor_loss)
        surplus = density.detach().mean() + self.target_entropy
        entropy_loss = -networks.log_weight * surplus
        if self.learns_entropy:
            self._take("entropy", entropy_loss)
        with torch.no_grad():
            for slow, fast in zip(networks.target.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(fast, settings.tau)
        shown = (loss, actor_loss, weight, entropy_loss, self.target_entropy - surplus)
        return torch.stack([value.detach() for value in shown]), critic_norm + actor_norm

    @torch.no_grad()
    def _burnt_in(self, seen: Mapping[str, Tensor], starts: Tensor | None) -> dict[str, Tensor]:
        """Return the states after the burn-in, by the name of the network: the stored ones brought up to date."""
        burnt = self.settings.burn_in
        found = {name: seen[name][0] for name in ("actor", "critic")}
        if not burnt:
            return found
        observed, previous = seen["observation"][:burnt], seen["previous"][:burnt]
        early = None if starts is None else starts[:burnt]
        found["actor"] = self.actor.actor.body.run(observed, found["actor"], early)[1]
        found["critic"] = self.critic.features(observed, previous, found["critic"], early)[1]
        return found

    def _take(self, name: str, loss: Tensor) -> Tensor:
        """Return the gradient's norm of one step that lowers `loss`, of the parameters of that name alone."""
        parameters = self.parameters[name]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = gradient_norm(parameters)
        take_step(self.optimizers[name], parameters, norm, self.settings.max_grad_norm)
        return norm

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.stage.device)

    def _diverged(self, what: str) -> DivergedError:
        return diverged(what, self.n_updates + 1, self.steps)


def deterministic(actor: StochasticActor) -> Actor:
    """Return a copy of the actor without its noise, on the CPU."""
    return copy.deepcopy(actor.actor).cpu()
