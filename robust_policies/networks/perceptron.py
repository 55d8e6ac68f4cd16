"""The layers of a perceptron as one operation with its own backward pass, for critics, values and MLP policies.

Forward keeps what each layer reads and gives; backward needs no other. Where numba is there and there are enough rows,
both are the loops of `perceptron_kernels`; their tanh of float32 is within 4e-7. Nothing is certified of these
networks, so elsewhere on a CPU tanh(z) is computed as 2 sigmoid(2 z) - 1, within 2e-7.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from robust_policies.networks.program import transformed

_ATEN = torch.ops.aten
# Fewer rows are not worth loading numba, and wider layers are as fast by PyTorch.
_ENOUGH, _WIDEST = 1024, 128


class _Kind(NamedTuple):
    """An activation h = apply(z), which may overwrite z; `chain(grad, z, h)` is the gradient at z, given that at h."""

    name: str
    plain: Callable[[Tensor], Tensor]
    apply: Callable[[Tensor], Tensor]
    chain: Callable[[Tensor, Tensor, Tensor], Tensor]


def _tanh_(z: Tensor) -> Tensor:
    if z.device.type != "cpu":
        return z.tanh_()
    s = z.mul_(2.0).sigmoid_()
    return torch.add(z.new_tensor(-1.0), s, alpha=2.0, out=s)


_TANH = _Kind("tanh", torch.tanh, _tanh_, lambda grad, _, h: _ATEN.tanh_backward(grad, h))
_RELU = _Kind("relu", torch.relu, torch.relu_, lambda grad, _, h: _ATEN.threshold_backward(grad, h, 0.0))
_SILU = _Kind("silu", functional.silu, functional.silu, lambda grad, z, _: _ATEN.silu_backward(grad, z))
_LINEAR = _Kind("identity", lambda z: z, lambda z: z, lambda grad, _, __: grad)
_KINDS: dict[Any, _Kind] = {nn.Tanh: _TANH, nn.ReLU: _RELU, nn.SiLU: _SILU, "tanh": _TANH, "relu": _RELU, "silu": _SILU}


def layers(modules: Iterable[nn.Module], inputs: Tensor) -> Tensor:
    """Return what modules give one after another, (..., n_L) of inputs (..., n_0).

    Linear layers with the same Tanh, ReLU or SiLU between them, and after the last one or not, are run as one
    operation, differentiable twice; others as they are.
    """
    modules = list(modules)
    kind = _kind(modules)
    if kind is None:
        for module in modules:
            inputs = module(inputs)
        return inputs
    linear = modules[::2]
    return _run(kind, len(modules) % 2 == 1, inputs, [one.weight for one in linear], [one.bias for one in linear])


def perceptron(name: str, inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor | None:
    """Return what a perceptron gives, (..., n_L) of inputs (..., n_0), as `layers` does; None where that cannot run it.

    Args:
        name: of the activation between the layers.
        inputs: (..., n_0).
        weights: (n_k, n_(k-1)) each.
        biases: (n_k,) each.
    """
    kind = _KINDS.get(name)
    return None if kind is None or _elsewhere() else _run(kind, True, inputs, weights, biases)


def shape_of(modules: Sequence[nn.Module]) -> tuple[int, int, np.ndarray] | None:
    """Return kind, last kind and widths for `perceptron_kernels` of modules that end in a linear layer, else None."""
    kind = _kind(modules)
    if kind is None or len(modules) % 2 == 0:
        return None
    return shape_of_layers(kind.name, [cast(Tensor, one.weight) for one in modules[::2]])


def shape_of_layers(name: str, weights: Sequence[Tensor]) -> tuple[int, int, np.ndarray] | None:
    """Return kind, last kind and widths for `perceptron_kernels` of weights (n, m), None where it has none."""
    kernels = _kernels(weights[0].dtype)
    if kernels is None or name not in _KINDS or max(max(W.shape) for W in weights) > _WIDEST:
        return None
    dtype = np.dtype(str(weights[0].dtype).removeprefix("torch."))
    widths = np.array([weights[0].shape[1], *(len(W) for W in weights)])
    return kernels.kind_of(name, dtype), kernels.kind_of("identity", dtype), widths


def array_of(tensor: Tensor) -> np.ndarray:
    """Return the numbers of a tensor of any shape without gaps in memory: the tensor's own where it has none."""
    return np.ascontiguousarray(tensor.detach().numpy())


class Flat:
    """Layers as the compiled loops take them, and their gradients, on memory that stays, as the parameters' does.

    Args:
        shape: what `shape_of` or `shape_of_layers` returned.
        weights: (n_k, n_(k-1)) each.
        biases: (n_k,) each.

    Attributes:
        arguments: kind, last kind, widths, weights and biases of `perceptron_kernels.forward`, of the last `renew`.
        size: how many numbers weights and biases are.
        room: how many numbers `perceptron_kernels.forward` writes for a sample, at most.
    """

    def __init__(self, shape: tuple[int, int, np.ndarray], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self._parameters = [*weights, *biases]
        self._arrays = [[array_of(one).ravel() for one in some] for some in (weights, biases)]
        self._flat = [np.concatenate(some) for some in self._arrays]
        self.arguments = (*shape, *self._flat)
        self.size = sum(len(one) for one in self._flat)
        self.room = 2 * int(shape[2][1:].sum())

    def renew(self) -> None:
        """Take the parameters as they are."""
        for arrays, flat in zip(self._arrays, self._flat, strict=True):
            np.concatenate(arrays, out=flat)

    def listen(self, slopes: np.ndarray) -> None:
        """Take gradients from numbers (size,) from now on: of all weights, then of all biases."""
        parts = np.split(slopes, np.cumsum([one.numel() for one in self._parameters])[:-1])
        pairs = zip(self._parameters, map(torch.from_numpy, parts), strict=True)
        self._pairs = [(one, part.view(one.shape)) for one, part in pairs]

    def back(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Return the parameters (...) and their gradients of the same shapes, which the next ones overwrite."""
        return self._pairs


def regression(modules: Sequence[nn.Module], inputs: Tensor, targets: Tensor) -> Callable[[], float] | None:
    """Return what finds the mean squared error of a network and leaves its gradient in the parameters.

    In place of what was there, by the compiled loops; None where PyTorch has to.

    Args:
        modules: of the network, which gives one number.
        inputs: (..., n_0), the same in every call.
        targets: (...), of the outputs.
    """
    inputs, targets = inputs.flatten(0, -2), targets.flatten()
    shape, linear = shape_of(modules), [one for one in modules if type(one) is nn.Linear]
    weights, biases = [one.weight for one in linear], [cast(Tensor, one.bias) for one in linear]
    if shape is None or shape[2][-1] != 1 or targets.dtype != inputs.dtype:
        return None
    kernels = _compiled(inputs, [one for pair in zip(weights, biases, strict=True) for one in pair])
    if kernels is None or not all(one.requires_grad for one in (*weights, *biases)):
        return None
    flat, given, wanted = Flat(shape, weights, biases), array_of(inputs), array_of(targets)
    slopes = np.empty(flat.size, given.dtype)
    flat.listen(slopes)
    first, last, widths, W, b = flat.arguments
    hidden = np.empty(len(given) * int(widths[1:].sum()), given.dtype)
    kept = np.empty_like(hidden) if first >= kernels.SILU else hidden[:0]

    def error() -> float:
        flat.renew()
        kernels.forward(first, last, given, widths, W, b, hidden, kept)
        missed = hidden[len(hidden) - len(given) :] - wanted
        by_values = (missed * missed.dtype.type(2.0 / len(missed)))[:, None]
        _, gW, gb = kernels.backward(first, last, given, widths, W, hidden, kept, by_values, False)
        np.concatenate((gW, gb), out=slopes)
        for parameter, slope in flat.back():
            parameter.grad = slope
        return float(np.mean(missed * missed))

    return error


def flat(parameters: Sequence[Tensor]) -> list[np.ndarray]:
    """Return all weights and all biases, one after the other, of weight, bias, weight, ... of any shapes."""
    return [np.concatenate([one.detach().numpy().ravel() for one in parameters[k::2]]) for k in (0, 1)]


def _elsewhere() -> bool:
    return torch.is_autocast_enabled() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _run(kind: _Kind, linear: bool, inputs: Tensor, weights: Sequence[Any], biases: Sequence[Any]) -> Tensor:
    """Return what layers give; the last one has no activation if `linear`."""
    kinds = [kind] * len(weights)
    if linear:
        kinds[-1] = _LINEAR
    parameters = [value for pair in zip(weights, biases, strict=True) for value in pair]
    h = _Layers.apply(kinds, inputs.flatten(0, -2), *parameters)
    return h.unflatten(0, inputs.shape[:-1])


def _kind(modules: Sequence[nn.Module]) -> _Kind | None:
    """Return the activation of linear layers and activations in turns, None of any other network."""
    linear, between = modules[::2], {type(module) for module in modules[1::2]}
    if len(between) != 1 or _elsewhere():
        return None
    if not all(type(layer) is nn.Linear and layer.bias is not None for layer in linear):
        return None
    return _KINDS.get(between.pop())


@cache
def _kernels(dtype: torch.dtype) -> Any:
    """Return the module of the compiled loops, None where numba is not there or they do not run."""
    if dtype not in (torch.float32, torch.float64):
        return None
    try:
        kernels = importlib.import_module("robust_policies.networks.perceptron_kernels")
        one, widths = torch.ones(1, 1, dtype=dtype).numpy(), np.array([1, 1])
        kernels.forward(0, 0, one, widths, one[0], one[0], one[0].copy(), one[0])
        kernels.backward(0, 0, one, widths, one[0], one[0], one[0], one, True)
    except Exception:  # whatever ails the compiler: PyTorch needs none
        return None
    return kernels


def _compiled(inputs: Tensor, parameters: Sequence[Tensor]) -> Any:
    """Return the module of the compiled loops if they are to be used, else None."""
    if inputs.device.type != "cpu" or len(inputs) < _ENOUGH:
        return None
    if max(max(W.shape) for W in parameters[::2]) > _WIDEST or any(one.dtype != inputs.dtype for one in parameters):
        return None
    return _kernels(inputs.dtype)


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kinds: Sequence[_Kind], inputs: Tensor, *parameters: Tensor) -> Tensor:
        ctx.kinds, ctx.kept = kinds, None
        kernels = _compiled(inputs, parameters)
        if kernels is not None:
            ctx.save_for_backward(inputs, *parameters)
            given = np.ascontiguousarray(inputs.detach().numpy())
            widths = np.array([given.shape[1], *(len(b) for b in parameters[1::2])])
            numbers = flat(parameters)
            hidden = np.empty(len(given) * int(widths[1:].sum()), given.dtype)
            first, last = (kernels.kind_of(kind.name, given.dtype) for kind in (kinds[0], kinds[-1]))
            kept = np.empty_like(hidden) if first >= kernels.SILU else hidden[:0]
            kernels.forward(first, last, given, widths, *numbers, hidden, kept)
            ctx.kept = kernels, (first, last, given, widths, numbers[0], hidden, kept)
            # A copy: who keeps the outputs does not keep all layers, and who writes there does not change them.
            return torch.from_numpy(hidden[len(hidden) - len(given) * int(widths[-1]) :]).view(len(given), -1).clone()
        kept, h = [], inputs
        for kind, W, b in zip(kinds, parameters[::2], parameters[1::2], strict=True):
            z = torch.addmm(b, h, W.t())
            h = kind.apply(z)
            # Where z was overwritten it is h itself.
            kept += [z, h]
        ctx.save_for_backward(inputs, *parameters, *kept)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *saved = ctx.saved_tensors
        needed, count = ctx.needs_input_grad[1:], 2 * len(ctx.kinds)
        parameters, kept = saved[:count], saved[count:]
        if torch.is_grad_enabled() or transformed(grads):
            return (None, *_differentiable(ctx.kinds, (inputs, *parameters), needed, grads))
        if ctx.kept is not None:
            kernels, given = ctx.kept
            gx, gW, gb = kernels.backward(*given, np.ascontiguousarray(grads[0].numpy()), needed[0])
            slopes = zip(_parts(gW, parameters[::2]), _parts(gb, parameters[1::2]), strict=True)
            return (None, torch.from_numpy(gx) if needed[0] else None, *(one for pair in slopes for one in pair))
        found: list[Tensor | None] = []
        grad = grads[0]
        for k in range(count - 2, -1, -2):
            delta = ctx.kinds[k // 2].chain(grad, kept[k], kept[k + 1])
            below = kept[k - 1] if k else inputs
            found += [delta.sum(0) if needed[k + 2] else None, delta.t() @ below if needed[k + 1] else None]
            if any(needed[: k + 1]):
                grad = delta @ parameters[k]
        return (None, grad if needed[0] else None, *reversed(found))


def _parts(flat: np.ndarray, like: Sequence[Tensor]) -> list[Tensor]:
    """Return consecutive parts of a flat array in the shapes of tensors."""
    pieces = torch.from_numpy(flat).split([one.numel() for one in like])
    return [piece.view(one.shape) for piece, one in zip(pieces, like, strict=True)]


def _differentiable(
    kinds: Sequence[_Kind], tensors: Sequence[Tensor], needed: Sequence[bool], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients as differentiable tensors, of a recomputation on aliases."""
    aliases = [tensor.view_as(tensor) if need else tensor for tensor, need in zip(tensors, needed, strict=True)]
    h = aliases[0]
    for kind, W, b in zip(kinds, aliases[1::2], aliases[2::2], strict=True):
        h = kind.plain(functional.linear(h, W, b))
    wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
    results = iter(torch.autograd.grad(h, wanted, grads, create_graph=True))
    return [next(results) if need else None for need in needed]
