"""A function of small tensors as a straight-line program on Python's own floats, to the last bit the same.

A tensor operation costs a microsecond or more whatever its size, which is all there is to the step of one environment;
an operation on floats costs a fiftieth of that.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from robust_policies.envs.parameters import plain_tensors
from robust_policies.envs.plant import Params, Plant
from robust_policies.envs.traces import Buffer, Call, Node, Trace, UntraceableError, leaves, mapped, memory, single

Function = Callable[..., Sequence[torch.Tensor]]
Numbers = tuple[tuple[Any, ...], ...]
_EACH_ENTRY = frozenset("add cos exp expm1 log log1p sin sqrt sub tan tanh".split())
"""Operations that work entry by entry: several of them that do not wait for each other are done at once."""
_LONGEST = 160
"""The length of an expression beyond which its value gets a name."""
_LARGEST = 1e76
"""Where the sum of the squares of all results is beyond it or no number, they are left to torch."""
_MOST_TRACES = 8
_version = attrgetter("_version")


class _Program(NamedTuple):
    """A traced function: `bind(*numbers of the parameters)` returns what takes the other arguments' numbers."""

    bind: Callable[..., Callable[..., Numbers | None]]
    attributes: dict[str, Any]
    """What the plant had when it was traced, and may depend on."""
    outside: list[torch.Tensor]
    versions: list[int]


class _Bound(NamedTuple):
    """A program for the parameters' present values; tensors whose numbers it took, to see whether they change."""

    run: Callable[..., Numbers | None]
    program: _Program
    params: Params
    watched: list[torch.Tensor]
    versions: list[int]


class StraightLine:
    """A pure function (params, *tensors) -> tensors of a plant, on the numbers of one environment.

    `tensors(key, *numbers)` makes the function's arguments other than `params`, (1, n) or None, of numbers as a call
    gets them; `key` says which types they have. The first calls return None while the function is left to torch, and
    so do all if it cannot be traced or does not give the same bits: if it looks at numbers, draws random ones or
    changes the plant. The parameters are arguments of the program; where an attribute of the plant or a tensor that it
    holds has changed, it is traced anew.
    """

    def __init__(self, plant: Plant, function: Function, tensors: Callable[..., Sequence[Any]], patience: int) -> None:
        """Trace `function` when it has been called `patience` times."""
        self.plant, self.function, self.tensors, self.patience = plant, function, tensors, patience
        self._programs: dict[Any, _Program] = {}
        self._bound: dict[Any, _Bound] = {}
        self._traces_left = _MOST_TRACES
        self.given_up = not plant.differentiable
        """Whether all is left to torch for good."""

    def __call__(self, key: Any, params: Params, *numbers: Sequence[float] | None) -> Numbers | None:
        """Return the numbers of the function's tensors, each's as a tuple row by row, or None: to be left to torch."""
        bound = self._bound.get(key)
        if bound is None or params is not bound.params or self._changed(bound.program, bound.watched, bound.versions):
            bound = self._bind(key, params, numbers)
        try:
            return None if bound is None else bound.run(*numbers)
        # Torch divides by zero, and says what it refuses in its own words.
        except Exception:
            return None

    def _changed(self, program: _Program, tensors: list[torch.Tensor], versions: list[int]) -> bool:
        try:
            return vars(self.plant) != program.attributes or list(map(_version, tensors)) != versions
        except (ValueError, RuntimeError):
            # Arrays in the place of others have no one truth.
            return True

    def _bind(self, key: Any, params: Params, numbers: Sequence[Any]) -> _Bound | None:
        self.patience -= 1
        if self.patience >= 0 or self.given_up:
            return None
        if not isinstance(params, Mapping) or not all(isinstance(value, torch.Tensor) for value in params.values()):
            self.given_up = True
            return None
        layout = (key, *((name, value.shape, value.stride(), value.dtype) for name, value in params.items()))
        program = self._programs.get(layout)
        if program is None or self._changed(program, program.outside, program.versions):
            if not self._traces_left:
                return None
            self._traces_left -= 1
            try:
                with plain_tensors():
                    program = self._programs[layout] = self._traced(key, params, numbers)
            # A plant of somebody's own may raise anything where it is given symbols.
            except Exception:
                self.given_up = True
                return None
        tensors = [*params.values(), *program.outside]
        versions = list(map(_version, tensors))
        bound = self._bound[key] = _Bound(_run(program, params), program, params, tensors, versions)
        return bound

    def _traced(self, key: Any, params: Params, numbers: Sequence[Any]) -> _Program:
        """Return the program, after a look at whether it gives the same bits."""
        attributes = dict(vars(self.plant))
        program = _compiled(self.function, params, self.tensors(key, *numbers), attributes)
        for factor in (1.0, 0.97, 0.5):
            tensors = self.tensors(key, *(None if given is None else [factor * x for x in given] for given in numbers))
            expected = self.function(params, *tensors)
            with contextlib.suppress(ArithmeticError, ValueError):
                # As the tensors have them, which may be of float32.
                found = _run(program, params)(*(one if one is None else one.flatten().tolist() for one in tensors))
                # Written out, as zero is not minus zero.
                if found is not None and repr([*found]) != repr([(*one.flatten().tolist(),) for one in expected]):
                    raise UntraceableError("the program gives other numbers")
        if vars(self.plant) != attributes:
            vars(self.plant).clear()
            vars(self.plant).update(attributes)
            raise UntraceableError("the function changes the plant")
        return program


def _run(program: _Program, params: Params) -> Callable[..., Numbers | None]:
    """Return the program for the parameters' present values."""
    return program.bind(*itertools.chain(*(value.reshape(-1).tolist() for value in params.values())))


def _compiled(
    function: Function, params: Params, tensors: Sequence[torch.Tensor | None], attributes: dict[str, Any]
) -> _Program:
    """Return the program of `function(params, *tensors)` for tensors of these shapes and number types."""
    trace = Trace()
    symbols = {name: trace.symbol(value, f"p{place}_", False) for place, (name, value) in enumerate(params.items())}
    letters = [f"x{place}_" for place in range(len(tensors))]
    given = [None if x is None else trace.symbol(x, letter, True) for x, letter in zip(tensors, letters, strict=True)]
    with trace:
        found = function(symbols, *given)
    writer = _Writer(trace.nodes)
    results = writer.write([trace.nodes_of(one).reshape(-1).tolist() for one in found])
    sizes = [0 if tensor is None else tensor.numel() for tensor in tensors]
    every = [", ".join(f"p{place}_{i}" for i in range(value.numel())) for place, value in enumerate(params.values())]
    lines = [
        f"def bind({', '.join(filter(None, every))}):",
        *(f" {line}" for line in writer.early),
        f" def run({', '.join(letters)}):",
        *(
            f"  {''.join(f'{x}{i}, ' for i in range(size))} = {x}"
            for x, size in zip(letters, sizes, strict=True)
            if size
        ),
        *(f"  {line}" for line in writer.late),
        f"  return {results}",
        " return run",
    ]
    exec(compile("\n".join(lines), "<straight line>", "exec"), writer.names)
    outside = list(trace.outside.values())
    return _Program(writer.names["bind"], attributes, outside, list(map(_version, outside)))


class _Writer:
    """Writes the nodes of a trace as Python: lines for what depends on the parameters alone, and for the rest."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.early: list[str] = []
        self.late: list[str] = []
        self.names: dict[str, Any] = {"inf": math.inf, "nan": math.nan, "single": single}
        self.names |= {"remainder": _remainder, "read": _read}
        self._texts: dict[int, str] = {}
        self._uses: Counter[int] = Counter()
        self._read_late: set[int] = set()

    def write(self, results: list[list[int]]) -> str:
        """Write all that the results need, and return the expression of them: a tuple of tuples."""
        nodes = self.nodes
        for at in itertools.chain(*results):
            # More than one use: a result has a name.
            self._uses[at] += 2
            self._read_late.add(at)
        # How many calls of torch come after a number: those of one level do not wait for each other.
        levels = [0] * len(nodes)
        for at in range(len(nodes) - 1, -1, -1):
            node = nodes[at]
            for place, operand in enumerate(node.operands if self._uses[at] else ()):
                self._uses[operand] += max(1, node.text.count(f"{{{place}}}"))
                levels[operand] = max(levels[operand], levels[at] + (nodes[operand].call is not None))
                if node.late:
                    self._read_late.add(operand)
        wanted = [at for at in range(len(nodes)) if self._uses[at]]
        groups: dict[Any, list[int]] = {}
        for at in sorted(wanted, key=lambda at: (-levels[at], nodes[at].call is not None)):
            call = nodes[at].call
            kind = None if call is None else _kind(call)
            groups.setdefault(at if kind is None else (levels[at], nodes[at].late, kind), []).append(at)
        for group in groups.values():
            self._call(group) if nodes[group[0]].call else self._number(group[0])
        texts = [[self._texts[at] for at in result] for result in results]
        checked = dict.fromkeys(text for text in itertools.chain(*texts) if text.isidentifier())
        if checked:
            self.late.append(f"if not {' + '.join(f'{x} * {x}' for x in checked)} < {_LARGEST}: return None")
        return "".join(f"({''.join(f'{text}, ' for text in one)}), " for one in texts)

    def _number(self, at: int) -> None:
        node = self.nodes[at]
        if not node.operands or self.nodes[node.operands[0]].call:
            self._texts[at] = node.text
            return
        text = node.text.format(*(self._texts[operand] for operand in node.operands))
        if self._uses[at] == 1 and len(text) < _LONGEST and (node.late or at not in self._read_late):
            self._texts[at] = f"({text})"
            return
        (self.late if node.late else self.early).append(f"v{at} = {text}")
        self._texts[at] = f"v{at}"

    def _call(self, group: list[int]) -> None:
        """Write calls that do not wait for each other, all of the same operation, as one."""
        calls = [call for at in group if (call := self.nodes[at].call)]
        call, late, at = calls[0], self.nodes[group[0]].late, group[0]
        arguments, results = call.arguments, call.results
        if _kind(call) is not None:
            buffers = ([one for one in leaves(each.arguments) if isinstance(one, Buffer)] for each in calls)
            joined = iter([_joined(column) for column in zip(*buffers, strict=True)])
            arguments = mapped(lambda one: next(joined) if isinstance(one, Buffer) else one, arguments)
            results = [torch.cat([each.results[0].reshape(-1) for each in calls])]
        for place, buffer in enumerate(one for one in leaves(arguments) if isinstance(one, Buffer)):
            self.names[f"b{at}_{place}"] = _shared(buffer.tensor)
            written = self.late if any(self.nodes[node].late for node in buffer.nodes) else self.early
            written += [f"b{at}_{place}[{i}] = {self._texts[node]}" for i, node in enumerate(buffer.nodes)]
        given = mapped(lambda one: one.tensor if isinstance(one, Buffer) else one, arguments)
        names = [f"r{caller}_{i}" for caller, each in zip(group, calls, strict=True) for i in range(_size(each))]
        lines = self.late if late else self.early
        into = _into(call)
        if into is not None and len(results) == 1 and results[0].is_contiguous():
            function = functools.partial(into, *given, **call.options, out=results[0])
            self.names[f"n{at}"] = _shared(results[0])
            lines += [
                f"c{at}()",
                f"{names[0]} = n{at}[0]" if len(names) == 1 else f"{', '.join(names)} = n{at}.tolist()",
            ]
        else:
            function = functools.partial(call.function, *given, **call.options)
            lines.append(f"{', '.join(names)}, = read(c{at}())")
        self.names[f"c{at}"] = function
        self._texts |= {node: self.nodes[node].text for node in group}


def _shared(tensor: torch.Tensor) -> memoryview:
    """Return the numbers of a tensor in the order of its memory, to be read and written there."""
    array: Any = memory(tensor).numpy()
    return memoryview(array)


def _joined(buffers: Sequence[Buffer]) -> Buffer:
    nodes = tuple(itertools.chain(*(buffer.nodes for buffer in buffers)))
    return Buffer(torch.empty(len(nodes), dtype=buffers[0].tensor.dtype), nodes)


def _into(call: Call) -> Callable[..., Any] | None:
    """Return the same operation as a function that writes into a tensor, at half of the cost, or None."""
    if call.name in {"matmul", "__matmul__"} and all(
        (one.tensor if isinstance(one, Buffer) else one).ndim == 2 for one in call.arguments
    ):
        return torch.mm
    over = call.name == "sum" and len(call.arguments) + len(call.options) == 2
    return getattr(torch, call.name) if call.name in _EACH_ENTRY or over else None


def _size(call: Call) -> int:
    return sum(result.numel() for result in call.results)


def _kind(call: Call) -> str | None:
    """Return what calls that can be done as one have in common, None for one that stands alone."""
    tensors = [one.tensor if isinstance(one, Buffer) else one for one in leaves(call.arguments)]
    tensors = [one for one in tensors if isinstance(one, torch.Tensor)] + call.results
    if call.name not in _EACH_ENTRY or any(isinstance(one, torch.Tensor) for one in leaves(call.arguments)):
        return None
    if len({one.shape for one in tensors}) != 1 or not all(one.is_contiguous() for one in tensors):
        return None
    others = mapped(lambda one: one.tensor.dtype if isinstance(one, Buffer) else one, call.arguments)
    return str((call.function, others, call.options))


def _read(found: Any) -> list[Any]:
    return [number for tensor in leaves(found) for number in tensor.reshape(-1).tolist()]


def _remainder(a: float, b: float) -> float:
    """Return torch's remainder: of the sign of b, but for zeros."""
    rest = math.fmod(a, b)
    return rest + b if rest != 0.0 and (b < 0.0) != (rest < 0.0) else rest
