"""A reward that is learnt: it is to be larger for what the teacher does than for what the student does.

With r(o, a) a network, the logistic loss is that of the discriminator 1 / (1 + exp(-r)), mean softplus(-r) over the
teacher's steps plus mean softplus(r) over the student's; the Wasserstein loss is the difference of the means. The
student is rewarded with r itself, so that the bound of the network's gain is that of the reward.

Sources: J. Ho and S. Ermon, "Generative Adversarial Imitation Learning" (NeurIPS 2016, arXiv 1606.03476); with r itself
as the reward, J. Fu, K. Luo and S. Levine (ICLR 2018, arXiv 1710.11248); the Wasserstein loss, M. Arjovsky, S. Chintala
and L. Bottou (arXiv 1701.07875).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from robust_policies.certificates import empirical_gain, verify
from robust_policies.networks import make_cell
from robust_policies.policies.adam import FusedAdam, forget_gradients, gradient_norm, take_step
from robust_policies.train.recipe.gail import RewardSection
from robust_policies.train.run.guard import in_weights

# An entry that the teacher hardly moves is not blown up by what little it moves.
_SMALLEST_SCALE = 1e-4
_MAX_GRAD_NORM = 1.0


class LearnedReward(nn.Module):
    """r(o, a) of an observation (..., nu) and an action (..., na), each in units of the teacher's deviation.

    Args:
        observations: (N, nu) of the teacher.
        actions: (N, na) of the teacher.
        settings: of the network.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, observations: Tensor, actions: Tensor, settings: RewardSection) -> None:
        super().__init__()
        shown = torch.cat((observations, actions), -1).float()
        scale = shown.std(0, unbiased=False)
        self.register_buffer("offset", shown.mean(0))
        self.register_buffer("scale", torch.where(scale < _SMALLEST_SCALE, 1.0, scale))
        options: dict[str, Any] = {"hidden_sizes": settings.hidden_sizes, "activation": settings.activation}
        if settings.cell == "lbdn":
            options["gamma"] = 1.0 if settings.gamma is None else settings.gamma
        self.cell = make_cell(settings.cell, shown.shape[-1], 1, **options)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return the rewards (...)."""
        return self.of_scaled((torch.cat((observations.float(), actions.float()), -1) - self.offset) / self.scale)

    def of_scaled(self, inputs: Tensor) -> Tensor:
        """Return the rewards (...) of observations and actions (..., nu + na) that are scaled already."""
        flat = inputs.reshape(1, -1, inputs.shape[-1])
        rewards, _ = self.cell(flat, self.cell.initial_state(flat.shape[1]))
        return rewards.reshape(inputs.shape[:-1])


class Adversary:
    """A reward and how it learns to tell the teacher's steps from the student's.

    Args:
        observations: (N, nu) of the teacher.
        actions: (N, na) of the teacher, as applied.
        settings: see `RewardSection`.
        device: where it learns.
    """

    def __init__(self, observations: Tensor, actions: Tensor, settings: RewardSection, device: torch.device) -> None:
        self.settings = settings
        self.reward = LearnedReward(observations, actions, settings).to(device)
        shown = torch.cat((observations, actions), -1).to(device, torch.float32)
        self.shown = (shown - self.reward.offset) / self.reward.scale
        self.optimizer = FusedAdam(self.reward.parameters(), lr=settings.learning_rate)

    def learn(self, observations: Tensor, actions: Tensor) -> dict[str, float]:
        """Take `updates` gradient steps against the student's steps (M, nu), (M, na) and return their means.

        The minibatches come from PyTorch's global generator.

        Raises:
            FloatingPointError: the loss or a weight is no longer finite; the message says which.
        """
        settings, reward = self.settings, self.reward
        own = (torch.cat((observations.float(), actions.float()), -1) - reward.offset) / reward.scale
        parameters = list(reward.parameters())
        found: list[Tensor] = []
        for _ in range(settings.updates):
            shown = self._drawn(self.shown)
            with torch.enable_grad():
                said = reward.of_scaled(torch.cat((shown, self._drawn(own))))
                theirs, mine = said[: len(shown)], said[len(shown) :]
                if settings.loss == "logistic":
                    loss = softplus(-theirs).mean() + softplus(mine).mean()
                else:
                    loss = mine.mean() - theirs.mean()
                forget_gradients(parameters)
                loss.backward()
            take_step(self.optimizer, parameters, gradient_norm(parameters), _MAX_GRAD_NORM)
            found.append(torch.stack((loss.detach(), theirs.detach().mean() - mine.detach().mean())))
        forget_gradients(parameters)
        loss, gap = torch.stack(found).mean(0).tolist()
        spoilt = in_weights(reward.state_dict()) or (None if loss == loss else "the reward's loss was nan")
        if spoilt:
            raise FloatingPointError(spoilt)
        return {"imitation/reward_loss": loss, "imitation/reward_gap": gap}

    def gains(self) -> dict[str, float | None]:
        """Return what is known of the reward's gain from scaled observation and action: designed, proven, found.

        Only of a designed gain a proof is sought: the search for one of an MLP takes longer than many a training.
        """
        cell = self.reward.cell.double_copy()
        bounded = self.settings.cell == "lbdn"
        proven = verify(cell).gamma if bounded else None
        bases = self.shown[:64].double().cpu().unsqueeze(0).numpy()
        found = empirical_gain(cell, 1, bases=bases).gain
        return {"gamma": cell.gamma if bounded else None, "proven_gain": proven, "found_gain": found}

    def _drawn(self, rows: Tensor) -> Tensor:
        return rows[torch.randint(len(rows), (self.settings.batch_size,), device=rows.device)]
