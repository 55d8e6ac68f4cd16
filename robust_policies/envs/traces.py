"""What a function of small tensors does, entry by entry: written down while it runs once on tensors without numbers.

A trace is a list of nodes, one a number: expressions of Python's floats where these give the same bits as torch (sums,
products, quotients, comparisons and the like are those of IEEE 754 in both), and calls of the very torch operation for
all else: sines, exponentials, square roots (1 in 90 of torch's on x86 is not the nearest number), matrix products, sums
over a dimension, fused multiply-adds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

_MOST_NODES = 20_000
_JOINS = frozenset("broadcast_tensors cat concat concatenate stack".split())
_MOVES = _JOINS | frozenset(
    "T __getitem__ chunk clone contiguous data detach expand flatten flip mT moveaxis movedim narrow permute ravel "
    "repeat reshape roll select split squeeze swapaxes t tile transpose unbind unflatten unsqueeze view".split()
)
"""Operations that put numbers elsewhere and leave them as they are."""
_CONSTANT = frozenset("full_like new_full new_ones new_tensor new_zeros ones_like zeros_like".split())
"""Operations whose result is the same whatever the numbers are."""
_ABOUT = frozenset(
    "__len__ dim element_size get_device is_contiguous is_floating_point is_tensor ndimension nelement numel size "
    "storage_offset stride".split()
)
"""What a function may ask of a tensor; attributes that are no tensors, too."""
# Of NaN and a number the result is NaN; of equal numbers it is the first, as in torch's loop over a few numbers.
_GREATER, _LESS = ("{0} if {0} " + sign + " {1} or {0} != {0} else {1}" for sign in (">=", "<="))
_WHERE = "{1} if {0} else {2}"
_ON_FLOATS = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "true_divide": "{0} / {1}",
    "__rsub__": "{1} - {0}", "rsub": "{1} - {0}", "__rdiv__": "1.0 / {0} * {1}", "reciprocal": "1.0 / {0}",
    "neg": "-{0}", "abs": "abs({0})", "square": "{0} * {0}", "remainder": "remainder({0}, {1})",
    "maximum": _GREATER, "minimum": _LESS,
}  # fmt: skip
_IN_FLOAT32 = frozenset("__rsub__ abs add maximum minimum mul neg rsub square sub".split())
"""What float64 arithmetic, rounded to float32, does exactly as float32 arithmetic."""
_POWERS = {2: "{0} * {0}", 3: "{0} * {0} * {0}"}
_QUESTIONS = {
    "eq": "{0} == {1}", "ne": "{0} != {1}", "lt": "{0} < {1}", "le": "{0} <= {1}", "gt": "{0} > {1}",
    "ge": "{0} >= {1}", "isfinite": "-inf < {0} < inf", "isnan": "{0} != {0}",
}  # fmt: skip
_ON_BOOLS = {
    "__and__": "{0} and {1}", "logical_and": "{0} and {1}", "mul": "{0} and {1}", "__or__": "{0} or {1}",
    "logical_or": "{0} or {1}", "__invert__": "not {0}", "logical_not": "not {0}",
}  # fmt: skip


class UntraceableError(Exception):
    """The function is not one that a trace can be made of."""


class _LeftToTorchError(Exception):
    """An operation that Python's floats do not do alike."""


class Buffer(NamedTuple):
    """A tensor that a program writes numbers into for torch: `nodes` are theirs in the order of the memory."""

    tensor: torch.Tensor
    nodes: tuple[int, ...]


class Call(NamedTuple):
    """A torch operation, with buffers among its arguments, and tensors like those that it returns."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    results: list[torch.Tensor]


class Node(NamedTuple):
    """One number: an expression of `operands`, which are {0}, {1}, ... in it; or a call, whose results are nodes."""

    text: str
    operands: tuple[int, ...]
    late: bool
    """Whether it depends on more than the parameters."""
    call: Call | None = None


class Symbol(torch.Tensor):
    """What a traced function computes with: a tensor that has no numbers to look at.

    `example` is a tensor like it, `nodes` (int64, of its shape) the places of its entries in the list of nodes.
    """

    example: torch.Tensor
    nodes: torch.Tensor

    @staticmethod
    def __new__(cls, example: torch.Tensor, nodes: torch.Tensor) -> Symbol:
        """Return a symbol of the example's shape and number type."""
        made = torch.Tensor._make_subclass(cls, torch.empty(example.shape, dtype=example.dtype, device="meta"))
        made.example, made.nodes = example, nodes
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise UntraceableError(f"{func} was called outside of the trace")


def leaves(value: Any) -> Iterator[Any]:
    """Yield what lists and tuples hold."""
    if isinstance(value, list | tuple) and not isinstance(value, Buffer):
        for one in value:
            yield from leaves(one)
    else:
        yield value


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Apply `change` to what lists and tuples hold."""
    if not isinstance(value, list | tuple) or isinstance(value, Buffer):
        return change(value)
    kind: Any = type(value)
    return kind([mapped(change, one) for one in value])


def single(number: float) -> float:
    """Return a number rounded to float32."""
    return ctypes.c_float(number).value


def memory(tensor: torch.Tensor) -> torch.Tensor:
    """Return the numbers (n,) of a tensor without gaps in the order of the memory, sharing it."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _like(tensor: torch.Tensor, entries: list[int]) -> torch.Tensor:
    """Return int64 entries, given row by row, in the shape and the memory's order of a tensor."""
    return torch.empty_like(tensor, dtype=torch.int64).copy_(
        torch.tensor(entries, dtype=torch.int64).reshape(tensor.shape)
    )


def _example(value: Any) -> Any:
    return value.example if isinstance(value, Symbol) else value


class Trace(TorchFunctionMode):
    """Writes down what operations do with symbols; to be entered around the function."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.outside: dict[int, torch.Tensor] = {}
        """The tensors that the function has from elsewhere, by identity."""
        self._made: dict[int, torch.Tensor] = {}
        self._known: dict[Any, int] = {}

    def symbol(self, example: torch.Tensor, letter: str, late: bool) -> Symbol:
        """Return an argument like an example (1, n); its numbers, row by row, are called by letter and place."""
        return Symbol(example, _like(example, [self._node(f"{letter}{i}", late=late) for i in range(example.numel())]))

    def nodes_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the nodes of the entries of a symbol of any shape, or of a constant's."""
        if isinstance(tensor, Symbol):
            return tensor.nodes
        return _like(tensor, [self._literal(number) for number in tensor.flatten().tolist()])

    def _node(self, text: str, operands: tuple[int, ...] = (), late: bool = False, call: Call | None = None) -> int:
        """Return the place of a node: of the one that is there, if there is one like it."""
        key = (text, operands)
        if key not in self._known:
            if len(self.nodes) >= _MOST_NODES:
                raise UntraceableError(f"more than {_MOST_NODES} numbers")
            self._known[key] = len(self.nodes)
            self.nodes.append(Node(text, operands, late or any(self.nodes[at].late for at in operands), call))
        return self._known[key]

    def _literal(self, number: Any) -> int:
        return self._node(f"({number!r})")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        name = func.__name__ if func.__name__ != "__get__" else func.__self__.__name__
        given = [one for one in leaves([args, list(options.values())]) if isinstance(one, torch.Tensor)]
        symbols = [one for one in given if isinstance(one, Symbol)]
        self.outside |= {id(one): one for one in given if not isinstance(one, Symbol) and id(one) not in self._made}
        if name == "__iter__" and symbols:
            return iter(self.__torch_function__(torch.Tensor.unbind, types, args))
        versions = [_example(one)._version for one in given] if symbols else []
        found = func(*mapped(_example, args), **{key: mapped(_example, value) for key, value in options.items()})
        results = list(leaves(found))
        if name in _CONSTANT or not symbols:
            # Kept, so that no other tensor gets its identity.
            self._made |= {id(one): one for one in results if isinstance(one, torch.Tensor)}
            return found
        if versions != [_example(one)._version for one in given]:
            raise UntraceableError(f"{name} writes in place")
        if not all(isinstance(one, torch.Tensor) for one in results):
            if name in _ABOUT or func.__name__ == "__get__":
                return found
            raise UntraceableError(f"{name} looks at numbers")
        nodes = self._results(func, name, found, args, options, given if name in _JOINS else symbols)
        made = map(Symbol, results, nodes)
        return mapped(lambda _: next(made), found)

    def _results(self, func: Any, name: str, found: Any, args: Any, options: Any, moved: list[Any]) -> Any:
        """Return the nodes of the results of an operation, tensor by tensor; `moved` is what it may move."""
        alike = len({_example(one).dtype for one in (*moved, *leaves(found))}) == 1
        if name in _MOVES and alike and (name in _JOINS or (len(moved) == 1 and moved[0] is args[0])):
            kind = torch.Tensor if name in _JOINS else Symbol
            return leaves(
                func(*mapped(lambda one: self.nodes_of(one) if isinstance(one, kind) else one, args), **options)
            )
        try:
            return [self._elementwise(func, name, found, args, dict(options))]
        except _LeftToTorchError:
            return self._called(func, name, args, options, list(leaves(found)))

    def _elementwise(self, func: Any, name: str, found: Any, args: Any, options: dict[str, Any]) -> torch.Tensor:
        """Return the nodes of an operation of entry by entry on floats, or raise `_LeftToTorchError`."""
        if not isinstance(found, torch.Tensor):
            raise _LeftToTorchError
        dtype, narrow = found.dtype, found.dtype is torch.float32
        if name in {"clamp", "clip", "clamp_min", "clamp_max"}:
            keys = {"clamp_min": ("min",), "clamp_max": ("max",)}.get(name, ("min", "max"))
            bounds = dict(zip(keys, args[1:], strict=False)) | options
            nodes = self._each(found, "{0}", dtype, args[:1])
            for key, text in (("min", _GREATER), ("max", _LESS)):
                if bounds.get(key) is not None:
                    nodes = self._each(found, text, dtype, (Symbol(found, nodes), bounds[key]))
            return nodes
        if name in {"to", "float", "double", "type", "type_as"}:
            return self._each(found, "{0}", dtype, args[:1])
        if options.pop("alpha", 1) != 1 or options:
            raise _LeftToTorchError
        if func is torch.where and len(args) == 3:
            return self._each(found, _WHERE, dtype, args)
        if name in _QUESTIONS and dtype is torch.bool:
            return self._each(found, _QUESTIONS[name], torch.result_type(*map(_example, (args * 2)[:2])), args)
        if name in _ON_BOOLS and dtype is torch.bool:
            return self._each(found, _ON_BOOLS[name], torch.bool, args)
        power = args[1] if name == "pow" and not isinstance(args[1], torch.Tensor) else None
        if power in _POWERS and (dtype is torch.float64 or (narrow and power == 2)):
            return self._each(found, _POWERS[power], dtype, args[:1], rounded=narrow)
        if name in _ON_FLOATS and (dtype is torch.float64 or (narrow and name in _IN_FLOAT32)):
            return self._each(found, _ON_FLOATS[name], dtype, args, rounded=narrow)
        raise _LeftToTorchError

    def _each(self, found: torch.Tensor, text: str, dtype: torch.dtype, operands: Any, rounded: bool = False) -> Any:
        """Return the nodes, of the shape of `found`, of an expression of broadcast operands computed in `dtype`."""
        columns = []
        for operand in operands:
            wanted = torch.bool if text == _WHERE and not columns else dtype
            if isinstance(operand, torch.Tensor):
                entries = self.nodes_of(operand)
                entries = (entries if entries.shape == found.shape else entries.expand(found.shape)).flatten().tolist()
                columns.append([self._cast(node, _example(operand).dtype, wanted) for node in entries])
            else:
                number = operand if wanted is torch.bool else float(operand)
                columns.append([self._literal(single(number) if wanted is torch.float32 else number)] * found.numel())
        nodes = [at[0] if text == "{0}" else self._node(text, at) for at in zip(*columns, strict=True)]
        return _like(found, [self._node("single({0})", (node,)) for node in nodes] if rounded else nodes)

    def _cast(self, node: int, dtype: torch.dtype, wanted: torch.dtype) -> int:
        if dtype is wanted or (dtype, wanted) == (torch.float32, torch.float64):
            return node
        if (dtype, wanted) == (torch.float64, torch.float32):
            return self._node("single({0})", (node,))
        raise _LeftToTorchError

    def _called(
        self, func: Any, name: str, args: Any, options: dict[str, Any], results: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return the nodes of the results of an operation that torch does."""
        if any(isinstance(one, Symbol) for one in leaves(list(options.values()))):
            raise UntraceableError(f"{name} takes tensors by name")
        key: list[Any] = [func, options]

        def buffered(value: Any) -> Any:
            if isinstance(value, Symbol):
                tensor = torch.empty_like(value.example)
                nodes = memory(torch.empty_like(tensor, dtype=torch.int64).copy_(value.nodes)).tolist()
                key.append((tensor.shape, tensor.stride(), tensor.dtype, *nodes))
                return Buffer(tensor, tuple(nodes))
            key.append(id(value) if isinstance(value, torch.Tensor) else value)
            return value.detach() if isinstance(value, torch.Tensor) else value

        call = Call(name, func, mapped(buffered, tuple(args)), options, [torch.empty_like(one) for one in results])
        operands = tuple(at for one in leaves(call.arguments) if isinstance(one, Buffer) for at in one.nodes)
        caller, count, found = self._node(str(key), operands, call=call), 0, []
        for result in results:
            places = range(count, count := count + result.numel())
            found.append(_like(result, [self._node(f"r{caller}_{place}", (caller,)) for place in places]))
        return found
