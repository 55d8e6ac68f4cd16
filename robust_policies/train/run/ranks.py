"""The processes that train one policy together, as `torchrun` starts them: each steps its share of the environments.

All draw the same random numbers, for all environments, and keep what belongs to their own; so what is trained depends
on how many there are only by the order in which sums are rounded. Rank 0 alone writes files and shows progress.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robust_policies.errors import DeviceError, InvalidValueError, LostRankError

# Rank 0 evaluates and certifies while the others wait.
_PATIENCE = timedelta(hours=6)


class Ranks:
    """One of `size` processes that train together.

    Attributes:
        rank: which one, from 0.
        size: how many there are.
        local: which one of those on this machine, from 0.
        joined: whether they have found one another.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local
        self.joined = False

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files and shows progress."""
        return self.rank == 0

    def fit(self, recipe: Any) -> None:
        """Raise `InvalidValueError` unless the ranks can train the recipe together."""
        if not self.alone and recipe.algorithm.name != "tensor_ppo":
            raise InvalidValueError(
                f"algorithm.name is {recipe.algorithm.name} and torchrun started {self.size} ranks; expected "
                "tensor_ppo, or one process."
            )
        self.share(recipe.task.num_envs, "task.num_envs")

    def share(self, count: int, what: str) -> int:
        """Return this rank's part of `count` environments; raises `InvalidValueError` if that is no whole number."""
        if count % self.size:
            raise InvalidValueError(
                f"{what} is {count} and torchrun started {self.size} ranks; expected a multiple of {self.size}."
            )
        return count // self.size

    def device(self, wanted: str) -> str:
        """Return the device of this rank where the command was given `wanted`: of `cuda` the GPU of its own number."""
        if self.alone or not wanted.startswith("cuda"):
            return wanted
        if wanted != "cuda":
            raise DeviceError(f"--device is {wanted} for {self.size} ranks; expected cuda, which gives each its own.")
        found = torch.cuda.device_count()
        if self.local >= found:
            raise DeviceError(
                f"torchrun started rank {self.local} of this machine, which has {found} CUDA devices; expected at most "
                f"as many ranks (--nproc-per-node {max(found, 1)})."
            )
        return f"cuda:{self.local}"

    @contextmanager
    def together(self, device: str) -> Iterator[None]:
        """Let the ranks find one another for the block; raises `LostRankError` where one does not come."""
        if self.alone:
            yield
            return
        on_gpu = device.startswith("cuda")
        if on_gpu:
            torch.cuda.set_device(torch.device(device))
        with self._not_lost():
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
        self.joined = True
        try:
            yield
        finally:
            dist.destroy_process_group()

    def mine(self, every: Tensor, axis: int) -> Tensor:
        """Return this rank's part of a tensor of any shape with all environments along `axis`."""
        if self.alone:
            return every
        each = every.shape[axis] // self.size
        return every.narrow(axis, self.rank * each, each)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, the same shape."""
        if self.alone:
            return values
        values = values.clone(memory_format=torch.contiguous_format)
        with self._not_lost():
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag of one of them is set."""
        return flag if self.alone else bool(self.total(torch.tensor(float(flag))) > 0)

    def moments(self, number: Any, mean: Tensor, squares: Tensor) -> tuple[Any, Tensor, Tensor]:
        """Return number, mean and squared deviations from the mean, summed, of what all ranks have seen.

        Args:
            number: of this rank's rows, a float or ().
            mean: of them, any shape, float64.
            squares: of them, the same shape and type.
        """
        if self.alone:
            return number, mean, squares
        whole = self.total(torch.as_tensor(number, dtype=mean.dtype, device=mean.device))
        shift = mean - (between := self.total(mean * number) / whole)
        return whole, between, self.total(squares + number * shift * shift)

    def variance(self, values: Tensor) -> Tensor:
        """Return the variance () of all numbers of all ranks, divided by their number."""
        if self.alone:
            return values.var(correction=0)
        own = values.double()
        mean = own.mean()
        number, _, squares = self.moments(float(own.numel()), mean, (own - mean).square().sum())
        return (squares / number).to(values.dtype)

    def sum_gradients(self, parameters: Sequence[nn.Parameter], numbers: Sequence[Tensor]) -> list[Tensor]:
        """Put the sums over the ranks into the gradients; return those of `numbers`, () each. One message for all."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        whole = self.total(torch.cat([*(grad.flatten() for grad in grads), torch.stack(list(numbers))]))
        *pieces, found = whole.split([*(grad.numel() for grad in grads), len(numbers)])
        for grad, piece in zip(grads, pieces, strict=True):
            grad.copy_(piece.view(grad.shape))
        return list(found.unbind())

    def same_numbers(self, device: torch.device) -> None:
        """Let the generators of PyTorch's numbers, of the CPU and of `device`, stand where rank 0's do."""
        if self.alone:
            return
        torch.set_rng_state(self._from_first(torch.get_rng_state()))
        if device.type == "cuda":
            torch.cuda.set_rng_state(self._from_first(torch.cuda.get_rng_state(device)), device)

    def told(self, data: Any) -> Any:
        """Return rank 0's JSON data; what others give is not looked at."""
        return data if self.alone else json.loads(self.told_bytes(json.dumps(data).encode() if self.first else b""))

    def told_bytes(self, data: bytes) -> bytes:
        """Return rank 0's bytes; what others give is not looked at."""
        if self.alone:
            return data
        size = int(self._from_first(torch.tensor(len(data))))
        return _bytes(self._from_first(_tensor(data) if self.first else torch.empty(size, dtype=torch.uint8)))

    def gathered(self, data: bytes) -> list[bytes]:
        """Return the bytes of all ranks in their order on rank 0; nothing elsewhere."""
        if self.alone:
            return [data]
        sizes = [int(size) for size in self.total(torch.eye(self.size, dtype=torch.int64)[self.rank] * len(data))]
        own = torch.zeros(max(sizes), dtype=torch.uint8)
        own[: len(data)] = _tensor(data)
        found = [torch.empty_like(own) for _ in sizes] if self.first else None
        with self._not_lost():
            dist.gather(own, found)
        return [_bytes(one[:size]) for one, size in zip(found or [], sizes, strict=False)]

    def first_said(self, text: str | None) -> str | None:
        """Return the text of the first rank that has one, on every rank; None if none has."""
        if self.alone or not self.any(text is not None):
            return text
        every = self.gathered((text or "").encode())
        return self.told(next((one.decode() for one in every if one), None))

    def _from_first(self, values: Tensor) -> Tensor:
        with self._not_lost():
            dist.broadcast(values, 0)
        return values

    @contextmanager
    def _not_lost(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostRankError(
                f"Rank {self.rank} of {self.size} lost another one, which ended or cannot be reached."
            ) from error


ALONE = Ranks()
"""A training in one process."""


def launched() -> Ranks:
    """Return which rank `torchrun` started this process as; `ALONE` where it did not."""
    if not dist.is_available() or not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        return ALONE
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Ranks(rank, size, local)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _bytes(values: Tensor) -> bytes:
    return values.numpy().tobytes()
