"""The cell that is bounded step by step: reference arrays, its guarantee for any parameter, and how near it comes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robust_policies.errors import InvalidValueError, ShapeError, UserError
from robust_policies.networks import R2DN, NemonCell, PeakLipschitz, make_cell
from robust_policies.networks.implicit import NemonClassifier, NemonLayer, matrix_measure

FOLDER = Path(__file__).parent / "reference_cells"
NAMES = {"A": "A", "B1": "B", "B2": "E", "C1": "V", "C2": "C", "D11": "W", "D12": "U", "D21": "D", "D22": "F",
         "bx": "bx", "bv": "b", "by": "by"}  # fmt: skip
FREE = {"B1": "B", "B2": "E", "C1": "V", "C2": "C", "D11": "W", "D12": "U", "D21": "D", "D22": "F",
        "bx": "bx", "bv": "b", "by": "by", "level": "c", "radius": "a", "angle": "th"}  # fmt: skip
UNIT = (1.0, 0.5, 2.0)


def reference(path):
    """Return the cell with a file's free parameters, and the file."""
    data = np.load(path)
    implicit = float(data["omega"]) > 0
    how = {"implicit": True, "omega": float(data["omega"]), "passes": int(data["iters"]) + 1}
    cell = NemonCell(
        3, 6, 2, 8, path.stem.split("_")[-1], PeakLipschitz(float(data["gamma"]), data["ubar"]), float(data["rho"]),
        block_size=int(data["s"]), **(how if implicit else {"layers": int(data["layers"])}),
    ).double()  # fmt: skip
    with torch.no_grad():
        for ours, theirs in FREE.items():
            if getattr(cell, ours) is not None:
                getattr(cell, ours).copy_(torch.tensor(data[f"free_{theirs}"]))
    return cell, data


def near(found, expected, tolerance):
    scale = max(1.0, float(np.abs(expected).max()))
    assert float((found.detach() - torch.as_tensor(expected)).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("path", sorted(FOLDER.glob("linf_*.npz")), ids=lambda path: path.stem)
def test_the_prototypes_arrays_and_run_are_reproduced(path):
    cell, data = reference(path)
    explicit = cell.explicit()
    for ours, theirs in NAMES.items():
        near(getattr(explicit, ours), data[f"exp_{theirs}"], 1e-12)
    u = torch.tensor(data["u"])
    for outputs, state in (cell(u), cell.unroll(explicit, u, cell.initial_state(u.shape[1]), None)):
        near(outputs, data["y"], 1e-12)
        near(state, data["x_final"], 1e-12)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("nemon_*.npz")), ids=lambda path: path.stem)
def test_the_published_layer_and_its_gradients_are_reproduced(path):
    data = np.load(path)
    n, nu = data["U"].shape
    layer = NemonLayer(nu, n, float(data["m"])).double()
    with torch.no_grad():
        for name in "TdUb":
            getattr(layer, name).copy_(torch.tensor(data[name]))
    inputs = torch.tensor(data["x"], requires_grad=True)
    z = layer(inputs)
    (z * torch.tensor(data["g"])).sum().backward()
    explicit = layer.explicit()
    near(explicit.W, data["W"], 1e-12)
    near(z, data["z"], 1e-12)
    near(inputs.grad, data["grad_x"], 1e-12)
    for name in "TdUb":
        near(getattr(layer, name).grad, data[f"grad_{name}"], 1e-12)
    assert matrix_measure(explicit.W, explicit.eta) == pytest.approx(float(data["m"]), abs=1e-12)
    # The weights are exp(-d): with their inverses the same W has another measure.
    assert matrix_measure(explicit.W, 1 / explicit.eta) > float(data["m"]) + 0.1
    with torch.no_grad():
        near(layer(inputs.detach()), data["z"], 1e-12)


def random_cell(seed, scale):
    """Return a cell whose parameters are normal numbers of this size, in one of the forms there are."""
    torch.manual_seed(seed)
    form = [{"layers": 1}, {"layers": 3}, {"implicit": True, "passes": 1}, {"implicit": True, "passes": 2},
            {"implicit": True, "passes": 40, "omega": 0.9}][seed % 5]  # fmt: skip
    cell = NemonCell(3, 4, 2, 6, ("relu", "tanh")[seed % 2], PeakLipschitz(2.0, UNIT), 0.9, 1 + seed % 2, **form)
    cell = cell.double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return cell


def blocks(cell, x):
    return x.unflatten(-1, (-1, cell.block_size)).norm(dim=-1).amax(-1)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_the_bound_and_the_rate_hold_for_any_parameters(scale):
    for seed in range(10):
        cell = random_cell(seed, scale)
        generator = torch.Generator().manual_seed(seed)
        base = scale * torch.randn(15, 300, 3, generator=generator, dtype=torch.float64)
        signs = torch.randint(0, 2, base.shape, generator=generator) * 2.0 - 1.0
        eps = 10 ** torch.linspace(-3, 1, 300, dtype=torch.float64)[:, None]
        with torch.no_grad():
            pair = torch.cat((base, base + eps * torch.tensor(UNIT) * signs), 1)
            (one, two), state = cell(pair)[0].chunk(2, 1), cell(pair)[1]
            level = 1e-11 * max(1.0, float(one.abs().max()))
            assert float(((one - two).abs() / eps).max()) <= 2.0 * (1 + 1e-9) + level / 1e-3
            x, z = state.chunk(2)
            assert bool((blocks(cell, x - z) <= eps[:, 0] * (1 + 1e-9) + level).all())
            explicit, x = cell.explicit(), x + torch.randn(x.shape, generator=generator, dtype=torch.float64)
            before = blocks(cell, x - z)
            x, z = (cell.step(explicit, base[0], one)[1] for one in (x, z))
            assert bool((blocks(cell, x - z) <= cell.rate * before * (1 + 1e-9) + level).all())


@pytest.mark.parametrize(
    "form", [{"activation": "relu"}, {"activation": "tanh", "implicit": True, "passes": 6}, {"block_size": 1}]
)
def test_the_bound_is_reached(form):
    torch.manual_seed(0)
    cell = NemonCell(2, 4, 1, 8, guarantee=PeakLipschitz(3.0, (0.5, 2.0)), rate=0.5, **form).double()
    optimizer = torch.optim.Adam(cell.parameters(), lr=0.05)
    half = torch.tensor([0.25, 1.0], dtype=torch.float64) * torch.ones(10, 1, 2, dtype=torch.float64)
    best = 0.0
    for k in range(150):
        size = 0.01 if form.get("activation") == "tanh" else 1.0
        change = (cell(size * half)[0][-1] - cell(-size * half)[0][-1]).abs().sum() / size
        best = max(best, float(change.detach()))
        optimizer.zero_grad()
        (-change).backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - k / 150)
    assert 0.99 * 3.0 <= best <= 3.0 * (1 + 1e-9)


def test_units_belong_to_the_sensors():
    cell = NemonCell(3, 4, 2, 6, guarantee=PeakLipschitz(2.0, UNIT)).double()
    with torch.no_grad():
        # A sensor that nothing reads takes no room from the others.
        for name in ("B2", "D12", "D22"):
            getattr(cell, name)[:, 1].zero_()
    before = cell.explicit()
    cell.guarantee = PeakLipschitz(2.0, (1.0, 50.0, 2.0))
    for one, other in zip(before, cell.explicit(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_an_implicit_cell_never_reads_its_last_neurons():
    cell = NemonCell(2, 2, 1, 4, implicit=True, passes=2).double()
    inputs = torch.randn(5, 3, 2, dtype=torch.float64)
    whole, state = cell(inputs)
    first, middle = cell(inputs[:3])
    second, last = cell(inputs[3:], middle)
    torch.testing.assert_close(torch.cat((first, second)), whole)
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 1.0}, "rate"),
        ({"rate": 0.0}, "rate"),
        ({"block_size": 3}, "block_size"),
        ({"state_size": 5, "block_size": 2}, "even state_size"),
        ({"layers": 9}, "layers"),
        ({"layers": 2, "implicit": True}, "give one of them"),
        ({"passes": 5}, "implicit=True"),
        ({"implicit": True, "passes": 500}, "at most 200"),
        ({"implicit": True, "omega": 1.0}, "omega"),
        ({"guarantee": {"type": "lipschitz", "gamma": 2.0}}, "this cell has no Lipschitz"),
        ({"guarantee": PeakLipschitz(1.0, (1.0, 2.0))}, "one for each"),
        ({"gamma": -1.0}, "gamma"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(UserError) as error:
        make_cell("nemon", 3, 2, **{"state_size": 4, "features": 6, **options})
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("unit", [(1.0, 0.0), (1.0, -2.0), "ab", 3.0, (1.0, float("nan"))])
def test_a_unit_is_positive(unit):
    with pytest.raises(InvalidValueError):
        PeakLipschitz(1.0, unit)


def test_a_guarantee_of_another_cell_is_refused_with_the_cell_that_has_it():
    with pytest.raises(InvalidValueError, match="use the cell 'nemon'"):
        R2DN(2, 3, 1, 4, (5,), guarantee=PeakLipschitz(2.0))


def test_an_implicit_layer_is_not_asked_for_more_passes_than_it_makes():
    layer = NemonLayer(2, 3, m=0.9999999).double()
    with torch.no_grad():
        layer.T.mul_(0.0)
    with pytest.raises(InvalidValueError, match="smaller m or a larger tolerance"):
        layer(torch.ones(1, 2, dtype=torch.float64))
    with pytest.raises(InvalidValueError, match="below 1"):
        NemonLayer(2, 3, m=1.0)
    with pytest.raises(ShapeError):
        NemonClassifier(2, 3, 4)(torch.ones(1, 3))
