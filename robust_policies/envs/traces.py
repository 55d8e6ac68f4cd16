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
from torch.utils._python_dispatch import TorchDispatchMode

_MOST_NODES = 20_000
_MOVES = frozenset(
    "alias cat clone detach expand flip index index_select permute repeat roll select slice split split_with_sizes "
    "squeeze stack t transpose unbind unsqueeze view _reshape_alias _unsafe_view".split()
)
"""Operations that put numbers elsewhere and leave them as they are."""
_JOINS = frozenset(("cat", "stack"))
_CONSTANT = frozenset("full_like new_full new_ones new_zeros ones_like zeros_like".split())
"""Operations whose result is the same whatever the numbers are."""
# Of NaN and a number the result is NaN; of equal numbers it is the first, as in torch's loop over a few numbers.
_GREATER, _LESS = ("{0} if {0} " + sign + " {1} or {0} != {0} else {1}" for sign in (">=", "<="))
_WHERE = "{1} if {0} else {2}"
_ON_FLOATS = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "rsub": "{1} - {0}",
    "neg": "-{0}", "abs": "abs({0})", "reciprocal": "1.0 / {0}",
    "remainder": "remainder({0}, {1})", "maximum": _GREATER, "minimum": _LESS, "where": _WHERE,
}  # fmt: skip
_IN_FLOAT32 = frozenset("add sub rsub mul neg abs maximum minimum where".split())
"""What float64 arithmetic, rounded to float32, does exactly as float32 arithmetic."""
_POWERS = {2: "{0} * {0}", 3: "{0} * {0} * {0}"}
_COMPARISONS = {
    "eq": "{0} == {1}", "ne": "{0} != {1}", "lt": "{0} < {1}", "le": "{0} <= {1}", "gt": "{0} > {1}", "ge": "{0} >= {1}",
}  # fmt: skip
_ON_BOOLS = {
    "bitwise_and": "{0} and {1}", "logical_and": "{0} and {1}", "mul": "{0} and {1}", "bitwise_or": "{0} or {1}",
    "logical_or": "{0} or {1}", "bitwise_not": "not {0}", "logical_not": "not {0}", "where": _WHERE,
}  # fmt: skip


class Untraceable(Exception):
    """The function looks at numbers, draws random ones, writes in place, or is too long."""


class _LeftToTorch(Exception):
    """An operation that Python's floats do not do alike."""


class Buffer(NamedTuple):
    """A tensor that a program writes numbers into for torch: `nodes` are theirs in the order of the memory."""

    tensor: torch.Tensor
    nodes: tuple[int, ...]


class Call(NamedTuple):
    """A torch operation, with buffers among its arguments, and tensors like those that it returns."""

    function: Any
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
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, example: torch.Tensor, nodes: torch.Tensor) -> Symbol:
        made = torch.Tensor._make_wrapper_subclass(cls, example.shape, strides=example.stride(), dtype=example.dtype)
        made.example, made.nodes = example, nodes
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise Untraceable(f"{func} was called outside of the trace")


def leaves(value: Any) -> Iterator[Any]:
    """Yield what lists and tuples hold."""
    if isinstance(value, list | tuple) and not isinstance(value, Buffer):
        for one in value:
            yield from leaves(one)
    else:
        yield value


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Apply `change` to what lists and tuples hold."""
    several = isinstance(value, list | tuple) and not isinstance(value, Buffer)
    return type(value)([mapped(change, one) for one in value]) if several else change(value)


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


class Trace(TorchDispatchMode):
    """Writes down what operations do with symbols; to be entered around the function."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.outside: dict[int, torch.Tensor] = {}
        """The tensors that the function has from elsewhere, by identity."""
        self._made: dict[int, torch.Tensor] = {}
        self._known: dict[Any, int] = {}

    def symbol(self, example: torch.Tensor, letter: str, late: bool) -> Symbol:
        """Return an argument of the function; its numbers, row by row, are called by a letter and their place."""
        return Symbol(example, _like(example, [self._node(f"{letter}{i}", late=late) for i in range(example.numel())]))

    def nodes_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the nodes of a symbol's entries, or of a constant's."""
        if isinstance(tensor, Symbol):
            return tensor.nodes
        return _like(tensor, [self._literal(number) for number in tensor.reshape(-1).tolist()])

    def _node(self, text: str, operands: tuple[int, ...] = (), late: bool = False, call: Call | None = None) -> int:
        """Return the place of a node: of the one that is there, if there is one like it."""
        key = (text, operands)
        if key not in self._known:
            if len(self.nodes) >= _MOST_NODES:
                raise Untraceable(f"more than {_MOST_NODES} numbers")
            self._known[key] = len(self.nodes)
            self.nodes.append(Node(text, operands, late or any(self.nodes[at].late for at in operands), call))
        return self._known[key]

    def _literal(self, number: Any) -> int:
        return self._node(f"({number!r})")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        given = [one for one in leaves([args, list(options.values())]) if isinstance(one, torch.Tensor)]
        symbols = [one for one in given if isinstance(one, Symbol)]
        self.outside |= {id(one): one for one in given if not isinstance(one, Symbol) and id(one) not in self._made}
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Untraceable(f"{func} is random")
        if symbols and (func._schema.is_mutable or name.startswith("empty")):
            raise Untraceable(f"{func} is no function of its arguments")
        if any(isinstance(one, Symbol) for one in leaves(list(options.values()))):
            raise Untraceable(f"{func} takes tensors by name")
        found = func(*mapped(_example, args), **options)
        results = list(leaves(found))
        if name in _CONSTANT or not symbols:
            # Kept, so that no other tensor gets its identity.
            self._made |= {id(one): one for one in results}
            return found
        if not all(isinstance(one, torch.Tensor) for one in results):
            raise Untraceable(f"{func} looks at a number")
        counted = given if name in _JOINS else symbols
        if name in _MOVES and len({one.dtype for one in (*counted, *results)}) == 1:
            kind = torch.Tensor if name in _JOINS else Symbol
            nodes = leaves(func(*mapped(lambda x: self.nodes_of(x) if isinstance(x, kind) else x, args), **options))
        else:
            try:
                nodes = [self._elementwise(func, name, found, args, options)]
            except _LeftToTorch:
                nodes = self._called(func, args, options, results)
        made = map(Symbol, results, nodes)
        return mapped(lambda _: next(made), found)

    def _elementwise(self, func: Any, name: str, found: Any, args: Any, options: Any) -> torch.Tensor:
        """Return the nodes of an operation of entry by entry on floats, or raise `_LeftToTorch`."""
        if not isinstance(found, torch.Tensor):
            raise _LeftToTorch
        named = {one.name: value for one, value in zip(func._schema.arguments, args, strict=False)} | options
        operands = [named.pop(key) for key in ("condition", "self", "other", "exponent") if key in named]
        dtype, narrow = found.dtype, found.dtype is torch.float32
        if name in {"clamp", "clamp_min", "clamp_max"}:
            nodes = self._each(found, "{0}", dtype, operands)
            for bound, text in ((named.get("min"), _GREATER), (named.get("max"), _LESS)):
                if bound is not None:
                    nodes = self._each(found, text, dtype, [Symbol(found, nodes), bound])
            return nodes
        if name == "_to_copy" and set(named) == {"dtype"}:
            return self._each(found, "{0}", dtype, operands)
        if named.pop("alpha", 1) != 1 or named:
            raise _LeftToTorch
        if name in _COMPARISONS:
            return self._each(found, _COMPARISONS[name], torch.result_type(*map(_example, operands)), operands)
        if name in _ON_BOOLS and dtype is torch.bool:
            return self._each(found, _ON_BOOLS[name], torch.bool, operands)
        if name == "pow" and not isinstance(operands[1], torch.Tensor) and operands[1] in _POWERS:
            if not narrow or operands[1] == 2:
                return self._each(found, _POWERS[operands[1]], dtype, operands[:1], rounded=narrow)
        if name in _ON_FLOATS and (dtype is torch.float64 or (narrow and name in _IN_FLOAT32)):
            return self._each(found, _ON_FLOATS[name], dtype, operands, rounded=narrow)
        raise _LeftToTorch

    def _each(
        self, found: torch.Tensor, text: str, dtype: torch.dtype, operands: list[Any], rounded: bool = False
    ) -> torch.Tensor:
        """Return the nodes, of the shape of `found`, of an expression of broadcast operands computed in `dtype`."""
        columns = []
        for operand in operands:
            wanted = torch.bool if text == _WHERE and not columns else dtype
            if isinstance(operand, torch.Tensor):
                entries = self.nodes_of(operand).expand(found.shape).reshape(-1).tolist()
                columns.append([self._cast(node, operand.dtype, wanted) for node in entries])
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
        raise _LeftToTorch

    def _called(self, func: Any, args: Any, options: Any, results: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the nodes of the results of an operation that torch does."""
        key: list[Any] = [func, options]

        def buffered(value: Any) -> Any:
            if isinstance(value, Symbol):
                tensor = torch.empty_like(value.example)
                nodes = memory(torch.empty_like(tensor, dtype=torch.int64).copy_(value.nodes)).tolist()
                key.append((tensor.shape, tensor.stride(), tensor.dtype, *nodes))
                return Buffer(tensor, tuple(nodes))
            key.append(id(value) if isinstance(value, torch.Tensor) else value)
            return value.detach() if isinstance(value, torch.Tensor) else value

        call = Call(func, mapped(buffered, tuple(args)), options, [torch.empty_like(one) for one in results])
        operands = tuple(at for one in leaves(call.arguments) if isinstance(one, Buffer) for at in one.nodes)
        caller, count, found = self._node(str(key), operands, call=call), 0, []
        for result in results:
            places = range(count, count := count + result.numel())
            found.append(_like(result, [self._node(f"r{caller}_{place}", (caller,)) for place in places]))
        return found
