"""Mean and variance of everything seen so far, updated batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from robust_policies import checks
from robust_policies.errors import InvalidValueError, UnknownNameError

PRIOR_COUNT = 1e-4


class RunningMoments:
    """The mean and variance (*size) of all rows seen, in float64 on one device.

    They begin as if 0.0001 rows of mean 0 and variance 1 had been seen, as Gymnasium's do (wrappers/utils.py), so that
    a first batch without spread has a variance. Source of the update: T. F. Chan, G. H. Golub and R. J. LeVeque,
    "Algorithms for computing the sample variance: analysis and recommendations", The American Statistician 37, 1983.
    """

    def __init__(self, size: tuple[int, ...], device: torch.device) -> None:
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.variance = torch.ones(size, dtype=torch.float64, device=device)
        self.count = torch.full((), PRIOR_COUNT, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, rows: torch.Tensor, counted: torch.Tensor | None = None) -> None:
        """Take in rows (n, *size), or only those that `counted` (n,) bool marks."""
        self.include(*measured(rows, counted))

    @torch.no_grad()
    def include(self, number: Any, mean: torch.Tensor, squares: torch.Tensor) -> None:
        """Take in `number` rows with this mean and this sum of squared deviations, both of shape (*size)."""
        total = self.count + number
        share = number / total
        shift = mean - self.mean
        before = torch.addcmul(self.variance, shift * shift, share)
        # In place: a tensor made anew in inference mode could not be updated outside of it.
        self.mean.addcmul_(shift, share)
        self.variance.copy_(torch.addcmul(squares, before, self.count) / total)
        self.count.copy_(total)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return copies of mean, variance and count."""
        return {"mean": self.mean.clone(), "variance": self.variance.clone(), "count": self.count.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; raise, with nothing changed, if it does not fit."""
        own = {"mean": self.mean, "variance": self.variance, "count": self.count}
        for name in state:
            if name not in own:
                raise UnknownNameError.among("entry of the normalisation's state", name, own)
        loaded = {}
        for name, tensor in own.items():
            if name not in state:
                raise InvalidValueError(f"The normalisation's state has no {name!r}; expected {', '.join(own)}.")
            loaded[name] = torch.as_tensor(state[name], dtype=torch.float64, device=tensor.device)
            checks.shape(f"{name} of the normalisation", loaded[name], tuple(tensor.shape))
            checks.finite_tensor(f"{name} of the normalisation", loaded[name])
        for name in ("variance", "count"):
            if bool((loaded[name] < 0).any()):
                raise InvalidValueError(
                    f"The normalisation's {name} is {loaded[name].tolist()}; expected none below 0."
                )
        for name, tensor in own.items():
            tensor.copy_(loaded[name])


def measured(rows: torch.Tensor, counted: torch.Tensor | None = None) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Return the number of rows (n, *size), or of those that `counted` (n,) bool marks, their mean and squares.

    The squares (*size) are the sum of squared deviations from the mean (*size); both are float64.
    """
    # Rows last in memory: operations along few columns are several times slower.
    values = rows.movedim(0, -1).to(torch.float64, memory_format=torch.contiguous_format)
    if counted is None:
        number: Any = float(len(rows))
        mean = values.mean(-1)
        deviation = values - mean.unsqueeze(-1)
    else:
        number = counted.sum(dtype=torch.float64)
        mean = torch.where(counted, values, 0.0).sum(-1) / number.clamp(min=1.0)
        deviation = torch.where(counted, values - mean.unsqueeze(-1), 0.0)
    return number, mean, (deviation * deviation).sum(-1)
