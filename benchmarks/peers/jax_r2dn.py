"""The contracting R2DN in plain JAX: value and gradients of the sum of its squared outputs, one `jit` around all of it.

x+ = A x + B1 w + B2 u + bx,  v = C1 x + D12 u + bv,  w = phi(v),  y = C2 x + D21 w + D22 u + by, with phi of sandwich
layers; the matrices follow from free parameters in every call, and `jax.lax.scan` runs over time. The parameters have
the names that `from_flax("contracting_r2dn", ...)` reads, flat: X (2 nx, 2 nx), p (1,), Y (nx, nx), B1 (nx, nv),
B2 (nx, nu), C1 (nv, nx), D12 (nv, nu), C2 (ny, nx), D21 (ny, nv), D22 (ny, nu), bx (nx,), bv (nv,), by (ny,) and of
each layer k of phi network/layers_k/XY (n_in + n_out, n_out), a (1,), b (n_out,), d (n_out,); a last layer without d is
linear.

Source: arXiv 2504.01250, eqs. 20-21; layers: arXiv 2301.11526. Needs jax: `pip install 'robust-policies[peers]'`.

It says in one line of JSON what it runs on, then answers each line: the path of an NPZ file (`param/NAME`, `inputs` of
(time, batch, nu)) by what compiling took and the value; a number by the seconds a call of as many took.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np

EPS = 1.1920929e-07
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}
Params = dict[str, jax.Array]


class Layer(NamedTuple):
    """A layer h (..., n_in) -> act(h inward + bias) outward; without outward there is no activation."""

    inward: jax.Array
    bias: jax.Array
    outward: jax.Array | None


class System(NamedTuple):
    """Matrices for rows of states, neurons and inputs side by side: what v, y and the next x are made of."""

    v: jax.Array
    bv: jax.Array
    both: jax.Array
    bias: jax.Array
    layers: list[Layer]


def identity(like: jax.Array) -> jax.Array:
    return jnp.eye(like.shape[0], dtype=like.dtype)


def linear_part(params: Params, rate: float) -> tuple[jax.Array, jax.Array]:
    """Return A (nx, nx) and B1 (nx, nv), so that the metric of H contracts at the rate."""
    X, B1, C1, Y = (params[key] for key in ("X", "B1", "C1", "Y"))
    nx = Y.shape[0]
    H = params["p"] ** 2 / (jnp.sum(X**2) + EPS) * (X.T @ X)
    H = H + jax.scipy.linalg.block_diag(C1.T @ C1, B1 @ B1.T) + EPS * identity(H)
    E = 0.5 * (H[:nx, :nx] + H[nx:, nx:] / rate**2 + Y - Y.T)
    solved = jnp.linalg.solve(E, jnp.concatenate((H[nx:, :nx], B1), axis=1))
    return solved[:, :nx], solved[:, nx:]


def layer(params: Params, index: int) -> Layer:
    """Return a layer by the Cayley transform of its XY; Psi = exp(clip(d, -20, 20))."""
    XY, a, b, d = (params.get(f"network/layers_{index}/{key}") for key in ("XY", "a", "b", "d"))
    assert XY is not None and a is not None and b is not None
    n = XY.shape[1]
    W = a / jnp.sqrt(jnp.sum(XY**2) + EPS) * XY
    Z = W[:n] - W[:n].T + W[n:].T @ W[n:]
    inverse = jnp.linalg.inv(identity(Z) + Z)
    AT, BT = inverse @ (identity(Z) - Z), -2.0 * W[n:] @ inverse
    if d is None:
        return Layer(BT, b, None)
    psi = jnp.exp(jnp.clip(d, -20.0, 20.0))
    return Layer(math.sqrt(2.0) * BT / psi, b, (math.sqrt(2.0) * AT * psi).T)


def system(params: Params, rate: float) -> System:
    """Return what the free parameters stand for."""
    A, B1 = linear_part(params, rate)
    count = sum(key.endswith("/XY") for key in params)
    outputs = jnp.concatenate((params["C2"], params["D21"], params["D22"]), axis=1)
    following = jnp.concatenate((A, B1, params["B2"]), axis=1)
    return System(
        jnp.concatenate((params["C1"], params["D12"]), axis=1).T,
        params["bv"],
        jnp.concatenate((outputs, following)).T,
        jnp.concatenate((params["by"], params["bx"])),
        [layer(params, index) for index in range(count)],
    )


def run(
    params: Params, inputs: jax.Array, state: jax.Array, activation: str = "relu", rate: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Return outputs (time, batch, ny) and the last state (batch, nx), of inputs (time, batch, nu) and the first."""
    act, ny = ACTIVATIONS[activation], params["by"].shape[0]
    with jax.default_matmul_precision("highest"):  # products of float32, as ours, and not TF32
        found = system(params, rate)

        def step(x: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
            w = jnp.concatenate((x, u), axis=-1) @ found.v + found.bv
            for one in found.layers:
                w = w @ one.inward + one.bias
                w = w if one.outward is None else act(w) @ one.outward
            both = jnp.concatenate((x, w, u), axis=-1) @ found.both + found.bias
            return both[..., ny:], both[..., :ny]

        last, outputs = jax.lax.scan(step, state, inputs)
    return outputs, last


def squares(params: Params, inputs: jax.Array, activation: str = "relu", rate: float = 1.0) -> jax.Array:
    """Return the sum of the squared outputs from the state zero, a scalar ()."""
    state = jnp.zeros((inputs.shape[1], params["Y"].shape[0]), inputs.dtype)
    return jnp.sum(run(params, inputs, state, activation, rate)[0] ** 2)


def prepared(path: str) -> tuple[Callable[[], tuple[jax.Array, Params]], dict[str, float]]:
    """Return value and gradients by the parameters of a file, compiled, with the seconds of it and the value."""
    with np.load(path) as file:
        params = {key.removeprefix("param/"): jnp.asarray(file[key]) for key in file if key.startswith("param/")}
        inputs = jnp.asarray(file["inputs"])
    began = time.perf_counter()
    call = partial(jax.jit(jax.value_and_grad(squares)).lower(params, inputs).compile(), params, inputs)
    seconds = time.perf_counter() - began
    return call, {"compile_seconds": seconds, "value": float(call()[0])}


def main() -> None:
    print(json.dumps({"jax": jax.__version__, "platform": jax.devices()[0].platform}), flush=True)
    call = None
    for line in map(str.strip, sys.stdin):
        if not line.isdigit():
            call, answer = prepared(line)
        else:
            assert call is not None
            began, result = time.perf_counter(), None
            for _ in range(int(line)):
                result = call()
            jax.block_until_ready(result)
            answer = {"seconds": (time.perf_counter() - began) / int(line)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
