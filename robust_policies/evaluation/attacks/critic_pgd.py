"""Each observation is moved so that a critic gives the step the lowest value (the critic attack of Zhang et al. 2020).

The critic is the attack's own, so that any policy can be attacked: a regression of discounted returns of episodes under
random perturbations on what a perturbation changes, the action taken and the policy's next state, at the true
observation. `prepare` plays those episodes and fits it.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from robust_policies.errors import DivergedError
from robust_policies.evaluation.attacks.attack import Attack, Moment, Options, Tuning
from robust_policies.evaluation.attacks.random import Random, RandomOptions
from robust_policies.evaluation.attacks.search import Objective, ascend
from robust_policies.evaluation.rollout import play_episodes
from robust_policies.policies.frozen import FrozenActor


class CriticOptions(Options):
    """Settings of `critic_pgd`."""

    steps: PositiveInt = Field(10, description="gradient steps for each observation")
    restarts: PositiveInt = Field(1, description="random starts, the best of which counts")
    rate: float = Field(0.6, gt=0, description="length of the first gradient step, in budgets")
    discount: float = Field(0.97, gt=0, lt=1, description="of the returns that the critic is fitted to")
    width: PositiveInt = Field(64, description="of the critic's two hidden layers")
    updates: PositiveInt = Field(1500, description="steps of Adam that fit the critic")
    explore: float = Field(3.0, ge=1, description="random perturbations go up to this multiple of the largest size")


class Critic(nn.Module):
    """The value (batch,) of an observation, an action and the policy's next state, in standard deviations."""

    mean: Tensor
    std: Tensor

    def __init__(self, inputs: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", inputs.mean(0))
        self.register_buffer("std", inputs.std(0).clamp(min=1e-6))
        size = inputs.shape[1]
        self.layers = nn.Sequential(
            nn.Linear(size, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the values (batch,) of inputs (batch, n)."""
        return self.layers((inputs - self.mean) / self.std).squeeze(-1)


class CriticPGD(Attack):
    """Projected gradient on the fitted value of this step's action and of what the policy will remember."""

    Options = CriticOptions
    needs_preparation = True

    @classmethod
    def prepare(cls, options: CriticOptions, tuning: Tuning) -> Critic:
        """Return the critic, fitted to the tuning episodes.

        Raises:
            DivergedError: all those episodes failed.
        """
        actor = FrozenActor(tuning.policy)
        pieces = [_recorded(actor, tuning, seed, options) for seed in tuning.seeds]
        inputs, values = (torch.cat([piece[i] for piece in pieces]) for i in (0, 1))
        if len(values) < 2:
            raise DivergedError("The tuning episodes of critic_pgd gave no finite return; the policy is broken.")
        values = (values - values.mean()) / values.std().clamp(min=1e-6)
        device = actor.low.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(tuning.seeds[0])
            critic = Critic(inputs, options.width).to(device)
            optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3, weight_decay=1e-5)
            for _ in range(options.updates):
                chosen = torch.randint(len(values), (512,)).to(device)
                loss = (critic(inputs[chosen]) - values[chosen]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return critic.requires_grad_(False)

    def perturbation(self, moment: Moment) -> Tensor:
        """Return the perturbations found for the observations of this moment."""
        actor, options, critic = self.scene.actor, self.options, self.prepared
        ball = self.scene.budget.ball(moment.t, 1)
        hidden, observation = (v.repeat(options.restarts, 1) for v in (moment.hidden, moment.observation))

        def harm(delta: Tensor) -> Tensor:
            action, memory = actor.step(observation + delta[0], hidden)
            return -critic(torch.cat((observation, actor.clip(action), memory), dim=-1).float())

        starts = self.starts(options.restarts, 1) * ball.size.reshape(1, 1, -1, 1)
        return ascend(Objective(harm), starts, ball, steps=options.steps, rate=options.rate)[0][0]


def _recorded(actor: FrozenActor, tuning: Tuning, seed: int, options: CriticOptions) -> tuple[Tensor, Tensor]:
    """Return (inputs, discounted returns) of all steps of randomly perturbed episodes of one seed."""
    largest = options.explore * max(tuning.sizes)
    yardstick = Random(RandomOptions(where="surface"))
    found = play_episodes(
        tuning.policy,
        tuning.env_id,
        yardstick,
        [largest * share for share in (0.0, 0.25, 0.5, 1.0)],
        tuning.episodes,
        seed,
        norm=tuning.norm,
        env_kwargs=tuning.env_kwargs,
        perturbations=tuning.perturbations,
        max_steps=tuning.max_steps,
        record=tuning.episodes,
    )
    device = actor.low.device
    data = {name: torch.as_tensor(value, device=device).flatten(1, 2) for name, value in found.recorded.items()}
    time, batch = data["rewards"].shape
    hidden, states = actor.initial_state(batch), []
    with torch.no_grad():
        for perturbed in data["perturbed"]:
            _, hidden = actor.step(perturbed, hidden)
            states.append(hidden)
    following, values = torch.zeros(batch, device=device), []
    for reward in reversed(data["rewards"]):
        following = reward + options.discount * following
        values.append(following)
    inputs = torch.cat((data["observations"], actor.seen(data), torch.stack(states)), dim=-1)
    lengths = torch.as_tensor(found.lengths, device=device).flatten()
    counted = torch.arange(time, device=device).unsqueeze(1) < lengths
    # What a time limit cuts off is missing from the returns of the last steps.
    full = torch.arange(time, device=device).unsqueeze(1) < time - min(time // 4, round(2 / (1 - options.discount)))
    ended_before = (lengths < time).unsqueeze(0)
    counted = counted & (full | ended_before) & ~torch.as_tensor(found.failed, device=device).flatten()
    target = torch.stack(values[::-1])
    finite = counted & torch.isfinite(target) & torch.isfinite(inputs).all(-1)
    return inputs[finite], target[finite]
