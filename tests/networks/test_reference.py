"""The published implementation's numbers, file by file (arrays and formulas: reference/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robust_policies.networks import LBDN, from_flax

FILES = sorted((Path(__file__).parent / "reference").glob("*.npz"))
OPTIONS = ("alpha_bar", "gamma", "Q", "S", "R")


def load(path, dtype):
    data = dict(np.load(path))
    kind = path.stem.rsplit("_", 1)[0]
    params = {k.removeprefix("direct/"): v.astype(dtype) for k, v in data.items() if k.startswith("direct/")}
    options = {k: (data[k].item() if data[k].ndim == 0 else data[k]) for k in OPTIONS if k in data}
    cell = from_flax(kind, params, activation=str(data["activation"]), **options)
    return cell, data, kind


def name_in_cell(key):
    """Return our parameter's name for a flax key."""
    return key.replace("layers_", "" if key.startswith("network/") else "layers.").replace("/", ".")


def close(actual, expected, relative, label):
    expected = torch.as_tensor(expected)
    scale = max(float(expected.abs().max()), 1.0) if expected.numel() else 1.0
    error = float((actual.detach().double() - expected).abs().max()) if expected.numel() else 0.0
    assert error <= relative * scale, f"{label}: error {error:.3e}"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_reference_is_reproduced(path, dtype, tolerance):
    cell, data, _ = load(path, dtype)
    torch_dtype = getattr(torch, dtype)
    u = torch.as_tensor(data["u"], dtype=torch_dtype)
    if isinstance(cell, LBDN):
        close(cell(u), data["y"], tolerance, "y")
        return
    x0 = torch.as_tensor(data["x0"], dtype=torch_dtype)
    explicit = cell.explicit()._asdict()
    keys = [key for key in data if key.startswith("explicit/")]
    assert len(keys) >= 11
    for key in keys:
        close(explicit[key.removeprefix("explicit/")], data[key], tolerance, key)
    y, x = cell(u, x0)
    close(y, data["y"], tolerance, "y")
    close(x, data["x_final"], tolerance, "x_final")
    y, x = cell.unroll(cell.explicit(), u, x0, None)
    close(y, data["y"], tolerance, "y step by step")

    loss = y.square().mean() + x.square().mean()
    fast_y, fast_x = cell(u, x0)
    fast = fast_y.square().mean() + fast_x.square().mean()
    names = {name_in_cell(key.removeprefix("grad/")): data[key] for key in data if key.startswith("grad/")}
    parameters = dict(cell.named_parameters())
    compared = [name for name in names if name in parameters]
    assert set(parameters) == set(compared)
    relative = 1e-8 if dtype == "float64" else 1e-4
    for total in (loss, fast):
        found = torch.autograd.grad(total, [parameters[name] for name in compared], allow_unused=True)
        biggest = max(np.abs(value).max(initial=0.0) for value in names.values())
        for name, gradient in zip(compared, found, strict=True):
            expected = torch.as_tensor(names[name])
            if gradient is None:
                assert expected.abs().sum() == 0, name
            elif expected.numel():
                scale = float(expected.abs().max()) if dtype == "float64" else biggest
                error = float((gradient.double() - expected).abs().max())
                assert error <= relative * scale + 1e-15, f"{name}: {error:.2e} of {scale:.2e}"
    for name in set(names) - set(parameters):
        assert np.abs(names[name]).sum() == 0, name


def test_all_files_are_here():
    assert len(FILES) == 13


@pytest.mark.parametrize("kind", ["contracting_ren", "lbdn"])
def test_narrow_numbers_are_taken_as_they_are(kind):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    path = next(path for path in FILES if path.stem.startswith(kind))
    cells = {dtype: load(path, dtype)[0] for dtype in (ml_dtypes.bfloat16, np.float16, np.float32)}
    exact = load(path, np.float32)[0].state_dict()
    for cell in cells.values():
        assert all(value.dtype == torch.float32 for value in cell.state_dict().values())
    for name, value in cells[ml_dtypes.bfloat16].state_dict().items():
        assert torch.equal(value, exact[name].to(torch.bfloat16).float()), name
    data = dict(np.load(path))
    direct = {k.removeprefix("direct/"): torch.as_tensor(v).bfloat16() for k, v in data.items() if "direct/" in k}
    options = {k: data[k].item() for k in ("alpha_bar", "gamma") if k in data}
    torchs = from_flax(kind, direct, activation=str(data["activation"]), **options).state_dict()
    assert all(torch.equal(value, torchs[name]) for name, value in cells[ml_dtypes.bfloat16].state_dict().items())
