"""A CUDA device where there is none: tensors that say `cuda`, hold their numbers on the CPU, and are watched.

PyTorch's FakeTensorMode says where devices are mixed, but has no values and no backward pass on a CPU build. Here every
operation runs on the numbers, so a training goes through its own backward pass and must give what it gives on the CPU;
a mixed device raises as on a card, and what waits for a card (`Waits`) is noted with its place in the package.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

import robust_policies

CUDA = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_ATEN = torch.ops.aten
_PACKAGE = str(Path(robust_policies.__file__).parent)
# On a card these read a number on the host before the next line of Python runs.
_READ = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_linalg_check_errors", "unique_dim",
    "_unique2", "unique_consecutive", "linalg_eigh", "linalg_eig", "_linalg_eigh", "_linalg_svd", "linalg_svd",
    "repeat_interleave", "linalg_lstsq",
}  # fmt: skip
# Here a number without dimensions on the CPU does not go with tensors on a card.
_STRICT = ("cat", "stack", "_foreach", "_fused", "index_copy", "index_add", "scatter", "gather", "index_select", "mm")
_ELSEWHERE = {"copy_", "_to_copy", "_has_compatible_shallow_copy_type", "set_"}
_GENERATOR = torch.Generator
_GENERATORS: list[torch.Generator] = []
_MAKERS = {
    getattr(torch, name)
    for name in (
        "zeros", "ones", "empty", "full", "eye", "arange", "linspace", "tensor", "as_tensor", "asarray", "rand",
        "randn", "randint", "randperm", "normal", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like",
        "randn_like", "randint_like", "tril_indices", "triu_indices", "logspace", "empty_strided", "scalar_tensor",
    )
}  # fmt: skip


class Waits:
    """How often the host waited for the device, by place."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()

    def note(self, what: str) -> None:
        frame, place = sys._getframe(1), "elsewhere"
        while frame is not None:
            path = frame.f_code.co_filename
            if path.startswith(_PACKAGE):
                place = f"{path[len(_PACKAGE) + 1 :]}:{frame.f_code.co_name}"
                break
            frame = frame.f_back
        self.places[f"{place} {what}"] += 1

    def taken(self) -> dict[str, int]:
        """Return the counts so far and begin anew."""
        found, self.places = dict(sorted(self.places.items())), Counter()
        return found


WAITS = Waits()


class Card(torch.Tensor):
    """A tensor that says it is on CUDA; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Card:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=_CPU,
            requires_grad=False,
        )
        self.held = held
        return self

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def __repr__(self, **_: Any) -> str:
        return f"Card({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) in memo:
            return memo[id(self)]
        copied = Card(self.held.clone())
        if getattr(self, "_is_param", False):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        elif self.requires_grad:
            copied.requires_grad_()
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        _mixed(name, args, given)
        _reads(name, args)
        if "device" in kwargs:
            kwargs["device"] = None if kwargs["device"] is None else _CPU
        known = {id(one.held): one for one in given if isinstance(one, Card)}
        inner_args, inner = tree_map(_held, args), tree_map(_held, kwargs)
        found = func(*inner_args, **inner)
        if name == "copy_" and not isinstance(args[0], Card):
            return args[0]
        return tree_map(lambda one: _wrapped(one, known) if isinstance(one, torch.Tensor) else one, found)


def _wrapped(held: torch.Tensor, known: dict[int, Card]) -> Card:
    # PyTorch looks for a pending conjugation or sign on the outside.
    return known[id(held)] if id(held) in known else Card(held.resolve_conj().resolve_neg())


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Card) else value


def _mixed(name: str, args: Any, given: list[torch.Tensor]) -> None:
    """Raise where a card would: one tensor there and another here."""
    if name in _ELSEWHERE or name.startswith("_to_"):
        return
    if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
        # Indices may lie on the CPU for a tensor on the card; they are carried there.
        if isinstance(args[0], Card):
            if any(isinstance(one, torch.Tensor) and not isinstance(one, Card) for one in args[1]):
                WAITS.note("carries an index")
            given = [one for one in (args[0], *args[2:3]) if isinstance(one, torch.Tensor)]
    strict = name.startswith(_STRICT) or "mm" in name or "mv" in name
    here = [one for one in given if not isinstance(one, Card) and (one.dim() or strict)]
    if here and _from_formulas():
        return
    if here and any(isinstance(one, Card) for one in given):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} found cuda:0 and cpu.")
    if any(isinstance(one, Card) for one in given[1:]) and not isinstance(given[0], Card) and name.endswith("_"):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} writes from cuda:0 to cpu.")


def _from_formulas() -> bool:
    """Return whether PyTorch's own derivatives ask: the zeros that those make for themselves know no card."""
    frame = sys._getframe(1)
    # Between them may stand what PyTorch calls modes through.
    inside = ("_without_one.py", "_ops.py", "eval_frame.py", "_compile.py")
    while frame is not None and frame.f_code.co_filename.endswith(inside):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"


def _reads(name: str, args: Any) -> None:
    if name in _READ:
        WAITS.note(name)
    masks = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    # One with a single value to put is a masked fill.
    single = name.startswith("index_put") and isinstance(args[2], torch.Tensor) and args[2].numel() == 1
    if not single and any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in masks):
        WAITS.note("index by a mask")
    if name == "copy_" and isinstance(args[0], Card) != isinstance(args[1], Card):
        WAITS.note("copy to the device" if isinstance(args[0], Card) else "copy to the host")


def moved(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor on the card, differentiably."""
    return tensor if isinstance(tensor, Card) else _There.apply(tensor)


class _There(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        with torch._C.DisableTorchFunction():
            return Card(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _held(grads[0])


class _Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Any) -> torch.Tensor:
        return tensor.held.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return Card(grads[0])


class _Devices(TorchFunctionMode):
    """Takes `cuda` out of what PyTorch would have to refuse, and puts the tensor there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func in _MAKERS or name.startswith("new_"):
            return self._made(func, name, args, kwargs)
        if name in ("to", "cuda", "cpu") and args and isinstance(args[0], torch.Tensor):
            return self._moved(func, name, args, kwargs)
        if isinstance(args[0] if args else None, Card):
            if name in ("numpy", "__array__"):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            if name == "tolist":
                WAITS.note("tolist")
                return args[0].held.tolist()
            if name == "data_ptr":
                return args[0].held.data_ptr()
        return func(*args, **kwargs)

    def _made(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        like = args[0] if args and isinstance(args[0], Card) else None
        device = kwargs.pop("device", None)
        there = like is not None if device is None else torch.device(device).type == "cuda"
        if name in ("tensor", "as_tensor", "asarray") and isinstance(args[0], torch.Tensor):
            there = isinstance(args[0], Card) if device is None else there
            kind = kwargs.get("dtype") or args[0].dtype
            found = self._moved(torch.Tensor.to, "to", (args[0], CUDA if there else _CPU, kind), {})
            return found.clone() if name == "tensor" else found
        generator = kwargs.get("generator")
        if generator is not None:
            of_card = any(one is generator for one in _GENERATORS)
            if there and not of_card:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'.")
            # Its own `device` says `cpu`, which no subclass can change.
            there = of_card
        gradient = kwargs.pop("requires_grad", False)
        with torch._C.DisableTorchFunction():
            held = func(*tree_map(_held, args), **kwargs)
            if name in ("tensor", "as_tensor", "asarray", "new_tensor") and there:
                WAITS.note("copy to the device")
            found = Card(held) if there else held
            return found.requires_grad_() if gradient else found

    def _moved(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        tensor, rest = args[0], list(args[1:])
        wanted = {"cuda": CUDA, "cpu": _CPU}.get(name)
        if name == "to":
            wanted = kwargs.pop("device", None)
            for at, one in enumerate(rest):
                if isinstance(one, torch.Tensor):
                    wanted, rest[at] = one.device, one.dtype
                elif isinstance(one, (str, torch.device, int)) and not isinstance(one, bool):
                    wanted = rest.pop(at)
                    break
        there = isinstance(tensor, Card) if wanted is None else torch.device(wanted).type == "cuda"
        if isinstance(tensor, Card) and not there:
            WAITS.note("copy to the host")
            tensor = _Back.apply(tensor)
        elif there and not isinstance(tensor, Card):
            if not kwargs.get("non_blocking"):
                WAITS.note("copy to the device")
            tensor = moved(tensor)
        kinds = [one for one in (*rest, kwargs.get("dtype")) if isinstance(one, torch.dtype)]
        copied = kwargs.get("copy", False) or any(one is True for one in rest[-1:])
        return tensor.to(kinds[0] if kinds else tensor.dtype, copy=copied) if name == "to" else tensor


class _Generator(torch.Generator):
    """A generator that may say it is on the card."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = _GENERATOR.__new__(_GENERATOR)
        if torch.device(device).type == "cuda":
            _GENERATORS.append(made)
        return made


_BACKWARD = BackwardCFunction.apply


def _backward(self: Any, *grads: Any) -> Any:
    """Call a backward of ours; the zeros that PyTorch makes for what nothing depends on are put on the card."""
    if any(isinstance(one, Card) for one in (*grads, *self.saved_tensors)) and self._forward_cls is not _Back:
        with torch._C.DisableTorchFunction():
            grads = tuple(Card(one) if type(one) is torch.Tensor and not one.any() else one for one in grads)
    return _BACKWARD(self, *grads)


def _one_group(lists: Any, with_indices: bool = False) -> Any:
    return {(lists[0][0].device, lists[0][0].dtype): (lists, list(range(len(lists[0]))))}


@contextmanager
def cuda_without_one() -> Iterator[Waits]:
    """Let PyTorch say that there is one CUDA device; yields what waited for it."""
    WAITS.taken()
    autocast = torch.autocast

    class Autocast(autocast):  # type: ignore[misc, valid-type]
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    with (
        patch("torch.cuda.is_available", lambda: True),
        patch("torch.cuda.device_count", lambda: 1),
        patch("torch.cuda.current_device", lambda: 0),
        patch("torch.cuda.synchronize", lambda *_, **__: None),
        patch("torch.cuda.get_rng_state_all", lambda: [torch.get_rng_state()]),
        patch("torch.cuda.set_rng_state_all", lambda *_, **__: None),
        patch("torch.cuda.manual_seed_all", lambda *_, **__: None),
        patch("torch.cuda.manual_seed", lambda *_, **__: None),
        patch("torch.autocast", Autocast),
        patch("torch.Generator", _Generator),
        # A module that moves keeps its parameters, as on a card; one that loads weights copies them.
        patch(
            "torch.__future__.get_swap_module_params_on_conversion",
            lambda: sys._getframe(1).f_code.co_name == "_apply",
        ),
        # It looks at devices below Python; one kind of number is enough here.
        patch("torch.optim.Optimizer._group_tensors_by_device_and_dtype", staticmethod(_one_group)),
        patch.object(BackwardCFunction, "apply", _backward),
        _Devices(),
    ):
        yield WAITS
