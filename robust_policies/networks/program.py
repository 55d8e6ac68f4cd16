"""A cell's parametrization as a straight program of NumPy and LAPACK calls, with its derivative.

A parametrization is some hundred products and solves of small matrices, the same ones at every call, and most of their
time goes into dispatching them and into the graph of their derivatives. So the operations of PyTorch are recorded once,
those of its backward pass with them, and written down as one Python function each way, which is one node of the graph
from then on. There is no second copy of any formula: what is recorded is `explicit()`, and a recording that
does not give the same numbers as PyTorch, or holds an operation that is not known here, is not used.

Only a call that may be differentiated runs so. Everything else (CUDA, other dtypes, second derivatives, forward mode,
`torch.func`) takes PyTorch's own way, and so does a matrix that has no Cholesky factor, for the sake of its error.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from robust_policies.networks.numpy_program import NumpyProgram, Writer
from robust_policies.networks.tape import Tape, works
from robust_policies.networks.tape_builder import Builder

_WIDEST = 128  # of a matrix on a tape: above, BLAS takes less time
_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-9}


def recorded(module: nn.Module, make: Callable[[], Any]) -> Any:
    """Return `make()`, arrays of a module's parameters, by its recorded program; None where that is not to be used.

    Args:
        module: whose parameters they are.
        make: the parametrization; all it reads but the parameters stays the same from call to call. Its tensors are in
            tuples and named tuples.
    """
    program, parameters = current(module, make) if torch.is_grad_enabled() else (None, [])
    return None if program is None else program.run(parameters, make)


class Pulled:
    """A parametrization's arrays without a graph, and its derivative, on memory that stays.

    The parameters stay where they are in memory meanwhile.

    Attributes:
        arrays: as `make` gives them, NumPy's, of any shapes, filled by `renew`.
    """

    def __init__(self, program: Program, tape: Tape, parameters: Sequence[Tensor]) -> None:
        self._tape, self._kept, self._parameters = tape, tape.lent(), parameters
        self._results, self._found = self._kept.work.ends
        self._own = [one.detach().numpy() for one in parameters]
        self.arrays = program.together(self._results, self._own)
        self._sources = tape.sources(0, [one.data_ptr() for one in parameters])

    def renew(self) -> bool:
        """Fill the arrays from the parameters as they are; return whether every matrix had its factor."""
        return self._tape.run(0, self._kept, self._sources)

    def listen(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Take the gradients at arrays, of any shapes, from where they will be: without gaps in memory."""
        slopes = {id(one): slope for one, slope in pairs}
        given = [slopes.get(id(one)) for one in self._results]
        self._given = self._tape.sources(1, [0 if one is None else one.ctypes.data for one in given])
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._parts: list[tuple[np.ndarray, list[np.ndarray]]] = []
        for parameter, own, one in zip(self._parameters, self._own, self._found, strict=True):
            # The second of a parameter that is an array itself.
            parts = [part for part in (one, slopes.get(id(own))) if part is not None]
            if parts and parameter.requires_grad:
                self._parts.append((np.zeros_like(own), parts))
                self._pairs.append((parameter, torch.from_numpy(self._parts[-1][0])))

    def back(self) -> Sequence[tuple[Tensor, Tensor]] | None:
        """Return parameters of any shapes with their gradients, which the next call overwrites; None: no factor."""
        if not self._tape.run(1, self._kept, self._given):
            return None
        for to, parts in self._parts:
            np.copyto(to, parts[0])
            if len(parts) > 1:
                to += parts[1]
        return self._pairs


def pulled(module: nn.Module, make: Callable[[], Any]) -> Pulled | None:
    """Return the parametrization's arrays on memory that stays, None where there is no tape of it.

    The arguments are those of `recorded`.
    """
    program, parameters = current(module, make)
    if program is None or not isinstance(program.engine, Tape) or not all(one.is_contiguous() for one in parameters):
        return None
    return Pulled(program, program.engine, parameters)


def current(module: nn.Module, make: Callable[[], Any], what: str = "arrays") -> tuple[Program | None, list[Tensor]]:
    """Return the program of a module's parameters as they are now, None where there is none, and the parameters.

    Args:
        module: whose parameters they are.
        make: the parametrization, as for `recorded`.
        what: it makes of the parameters, of any shapes: there is one program of each name.
    """
    known = _known(module, what)
    try:
        parameters = [cast(Tensor, own[name]) for own, name in known.places]
        kind = [(one.dtype, one.requires_grad, one.numel(), one.is_cpu, type(one)) for one in parameters]
    except (KeyError, AttributeError):  # a parameter was taken away, or put behind a parametrization of torch
        return None, []
    if transformed(parameters):
        return None, parameters
    if known.kind != kind:
        # What takes the parameters' places for a while does not have them recorded again.
        if not _recordable(parameters):
            return None, parameters
        with torch.enable_grad():
            known.kind, known.program = kind, _record(parameters, make)
    return known.program, parameters


def transformed(tensors: Iterable[Tensor]) -> bool:
    """Return whether tensors of any shape are in forward mode or in a transform of torch.func: no place for a node."""
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _recordable(parameters: Sequence[Tensor]) -> bool:
    first = parameters[0].dtype
    plain = first in _CLOSE and all(
        type(one) is nn.Parameter and one.is_cpu and one.dtype == first for one in parameters
    )
    return plain and any(one.requires_grad for one in parameters)


class Program(NamedTuple):
    """A recorded parametrization.

    Attributes:
        engine: what runs it.
        results: which of the arrays are its results, and not parameters or constants.
        together: (results, parameters) -> the arrays in their tuples.
    """

    engine: Tape | NumpyProgram
    results: tuple[bool, ...]
    together: Callable[[Sequence[Any], Sequence[Any]], Any]

    def run(self, parameters: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """Return the arrays of parameters of any shapes, None where a matrix has no factor.

        `make` makes them to be differentiated twice.
        """
        try:
            results = _Node.apply(self, make, *parameters)
        except np.linalg.LinAlgError:
            return None
        return self.together(results, parameters)


class _Known:
    """What is known of a module: where its parameters are, and the program of parameters of some kind."""

    def __init__(self, module: nn.Module) -> None:
        owners: list[Any] = [one._parameters for one in module.modules()]
        self.places: list[tuple[dict[str, Any], str]] = [
            (own, name) for own in owners for name, value in own.items() if value is not None
        ]
        self.kind: Any = None
        self.program: Program | None = None


_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[str, _Known]] = weakref.WeakKeyDictionary()


def _known(module: nn.Module, what: str = "arrays") -> _Known:
    programs = _KNOWN.setdefault(module, {})
    known = programs.get(what)
    if known is None:
        known = programs[what] = _Known(module)
    return known


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, program: Program, make: Callable[[], Any], *parameters: Tensor) -> tuple[Tensor, ...]:
        results, ctx.kept = program.engine.forward(parameters)
        ctx.program, ctx.make = program, make
        ctx.save_for_backward(*parameters)
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        parameters = ctx.saved_tensors
        if torch.is_grad_enabled() or transformed([grad for grad in grads if grad is not None]):
            return (None, None, *_again(ctx, parameters, grads))
        try:
            return (None, None, *ctx.program.engine.backward(ctx.kept, grads))
        except np.linalg.LinAlgError:
            return (None, None, *_again(ctx, parameters, grads))


def _again(ctx: Any, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the gradients as a graph, which may be differentiated again."""
    with torch.enable_grad():
        leaves, _ = tree_flatten(ctx.make())
    wanted = [leaf for leaf, result in zip(leaves, ctx.program.results, strict=True) if result]
    asked = [one for one, need in zip(parameters, ctx.needs_input_grad[2:], strict=True) if need]
    given = [(one, grad) for one, grad in zip(wanted, grads, strict=True) if grad is not None]
    wanted, grads = [one for one, _ in given], [grad for _, grad in given]
    found = iter(torch.autograd.grad(wanted, asked, grads, create_graph=torch.is_grad_enabled(), allow_unused=True))
    return [next(found) if need else None for need in ctx.needs_input_grad[2:]]


class _Given(torch.autograd.Function):
    """A scalar whose gradients with respect to what it is made of are given."""

    @staticmethod
    def forward(ctx: Any, grads: Sequence[Tensor], *results: Tensor) -> Tensor:
        ctx.grads = grads
        return results[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.grads)


class _Recorder(TorchDispatchMode):
    """Keeps each operation with its arguments and results, and all of them alive, so that identity is enough."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # What would keep torch.compile out imports all of it, which takes seconds.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found


def _record(parameters: Sequence[Tensor], make: Callable[[], Any]) -> Program | None:
    """Return the program of a parametrization, None where it holds what is not known or its numbers are others."""
    recorder, generator = _Recorder(), torch.Generator().manual_seed(0)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        with recorder:
            arrays = make()
        places, ends = _places(tree_flatten(arrays)[0], parameters)
        count = len(recorder.calls)
        grads = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in ends]
        with recorder:
            # Gradients that are given to `grad` have it import all of sympy.
            found = torch.autograd.grad(_Given.apply(grads, *ends), trained, allow_unused=True)
        wanted = iter(found)
        derivatives = [next(wanted) if parameter.requires_grad else None for parameter in parameters]
        engine = _engine(recorder.calls, count, parameters, grads, ends, derivatives)
    except (RuntimeError, np.linalg.LinAlgError):
        return None
    return (
        None if engine is None else Program(engine, tuple(kind == "r" for kind, _ in places), _together(arrays, places))
    )


def _engine(
    calls: Sequence[Any],
    count: int,
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    *ends: Sequence[Tensor | None],
) -> Tape | NumpyProgram | None:
    """Return what runs recorded calls, of which the first `count` are those of the parametrization itself.

    A tape where its operations are compiled and no matrix is so wide that BLAS takes less time, or calls of NumPy.
    """
    kinds: list[Any] = [Writer]
    if works(str(parameters[0].dtype).removeprefix("torch.")):
        kinds.insert(0, Builder)
    for kind in kinds:
        try:
            writer = kind(parameters, grads)
            for k, call in enumerate(calls):
                if k == count:
                    writer.parametrized()
                writer.add(*call)
            if writer.widest <= _WIDEST:
                engine = writer.program(*ends)
                if _alike(engine, parameters, grads, *ends):
                    return engine
        except (KeyError, NotImplementedError, RuntimeError, np.linalg.LinAlgError):
            continue
    return None


def _places(leaves: Sequence[Any], parameters: Sequence[Tensor]) -> tuple[list[tuple[str, Any]], list[Tensor]]:
    """Return for each leaf ("r", which result), ("p", which parameter) or ("c", a constant), and the results."""
    own, results, places = {id(one): k for k, one in enumerate(parameters)}, [], []
    for leaf in leaves:
        if id(leaf) in own:
            places.append(("p", own[id(leaf)]))
        elif isinstance(leaf, Tensor) and leaf.requires_grad:
            places.append(("r", len(results)))
            results.append(leaf)
        else:
            places.append(("c", leaf))
    return places, results


def _together(arrays: Any, places: Sequence[tuple[str, Any]]) -> Callable[[Sequence[Any], Sequence[Any]], Any]:
    """Return the function that puts leaves into tuples and named tuples as those of `arrays`."""
    space: dict[str, Any] = {"c": []}
    left = iter(places)

    def text(one: Any) -> str:
        if not isinstance(one, tuple):
            kind, at = next(left)
            if kind == "c":
                space["c"].append(at)
                at = len(space["c"]) - 1
            return f"{kind}[{at}]"
        inner = "".join(f"{text(part)}, " for part in one)
        if type(one) is tuple:
            return f"({inner})"
        name = f"t{len(space)}"
        space[name] = type(one)
        return f"{name}({inner})"

    return eval(f"lambda r, p: {text(arrays)}", space)  # of this function's own names


def _alike(
    engine: Tape | NumpyProgram,
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    *wanted: Sequence[Tensor | None],
) -> bool:
    """Return whether what runs a program gives what PyTorch gave."""
    close = _CLOSE[parameters[0].dtype]
    results, kept = engine.forward(parameters)
    found = [*results, *engine.backward(kept, grads)]
    for one, other in zip(found, [value for part in wanted for value in part], strict=True):
        if (one is None) != (other is None):
            return False
        if one is None or other is None or not other.numel():
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not (one - other.detach()).abs().max().item() <= close * max(1.0, other.detach().abs().max().item()):
            return False
    return True
