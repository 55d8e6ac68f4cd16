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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from robust_policies.networks import numpy_calls

_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-9}


def recorded(module: nn.Module, make: Callable[[], Any]) -> Any:
    """Return `make()`, arrays made of a module's parameters, by its recorded program where one can be differentiated.

    Args:
        module: whose parameters they are.
        make: the parametrization; all it reads but the parameters stays the same from call to call.
    """
    if not torch.is_grad_enabled():
        return make()
    known = _known(module)
    parameters = known.parameters()
    if not _recordable(parameters):
        return make()
    kind = tuple((parameter.dtype, parameter.requires_grad) for parameter in parameters)
    if known.kind != kind:
        known.kind, known.program = kind, _record(parameters, make)
    return make() if known.program is None else known.program.run(parameters, make)


def recordable(module: nn.Module) -> bool:
    """Return whether arrays made of a module's parameters may come from a recorded program."""
    return _recordable(_known(module).parameters())


def transformed(tensors: Sequence[Tensor]) -> bool:
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
    return plain and any(one.requires_grad for one in parameters) and not transformed(parameters)


class Program(NamedTuple):
    """A recorded parametrization.

    Attributes:
        forward: (parameters' arrays) -> (results, what backward needs).
        backward: (what it needs, gradients of the results) -> gradients of the parameters, None where there is none.
        places: of each leaf of the arrays: ("result", i), ("parameter", i) or ("constant", value).
        spec: the arrays' structure.
        zeros: of each result's shape.
    """

    forward: Callable[..., tuple[list[Any], tuple[Any, ...]]]
    backward: Callable[..., list[Any]]
    places: tuple[tuple[str, Any], ...]
    spec: TreeSpec
    zeros: tuple[np.ndarray, ...]

    def run(self, parameters: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """Return the arrays; `make` makes them where the program ends with an error, or is differentiated twice."""
        try:
            results = _Node.apply(self, make, *parameters)
        except np.linalg.LinAlgError:
            return make()
        leaves = {"result": results, "parameter": parameters}
        return tree_unflatten([leaves[kind][at] if kind in leaves else at for kind, at in self.places], self.spec)


class _Known:
    """What is known of a module: where its parameters are, and the program of parameters of some kind."""

    def __init__(self, places: list[tuple[Any, str]]) -> None:
        self.places = places
        self.kind: Any = None
        self.program: Program | None = None

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the module's parameters as they are now."""
        return tuple([own[name] for own, name in self.places])


_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def _known(module: nn.Module) -> _Known:
    known = _KNOWN.get(module)
    if known is None:
        places = [(one._parameters, name) for one in module.modules() for name in one._parameters]
        known = _KNOWN[module] = _Known([(own, name) for own, name in places if own[name] is not None])
    return known


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, program: Program, make: Callable[[], Any], *parameters: Tensor) -> tuple[Tensor, ...]:
        # PyTorch does not warn of what is not finite either.
        with np.errstate(all="ignore"):
            results, ctx.kept = program.forward(*(one.detach().numpy() for one in parameters))
        ctx.program, ctx.make = program, make
        ctx.save_for_backward(*parameters)
        ctx.set_materialize_grads(False)
        return tuple(_own(result) for result in results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        parameters = ctx.saved_tensors
        if torch.is_grad_enabled() or transformed(grads):
            return (None, None, *_again(ctx, parameters, grads))
        given = (zero if grad is None else grad.numpy() for grad, zero in zip(grads, ctx.program.zeros, strict=True))
        with np.errstate(all="ignore"):
            found = ctx.program.backward(ctx.kept, *given)
        return (None, None, *(None if one is None else _own(one) for one in found))


def _own(array: np.ndarray) -> Tensor:
    """Return a tensor of an array that nothing else holds: gradients are added to in place."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.owndata else array.copy())


def _again(ctx: Any, parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients as a graph, which may be differentiated again."""
    with torch.enable_grad():
        leaves, _ = tree_flatten(ctx.make())
    wanted = [leaf for leaf, (kind, _) in zip(leaves, ctx.program.places, strict=True) if kind == "result"]
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
            leaves, spec = tree_flatten(make())
        places, results = _places(leaves, parameters)
        grads = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in results]
        with recorder:
            # Gradients that are given to `grad` have it import all of sympy.
            found = torch.autograd.grad(_Given.apply(grads, *results), trained, allow_unused=True)
        wanted = iter(found)
        derivatives = [next(wanted) if parameter.requires_grad else None for parameter in parameters]
        writer = _Writer(parameters, grads)
        for call in recorder.calls:
            writer.add(*call)
        zeros = tuple(torch.zeros_like(one).numpy() for one in results)
        program = Program(*writer.functions(results, derivatives), places, spec, zeros)
        alike = _alike(program, parameters, grads, results, derivatives)
    except (KeyError, NotImplementedError, RuntimeError, np.linalg.LinAlgError):
        return None
    return program if alike else None


def _places(leaves: Sequence[Any], parameters: Sequence[Tensor]) -> tuple[tuple[tuple[str, Any], ...], list[Tensor]]:
    own, results, places = {id(one): k for k, one in enumerate(parameters)}, [], []
    for leaf in leaves:
        if id(leaf) in own:
            places.append(("parameter", own[id(leaf)]))
        elif isinstance(leaf, Tensor) and leaf.requires_grad:
            places.append(("result", len(results)))
            results.append(leaf)
        else:
            places.append(("constant", leaf))
    return tuple(places), results


def _alike(
    program: Program, parameters: Sequence[Tensor], grads: Sequence[Tensor], *wanted: Sequence[Tensor | None]
) -> bool:
    """Return whether a program gives what PyTorch gave."""
    close = _CLOSE[parameters[0].dtype]
    results, kept = program.forward(*(one.detach().numpy() for one in parameters))
    found = [*results, *program.backward(kept, *(grad.numpy() for grad in grads))]
    for one, other in zip(found, [value for part in wanted for value in part], strict=True):
        if (one is None) != (other is None):
            return False
        if one is None or other is None:
            continue
        value = other.detach().numpy()
        if one.shape != value.shape or one.dtype != value.dtype:
            return False
        if not np.abs(one - value).max(initial=0.0) <= close * max(1.0, float(np.abs(value).max(initial=0.0))):
            return False
    return True


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Return where a tensor's numbers are: what autograd saves of a result is another tensor of the same ones."""
    return tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


class _Writer:
    """Writes recorded operations as lines of Python."""

    def __init__(self, parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        self.inputs = [f"p{k}" for k in range(len(parameters))]
        self.grads = [f"g{k}" for k in range(len(grads))]
        self.names = {
            _place(one): name for one, name in zip((*parameters, *grads), self.inputs + self.grads, strict=True)
        }
        self.kept: list[Any] = [*parameters, *grads]
        self.constants: dict[str, Any] = {}
        self.lines: list[tuple[list[str], str, set[str]]] = []

    def add(self, func: Any, args: Any, kwargs: dict[str, Any], found: Any) -> None:
        """Take one operation; raises KeyError where it is not known."""
        name, used = str(func), set[str]()
        self.kept.append((args, found))
        if name in numpy_calls.FIXED:
            return
        write = numpy_calls.CALLS[name]
        given = [self._argument(one, used) for one in args]
        text = write(given, {key: self._argument(one, used) for key, one in kwargs.items()}, args)
        outputs = [one for one in (found if isinstance(found, (tuple, list)) else (found,)) if isinstance(one, Tensor)]
        if used <= set(self.constants):
            return
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

    def functions(
        self, results: Sequence[Tensor], derivatives: Sequence[Tensor | None]
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return the two functions."""
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
        return space["forward"], space["backward"]

    def _needed(self, wanted: set[str], known: set[str]) -> list[tuple[list[str], str, set[str]]]:
        """Return the lines that lead to `wanted` from what is known, in order, errors they may raise included."""
        chosen = []
        for names, text, used in reversed(self.lines):
            checks = not names and not known and not any(name.startswith("g") for name in used)
            if (wanted & set(names) and not set(names) <= known) or checks:
                chosen.append((names, text, used))
                wanted = wanted | used
        return chosen[::-1]
