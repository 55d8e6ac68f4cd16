"""The R2DN in JAX of the benchmarks is ours and the published one: outputs, last states and all gradients."""

import importlib.util
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from robust_policies.networks import from_flax

HERE = Path(__file__).parent
PEERS = HERE.parent / "benchmarks" / "peers"
PUBLISHED = HERE / "networks" / "reference" / "contracting_r2dn_tall.npz"
# JAX starts threads, which the processes that other tests fork would not survive; so it has a process of its own.
RUN = """
import sys
from pathlib import Path
import numpy as np
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import jax_r2dn

def total(params, u, x0, activation, rate):
    y, x = jax_r2dn.run(params, u, x0, activation, rate)
    return jnp.mean(y**2) + jnp.mean(x**2), (y, x)

for path in list(Path(sys.argv[1]).glob("*.npz")):
    data = dict(np.load(path))
    params = {key.removeprefix("direct/"): jnp.asarray(value) for key, value in data.items() if "direct/" in key}
    given = params, jnp.asarray(data["u"]), jnp.asarray(data["x0"]), str(data["activation"]), float(data["alpha_bar"])
    (_, (y, x)), (slopes, du, dx) = jax.jit(jax.value_and_grad(total, (0, 1, 2), True), static_argnums=(3, 4))(*given)
    found = {"y": y, "x_final": x, "grad_u": du, "grad_x0": dx}
    np.savez(path.with_suffix(".out.npz"), **found, **{f"grad/{key}": value for key, value in slopes.items()})
"""
QUICK = "--xla_backend_optimization_level=0"  # compiling is what takes long here
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


def drawn(activation, alpha_bar):
    """Return random parameters and data of nu 3, nx 4, ny 2, nv 5 and phi 5 -> 6 -> 5, its last layer linear."""
    draw = np.random.default_rng(0).standard_normal
    nu, nx, ny, nv, widths = 3, 4, 2, 5, (5, 6, 5)
    shapes = {"X": (2 * nx, 2 * nx), "p": (1,), "Y": (nx, nx), "B1": (nx, nv), "B2": (nx, nu), "C1": (nv, nx)}
    shapes |= {"D12": (nv, nu), "C2": (ny, nx), "D21": (ny, nv), "D22": (ny, nu), "bx": (nx,), "bv": (nv,), "by": (ny,)}
    for k, (m, n) in enumerate(pairwise(widths)):
        layer = {"XY": (m + n, n), "a": (1,), "b": (n,), "d": (n,)}
        if k == len(widths) - 2:
            del layer["d"]
        shapes |= {f"network/layers_{k}/{key}": shape for key, shape in layer.items()}
    data = {f"direct/{key}": draw(shape) for key, shape in shapes.items()}
    data |= {"u": draw((20, 3, nu)), "x0": draw((3, nx))}
    return {**data, "activation": np.array(activation), "alpha_bar": np.array(alpha_bar)}


def ours(data):
    """Return outputs, last state and gradients, named as the peer's."""
    params = {key.removeprefix("direct/"): value for key, value in data.items() if key.startswith("direct/")}
    cell = from_flax("contracting_r2dn", params, str(data["activation"]), alpha_bar=float(data["alpha_bar"]))
    u, x0 = (torch.from_numpy(data[key]).requires_grad_() for key in ("u", "x0"))
    y, x = cell(u, x0)
    (y.square().mean() + x.square().mean()).backward()
    found = {"y": y, "x_final": x, "grad_u": u.grad, "grad_x0": x0.grad}
    for key in params:
        found[f"grad/{key}"] = cell.get_parameter(key.replace("layers_", "").replace("/", ".")).grad
    return {key: value.detach().numpy() for key, value in found.items()}


def same(found, expected, tolerance, named):
    scale = max(np.abs(expected).max(), 1.0 if tolerance > 1e-6 else 1e-3)
    assert np.abs(found - expected).max() <= tolerance * scale, named


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed (the extra `peers`)")
def test_the_peer_in_jax_is_ours_and_the_published_one(tmp_path):
    cases = {"published": {"alpha_bar": np.array(1.0), **np.load(PUBLISHED)}, "drawn": drawn("tanh", 0.9)}
    narrowed = {}
    for name, data in cases.items():
        for dtype in TOLERANCE:
            given = {key: value.astype(dtype) if value.ndim else value for key, value in data.items()}
            narrowed[name, dtype] = given
            np.savez(tmp_path / f"{name}-{dtype}.npz", **given)
    path = os.pathsep.join(filter(None, (str(PEERS), os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK}
    done = subprocess.run([sys.executable, "-c", RUN, tmp_path], env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    for (name, dtype), data in narrowed.items():
        found = dict(np.load(tmp_path / f"{name}-{dtype}.out.npz"))
        for key, expected in ours(data).items():
            assert found[key].dtype == dtype
            same(found[key], expected, TOLERANCE[dtype], f"{name} {dtype} {key}")
        for key in set(found) & set(data):  # the published numbers
            same(found[key], data[key], TOLERANCE[dtype], f"{name} {dtype} {key}, published")
