"""A recorded parametrization as two functions of NumPy and LAPACK calls, written as Python text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_policies.networks import numpy_calls


class NumpyProgram(NamedTuple):
    """A parametrization and its derivative.

    Attributes:
        arrays: (parameters' arrays) -> (results, what backward needs).
        slopes: (what it needs, gradients of the results) -> gradients of the parameters, None where there is none.
        zeros: of each result's shape.
    """

    arrays: Callable[..., tuple[list[Any], tuple[Any, ...]]]
    slopes: Callable[..., list[Any]]
    zeros: tuple[np.ndarray, ...]

    def forward(self, parameters: Sequence[Tensor]) -> tuple[list[Any], Any]:
        """Return the results and what backward needs.

        Raises:
            numpy.linalg.LinAlgError: a matrix has no factor or no inverse.
        """
        # PyTorch does not warn of what is not finite either.
        with np.errstate(all="ignore"):
            results, kept = self.arrays(*(one.detach().numpy() for one in parameters))
        return [_own(one) for one in results], kept

    def backward(self, kept: Any, grads: Sequence[Tensor | None]) -> list[Any]:
        """Return the gradients of the parameters, None where there is none; raises LinAlgError as `forward` does."""
        given = (zero if grad is None else grad.numpy() for grad, zero in zip(grads, self.zeros, strict=True))
        with np.errstate(all="ignore"):
            found = self.slopes(kept, *given)
        return [None if one is None else _own(one) for one in found]


def _own(array: np.ndarray) -> Tensor:
    """Return a tensor of an array that nothing else holds: gradients are added to in place."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.owndata else array.copy())


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Return where a tensor's numbers are: what autograd saves of a result is another tensor of the same ones."""
    return tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


class Writer:
    """Writes recorded operations as lines of Python."""

    widest = 0

    def __init__(self, parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        self.inputs = [f"p{k}" for k in range(len(parameters))]
        self.grads = [f"g{k}" for k in range(len(grads))]
        self.names = {
            _place(one): name for one, name in zip((*parameters, *grads), self.inputs + self.grads, strict=True)
        }
        self.kept: list[Any] = [*parameters, *grads]
        self.constants: dict[str, Any] = {}
        self.lines: list[tuple[list[str], str, set[str]]] = []

    def parametrized(self) -> None:
        """Say that what was taken is the parametrization, and what follows its derivative; which needs no telling."""

    def add(self, func: Any, args: Any, kwargs: dict[str, Any], found: Any) -> None:
        """Take one operation; raises KeyError where it is not known."""
        name, used = str(func), set[str]()
        self.kept.append((args, found))
        if name in numpy_calls.FIXED:
            return
        given = [self._argument(one, used) for one in args]
        named = {key: self._argument(one, used) for key, one in kwargs.items()}
        if used and used <= set(self.constants):
            return
        text = numpy_calls.CALLS[name](given, named, args)
        outputs = [one for one in (found if isinstance(found, (tuple, list)) else (found,)) if isinstance(one, Tensor)]
        if len(given) == 1 and text == given[0]:
            self.names[_place(outputs[0])] = given[0]
            return
        made = [f"v{len(self.lines)}_{k}" for k in range(len(outputs))]
        for one, variable in zip(outputs, made, strict=True):
            self.names[_place(one)] = variable
        self.lines.append((made, text, used))

    def _argument(self, value: Any, used: set[str]) -> str:
        if isinstance(value, Tensor):
            if _place(value) not in self.names:
                name = f"c{len(self.constants)}"
                self.constants[name], self.names[_place(value)] = value.detach().numpy().copy(), name
                self.kept.append(value)
            used.add(self.names[_place(value)])
            return self.names[_place(value)]
        if isinstance(value, (list, tuple)):
            return f"({''.join(self._argument(one, used) + ', ' for one in value)})"
        if value is None or isinstance(value, (bool, int, float)):
            return repr(value)
        return "None"

    def program(self, results: Sequence[Tensor], derivatives: Sequence[Tensor | None]) -> NumpyProgram:
        """Return the program with these ends, of any shapes."""
        ends = [self.names[_place(one)] for one in results]
        slopes = ["None" if one is None else self.names[_place(one)] for one in derivatives]
        first = self._needed(set(ends), set())
        second = self._needed(set(slopes), {name for line in first for name in line[0]})
        made = {name for line in first for name in line[0]} | set(self.inputs)
        kept = sorted(made & {name for name in {*slopes, *(used for line in second for used in line[2])}})
        body = [f"    {', '.join(names)} = {text}" if names else f"    {text}" for names, text, _ in first]
        source = [f"def forward({', '.join(self.inputs)}):", *body]
        source.append(f"    return [{', '.join(ends)}], ({''.join(name + ', ' for name in kept)})")
        source.append(f"def backward(kept, {', '.join(self.grads)}):")
        if kept:
            source.append(f"    ({''.join(name + ', ' for name in kept)}) = kept")
        source += [f"    {', '.join(names)} = {text}" if names else f"    {text}" for names, text, _ in second]
        source.append(f"    return [{', '.join(slopes)}]")
        space: dict[str, Any] = {**vars(numpy_calls), **self.constants}
        exec(compile("\n".join(source), "<parametrization>", "exec"), space)  # of this package's own lines
        zeros = tuple(torch.zeros_like(one).numpy() for one in results)
        return NumpyProgram(space["forward"], space["backward"], zeros)

    def _needed(self, wanted: set[str], known: set[str]) -> list[tuple[list[str], str, set[str]]]:
        """Return the lines that lead to `wanted` from what is known, in order, errors they may raise included."""
        chosen = []
        for names, text, used in reversed(self.lines):
            checks = not names and not known and not any(name.startswith("g") for name in used)
            if (wanted & set(names) and not set(names) <= known) or checks:
                chosen.append((names, text, used))
                wanted = wanted | used
        return chosen[::-1]
