"""One rollout as tensors of fixed shape (time, env, ...), its advantages, and minibatches of whole sequences."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from robust_policies.errors import InvalidValueError
from robust_policies.train.run.ranks import ALONE, Ranks


class Minibatch(NamedTuple):
    """The sequences of some environments: (time, batch, ...), and the states (batch, nx) that they began with."""

    observations: Tensor
    actions: Tensor
    starts: Tensor
    values: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    actor_state: Tensor
    critic_state: Tensor


class Pieces:
    """One minibatch, in pieces of at most `width` environments, gathered as they are asked for.

    Over several ranks it is this rank's part of a minibatch of `size` environments; where it has none of them, the
    first environment stands for nothing, with the share 0.
    """

    def __init__(
        self, buffer: TensorRolloutBuffer, order: Tensor | None, places: range, width: int, size: int | None = None
    ) -> None:
        self._buffer, self._order, self._places, self._width = buffer, order, places, width
        self._size = len(places) if size is None else size

    @property
    def whole(self) -> bool:
        """Whether the minibatch is one piece."""
        return len(self) == 1 and len(self._places) == self._size

    def __len__(self) -> int:
        return -(-len(self._places) // self._width)

    def __iter__(self) -> Iterator[tuple[Minibatch, float]]:
        """Yield each piece with its share of the minibatch."""
        for rows, share in self.places():
            yield self._buffer.take(rows), share

    def places(self) -> Iterator[tuple[Tensor | slice, float]]:
        """Yield each piece's environments, by number or a slice, with its share of the minibatch."""
        if not self._places:
            yield slice(0, 1), 0.0
        for first in self._places[:: self._width]:
            piece = slice(first, min(first + self._width, self._places.stop))
            rows = piece if self._order is None else self._order[piece]
            yield rows, (piece.stop - piece.start) / self._size


class TensorRolloutBuffer:
    """What one rollout leaves behind, on one device; every rollout writes into the same memory.

    Attributes:
        observations: (n_steps, n_envs, *observation_shape).
        actions: (n_steps, n_envs, *action_shape), as sampled, not clipped.
        starts: (n_steps, n_envs) bool: an episode begins with that step.
        rewards: (n_steps, n_envs), as the environment gave them.
        dones: (n_steps, n_envs) bool: an episode ends with that step.
        values, log_probs, advantages, returns: (n_steps, n_envs).
        actor_state, critic_state: (n_envs, nx) before the first step.
        counted: (n_steps, n_envs), the advantages as the present epoch has them.
        begins: the steps with a start, once `find_begins` has been called in the present rollout.
    """

    def __init__(
        self,
        n_steps: int,
        n_envs: int,
        observation_shape: tuple[int, ...],
        action_shape: tuple[int, ...],
        state_sizes: tuple[int, int],
        device: torch.device,
        action_dtype: torch.dtype = torch.float32,
        observation_dtype: torch.dtype = torch.float32,
        ranks: Ranks = ALONE,
    ) -> None:
        self.buffer_size, self.n_envs, self.device, self.ranks = n_steps, n_envs, device, ranks
        grid = (n_steps, n_envs)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.observations = zeros(*grid, *observation_shape, dtype=observation_dtype)
        self.actions = zeros(*grid, *action_shape, dtype=action_dtype)
        self.starts, self.dones = zeros(*grid, dtype=torch.bool), zeros(*grid, dtype=torch.bool)
        self.rewards, self.values, self.log_probs = zeros(*grid), zeros(*grid), zeros(*grid)
        self.advantages, self.returns = zeros(*grid), zeros(*grid)
        self.counted = self.advantages
        self._scaled = zeros(*grid)
        self.begins: list[int] | None = None
        self.actor_state, self.critic_state = zeros(n_envs, state_sizes[0]), zeros(n_envs, state_sizes[1])

    def estimate(self, rewards: Tensor, last_values: Tensor, discount: float, gae_lambda: float) -> None:
        """Compute `advantages` by generalised advantage estimation (arXiv 1506.02438) and `returns`, their targets.

        Args:
            rewards: (n_steps, n_envs), what an episode cut off by its time limit still promised included.
            last_values: (n_envs,), of the observations after the last step.
            discount: the factor of later rewards.
            gae_lambda: weight of longer estimates.
        """
        # In place: as many more arrays as the rollout is large would be a training's peak of memory.
        running = (~self.dones).to(rewards.dtype)
        deltas = torch.cat((self.values[1:], last_values.unsqueeze(0)))
        deltas.mul_(discount).mul_(running).add_(rewards).sub_(self.values)
        factors = running.mul_(discount * gae_lambda).unbind()
        rows = self.advantages.unbind()
        advantage = torch.zeros_like(last_values)
        for delta, factor, row in zip(reversed(deltas.unbind()), reversed(factors), reversed(rows), strict=True):
            advantage = torch.addcmul(delta, factor, advantage, out=row)
        torch.add(self.advantages, self.values, out=self.returns)

    def find_begins(self) -> None:
        """Ask the device, once a rollout, in which steps episodes begin."""
        self.begins = self.starts.any(1).nonzero().flatten().tolist()

    def drawn(self, count: int) -> Tensor | None:
        """Return a random order (n,) int64 of the environments of all ranks for `count` minibatches; None of one."""
        return None if count == 1 else torch.randperm(self.n_envs * self.ranks.size, device=self.device)

    def minibatches(
        self, count: int, normalize: bool = False, rows_at_once: int | None = None, order: Tensor | None = None
    ) -> Iterator[Pieces]:
        """Yield `count` minibatches of as many environments each; sequences stay whole.

        Args:
            count: of minibatches; over several ranks, of all environments.
            normalize: give the advantages of each minibatch with mean 0 and deviation 1, as Stable-Baselines3 does;
                one advantage alone has no deviation and stays.
            rows_at_once: samples of a piece, at most; None: a minibatch is one piece.
            order: of the environments (n,), from `drawn`; None: drawn here.
        """
        order = self.drawn(count) if order is None else order
        every = self.n_envs * self.ranks.size
        each = every // count
        self.counted = self.advantages
        if not self.ranks.alone:
            yield from self._of_mine(order, count, each, normalize, rows_at_once)
            return
        if normalize and each * self.buffer_size > 1:
            self.counted = self._normalized(order, count)
        width = each if rows_at_once is None else min(each, max(1, rows_at_once // self.buffer_size))
        for first in range(0, self.n_envs, each):
            yield Pieces(self, order, range(first, first + each), width)

    def _of_mine(
        self, order: Tensor | None, count: int, each: int, normalize: bool, rows_at_once: int | None
    ) -> Iterator[Pieces]:
        """Yield this rank's part of `count` minibatches of `each` environments of all ranks, drawn as `order`."""
        mine = self.ranks.mine(torch.arange(each * count, device=self.device), 0)
        places = mine if order is None else order.argsort()[mine]
        which = places // each
        if normalize and each * self.buffer_size > 1:
            self.counted = self._normalized_over_ranks(which, count, each)
        own = None if order is None else places.argsort()
        # Each rank waits for its device here.
        ends = [0, *torch.bincount(which, minlength=count).cumsum(0).tolist()]
        width = each if rows_at_once is None else min(each, max(1, rows_at_once // self.buffer_size))
        for first, end in pairwise(ends):
            yield Pieces(self, own, range(first, end), width, each)

    def _normalized_over_ranks(self, which: Tensor, count: int, each: int) -> Tensor:
        """Return the advantages (n_steps, n_envs) normalised with all ranks' in the minibatch `which` (n_envs,)."""
        advantages, number = self.advantages.double(), each * self.buffer_size
        sums = advantages.new_zeros(count)
        mean = (self.ranks.total(sums.index_add(0, which, advantages.sum(0))) / number)[which]
        squares = self.ranks.total(sums.index_add(0, which, (advantages - mean).square().sum(0)))
        deviation = (squares / (number - 1)).sqrt()[which]
        return ((advantages - mean) / (deviation + 1e-8)).float()

    def _normalized(self, order: Tensor | None, count: int) -> Tensor:
        """Return the advantages (n_steps, n_envs), those of each minibatch normalised, in the same memory each time."""
        advantages = self.advantages
        if order is None:
            deviation, mean = torch.std_mean(advantages)
            return torch.sub(advantages, mean, out=self._scaled).div_(deviation + 1e-8)
        chosen = advantages.index_select(1, order).view(self.buffer_size, count, -1)
        deviation, mean = torch.std_mean(chosen, dim=(0, 2), keepdim=True)
        chosen.sub_(mean).div_(deviation + 1e-8)
        return self._scaled.index_copy_(1, order, chosen.flatten(1))

    def take(self, rows: Tensor | slice) -> Minibatch:
        """Return the sequences of some environments, by number or a slice; advantages as the present epoch has them."""
        grids = (
            self.observations,
            self.actions,
            self.starts,
            self.values,
            self.log_probs,
            self.counted,
            self.returns,
        )
        states = (self.actor_state, self.critic_state)
        if isinstance(rows, slice):
            return Minibatch(*(grid[:, rows] for grid in grids), *(state[rows] for state in states))
        return Minibatch(*(grid.index_select(1, rows) for grid in grids), *(s.index_select(0, rows) for s in states))


def minibatch_count(n_envs: int, n_steps: int, batch_size: int | None) -> int:
    """Return the number of minibatches of `batch_size` samples (None: one of all) made of whole environments.

    Raises:
        InvalidValueError: `batch_size` is not the samples of an equal share of the environments.
    """
    samples = n_envs * n_steps
    if batch_size is None:
        return 1
    count = samples // batch_size
    if count >= 1 and samples % batch_size == 0 and n_envs % count == 0:
        return count
    shares = [share for share in range(1, n_envs + 1) if n_envs % share == 0]
    nearest = min(shares, key=lambda share: abs(share * n_steps - batch_size))
    given = f"{samples / batch_size:g} minibatches" if count else "less than one minibatch"
    raise InvalidValueError(
        f"num_envs is {n_envs} and batch_size {batch_size}: {given} of the {n_envs} x {n_steps} samples, and num_envs "
        f"is not divisible by that; minibatches are whole environments, so batch_size must be n_steps = {n_steps} "
        f"times a divisor of num_envs, such as {nearest * n_steps}."
    )
