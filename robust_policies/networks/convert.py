"""Cells from weights trained with the published JAX (flax) code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError, UnknownNameError
from robust_policies.networks.activations import activation_named
from robust_policies.networks.guarantees import Contracting, Dissipative, Guarantee, Lipschitz
from robust_policies.networks.lbdn import LBDN
from robust_policies.networks.linalg import EPS
from robust_policies.networks.r2dn import R2DN
from robust_policies.networks.ren import REN

_OPTIONS = {
    "contracting_r2dn": {"rate", "alpha_bar", "linear_output"},
    "contracting_ren": {"rate", "alpha_bar"},
    "lipschitz_ren": {"rate", "alpha_bar", "gamma"},
    "dissipative_ren": {"rate", "alpha_bar", "Q", "S", "R"},
    "lbdn": {"gamma", "linear_output"},
}
_NARROW = ("bfloat16",)
Module = TypeVar("Module", bound=nn.Module)

_LAYER = re.compile(r"^(?:network/)?layers_(\d+)/(XY|a|b|d)$")
_REN_UNUSED = {"contracting_ren": {"X3", "Y3", "Z3"}, "lipschitz_ren": {"D22"}, "dissipative_ren": {"D22"}}


def from_flax(kind: str, params: Mapping[str, Any], activation: str = "relu", **options: Any) -> R2DN | REN | LBDN:
    """Return the cell (for "lbdn" the LBDN) with the given weights, in their dtype; explicit matrices are the same.

    Narrower numbers (bfloat16, float16) become float32, which holds each of them exactly.

    Args:
        kind: "contracting_r2dn", "contracting_ren", "lipschitz_ren", "dissipative_ren" or "lbdn".
        params: the parameter tree, nested or flat with "/" between levels: {"B1": array, "network/layers_0/XY": array}.
        activation: a name in `ACTIVATIONS`.
        options: `rate` (or `alpha_bar`, default 1), `gamma` (lipschitz_ren, lbdn), `Q`, `S`, `R` (dissipative_ren),
            `linear_output` (contracting_r2dn, lbdn): default False where the last layer has a parameter d, as in the
            published code, whose last layer is a full sandwich layer.

    Raises:
        UnknownNameError: an unknown kind, option or parameter.
        InvalidValueError: a parameter or option is missing.
        ShapeError: an array does not fit the others.
    """
    if kind not in _OPTIONS:
        raise UnknownNameError.among("kind of flax parameters", str(kind), _OPTIONS)
    for option in options:
        if option not in _OPTIONS[kind]:
            raise UnknownNameError.among(f"option of from_flax({kind!r})", option, _OPTIONS[kind])
    arrays = _flatten(params)
    if kind == "lbdn":
        module = _lbdn(arrays, activation, options)
    elif kind == "contracting_r2dn":
        module = _r2dn(arrays, activation, options)
    else:
        module = _ren(kind, arrays, activation, options)
    return module


def _lbdn(arrays: dict[str, Tensor], activation: str, options: dict[str, Any]) -> LBDN:
    widths, linear = _network(arrays, options)
    activation_named(activation)  # layers around pairs have other parameters
    gamma = options.get("gamma", 1.0)
    module = LBDN(widths[0], widths[1:-1], widths[-1], gamma=gamma, activation=activation, linear_output=linear)
    return _load(module, arrays, "layers.", linear, len(widths) - 1, set())


def _r2dn(arrays: dict[str, Tensor], activation: str, options: dict[str, Any]) -> R2DN:
    _require(arrays, "B2", "D22", "C1")
    widths, linear = _network(arrays, options)
    module = R2DN(
        arrays["D22"].shape[1],
        arrays["B2"].shape[0],
        arrays["D22"].shape[0],
        arrays["C1"].shape[0],
        widths[1:-1],
        activation,
        rate=_rate(options),
        linear_output=linear,
        eps=EPS,
    )
    return _load(module, arrays, "network.", linear, len(widths) - 1, set())


def _ren(kind: str, arrays: dict[str, Tensor], activation: str, options: dict[str, Any]) -> REN:
    _require(arrays, "B2", "C2", "D12")
    guarantee: Guarantee = Contracting()
    if kind == "lipschitz_ren":
        guarantee = Lipschitz(_option(kind, options, "gamma"))
    elif kind == "dissipative_ren":
        guarantee = Dissipative(*(_option(kind, options, key) for key in ("Q", "S", "R")))
    (nx, nu), (ny, nv) = arrays["B2"].shape, (arrays["C2"].shape[0], arrays["D12"].shape[0])
    module = REN(nu, nx, ny, nv, activation, guarantee, rate=_rate(options), eps=EPS)
    return _load(module, arrays, "", False, 0, _REN_UNUSED[kind])


def _load(
    module: Module, arrays: dict[str, Tensor], prefix: str, linear: bool, layers: int, unused: set[str]
) -> Module:
    state = {}
    for key, value in arrays.items():
        match = _LAYER.match(key)
        if match and layers:
            index, leaf = int(match[1]), match[2]
            if not (linear and index == layers - 1 and leaf == "d"):
                state[f"{prefix}{index}.{leaf}"] = value
        elif key not in unused:
            state[key] = value
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    for key, value in state.items():
        if key not in expected:
            raise UnknownNameError.among("parameter", key, expected)
        if value.ndim == 0 and expected[key] == (1,):
            state[key] = value.reshape(1)
        elif tuple(value.shape) != expected[key]:
            raise ShapeError(f"Parameter {key} has shape {tuple(value.shape)}; expected {expected[key]}.")
    _require(state, *expected)
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in arrays.values()) else torch.float32
    module = module.to(dtype)
    module.load_state_dict(state)
    return module


def _network(arrays: dict[str, Tensor], options: dict[str, Any]) -> tuple[list[int], bool]:
    """Return the widths of the layers and whether the last is linear."""
    found = {int(match[1]): key for key in arrays if (match := _LAYER.match(key)) and match[2] == "XY"}
    if not found or sorted(found) != list(range(len(found))):
        raise InvalidValueError(f"The layers found are {sorted(found)}; expected layers_0/XY, layers_1/XY, ...")
    shapes = [arrays[found[k]].shape for k in range(len(found))]
    for k, size in enumerate(shapes):
        if len(size) != 2 or size[0] <= size[1] or (k and size[0] - size[1] != shapes[k - 1][1]):
            raise ShapeError(f"{found[k]} has shape {tuple(size)}; expected (inputs + outputs, outputs) of its layer.")
    has_d = found[len(found) - 1].removesuffix("XY") + "d" in arrays
    linear = options.get("linear_output", not has_d)
    return [shapes[0][0] - shapes[0][1], *(size[1] for size in shapes)], bool(linear)


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    if not isinstance(params, Mapping):
        raise InvalidValueError(f"params is a {type(params).__name__}; expected a mapping from names to arrays.")
    flat: dict[str, Tensor] = {}
    for key, value in params.items():
        name = f"{prefix}{key}".removeprefix("params/")
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{name}/")
            continue
        array = _numbers(name, value)
        if not np.isfinite(array).all():
            raise NonFiniteError(f"Parameter {name} holds NaN or infinity; expected finite numbers.")
        flat[name] = torch.from_numpy(array.copy())
    return flat


def _numbers(name: str, value: Any) -> np.ndarray:
    """Return an array of JAX, NumPy or torch as float32, or float64 where it is."""
    if isinstance(value, Tensor):
        # NumPy has no bfloat16 of its own, so torch cannot give it one.
        value = value.detach().cpu().to(torch.float32 if value.dtype == torch.bfloat16 else value.dtype)
    array = np.asarray(value)
    # The dtypes of ml_dtypes, which JAX uses, are of NumPy's kind V, as are records; the name tells them apart.
    if array.dtype.kind != "f" and array.dtype.name not in _NARROW:
        raise ShapeError(f"Parameter {name} has dtype {array.dtype}; expected floating-point numbers.")
    return array if array.dtype == np.float64 else array.astype(np.float32)


def _require(arrays: Mapping[str, Any], *keys: str) -> None:
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise InvalidValueError(f"The parameters lack {', '.join(missing)}; found {', '.join(sorted(arrays))}.")


def _option(kind: str, options: dict[str, Any], key: str) -> Any:
    if key not in options:
        raise InvalidValueError(f"from_flax({kind!r}) needs {key}=...; it is not among the parameters.")
    return options[key]


def _rate(options: dict[str, Any]) -> float:
    return options.get("rate", options.get("alpha_bar", 1.0))
