"""Linear recurrent units of bounded gain: reference arrays, gains at any parameters, the run without a loop."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robust_policies.certificates import empirical_gain, matrices, verify, verify_arrays
from robust_policies.certificates.modal import _turning, stack
from robust_policies.control.norms import StateSpace, hinf_norm
from robust_policies.errors import UserError
from robust_policies.networks import L2RU, Lipschitz, make_cell
from robust_policies.networks.l2ru import _Modal
from robust_policies.networks.modal_scan import modal_scan

FOLDER = Path(__file__).parent / "reference_cells"


def modal(n, inputs, outputs, scale=1.0, rate=1.0):
    """Return a linear unit with normal free parameters, nu and theta apart."""
    unit = _Modal(n, inputs, rate).double()
    shapes = {"Mv": (n, inputs), "Mu": (outputs, n), "Mz": (outputs, inputs)}
    for name, shape in shapes.items():
        setattr(unit, name, torch.nn.Parameter(scale * torch.randn(shape, dtype=torch.float64)))
    return unit


def system(unit):
    e = [part.detach().numpy() for part in unit.explicit()]
    return StateSpace(_turning(e[0]), *e[1:])


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_the_prototypes_matrices_are_reproduced(case):
    data = np.load(FOLDER / "modal_l2_own.npz")
    value = {name.split("_", 1)[1]: data[name] for name in data.files if name.startswith(f"{case}_")}
    unit = modal(*value["Mv"].shape, len(value["Mu"]))
    for name in ("nu", "theta", "Mv", "Mu", "Mz"):
        getattr(unit, name).data = torch.tensor(value[name])
    found, gamma = system(unit), float(value["gamma"])
    for name, factor in (("A", 1.0), ("B", gamma**0.5), ("C", gamma**0.5), ("D", gamma)):
        np.testing.assert_allclose(factor * getattr(found, name), value[name], rtol=0, atol=1e-12 * gamma)
    assert gamma * hinf_norm(found) == pytest.approx(float(value["hinf"]), rel=1e-9)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_a_units_gain_is_at_most_one_and_its_poles_stay_where_they_are_put(scale):
    torch.manual_seed(0)
    for k in range(6):
        rate = (1.0, 0.9)[k % 2]
        unit = modal(*((4, 1, 2), (8, 3, 2), (6, 4, 4))[k % 3], scale, rate)
        found = system(unit)
        assert hinf_norm(found) <= 1 + 1e-9
        rho, theta = torch.exp(-unit.nu.exp()), unit.theta
        asked = rate * (rho * torch.exp(1j * theta)).detach().numpy()
        poles = np.linalg.eigvals(found.A)
        for pole in (*asked, *asked.conj()):
            assert np.abs(poles - pole).min() <= 1e-12


def stacked(seed=0, scale=None, **options):
    torch.manual_seed(seed)
    cell = L2RU(3, 8, 2, 5, **{"guarantee": Lipschitz(2.0), **options})
    if scale is not None:
        with torch.no_grad():
            for name, parameter in cell.named_parameters():
                if name.split(".")[-1] not in ("nu", "theta", "a", "d"):
                    parameter.copy_(scale * torch.randn_like(parameter))
    return cell


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("options", [{}, {"layers": 1, "rate": 0.9, "activation": "tanh"}])
def test_float32_arrays_are_proven_and_no_search_exceeds_the_gain(scale, options):
    cell = stacked(3, scale, **options)
    found = verify(cell)
    assert found.status == "PASS" and found.claimed_gamma == 2.0
    assert found.gamma <= 2.0 * (1 + 1e-3) and found.rate <= cell.rate
    assert empirical_gain(cell, 12, batch=4, power_iterations=8, adam_iterations=4).gain <= found.gamma * (1 + 1e-9)


def test_slow_poles_keep_their_digits_in_float32():
    cell = stacked(1)
    with torch.no_grad():
        for unit in cell.units:
            unit.nu.fill_(float(np.log(-np.log(0.9999))))
    found = verify(cell)
    assert found.status == "PASS" and found.gamma <= 2.0 * (1 + 1e-3)
    for unit, exact in zip(cell.explicit().linear, cell.explicit64().linear, strict=True):
        for part, wide in zip(unit, exact, strict=True):
            assert float((part.double() - wide).detach().abs().max()) <= 2e-6 * float(wide.detach().abs().max())


def test_the_bound_is_reached():
    torch.manual_seed(0)
    cell = L2RU(2, 4, 3, 3, layers=2, guarantee=Lipschitz(2.0)).double()
    optimizer = torch.optim.Adam(cell.parameters(), lr=0.03)
    base = torch.randn(16, 4, 2, dtype=torch.float64).requires_grad_()
    other = torch.randn(16, 4, 2, dtype=torch.float64).requires_grad_()
    optimizer.add_param_group({"params": [base, other]})
    best = 0.0
    for _ in range(300):
        outputs = cell(torch.cat((base, other), 1))[0]
        one, two = outputs.chunk(2, 1)
        gain = ((one - two).square().sum((0, 2)) / (base - other).square().sum((0, 2))).sqrt().max()
        best = max(best, float(gain.detach()))
        optimizer.zero_grad()
        (-gain).backward()
        optimizer.step()
    assert 0.95 * 2.0 <= best <= 2.0 * (1 + 1e-9)


def test_the_run_equals_the_loop_with_its_gradients_over_long_times():
    cell = stacked(2).double()
    inputs = torch.randn(300, 2, 3, dtype=torch.float64)
    state = torch.randn(2, 8, dtype=torch.float64)
    starts = torch.rand(300, 2) < 0.02
    found = []
    for run in (cell.run, cell.unroll):
        outputs, final = run(cell.explicit(), inputs, state, starts)
        loss = outputs.square().mean() + final.square().mean()
        found.append((outputs, final, *torch.autograd.grad(loss, list(cell.parameters()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_sum_by_doubling_has_first_and_second_derivatives():
    torch.manual_seed(0)
    poles = (0.9 * torch.exp(1j * torch.rand(2, dtype=torch.float64))).requires_grad_()
    drive = torch.randn(5, 2, 2, dtype=torch.complex128).requires_grad_()
    keep = torch.rand(5, 2, 1) > 0.3
    for links in (None, keep):
        assert torch.autograd.gradcheck(lambda a, b, k=links: modal_scan(a, b, k), (poles, drive))
        assert torch.autograd.gradgradcheck(lambda a, b, k=links: modal_scan(a, b, k), (poles, drive))
    plain = torch.func.jvp(lambda b: modal_scan(poles.detach(), b, keep), (drive.detach(),), (drive.detach(),))
    torch.testing.assert_close(plain[0], plain[1])


def published(data):
    """Return A, B, C, D of the published L2RU from its parameters, in other words than its code."""
    value = {name.removeprefix("l2ru_param_"): data[name] for name in data.files if name.startswith("l2ru_param")}
    n, gamma = len(value["C"]), float(value["gamma"])
    lower = [np.zeros((n, n)) for _ in range(2)]
    for matrix, name in zip(lower, ("X11_params", "X22_params"), strict=True):
        matrix[tuple(value["tril_indices"])] = value[name]
    X11, X22 = lower
    skew = np.zeros((n, n))
    skew[tuple(value["triu_indices"])] = value["Skew_params"]
    skew = skew - skew.T
    turn = (np.eye(n) - skew) @ np.linalg.inv(np.eye(n) + skew)
    Dt, X21, C = value["Dt"], value["X21"], value["C"]
    Z = X21 @ X21.T + X22 @ X22.T + Dt.T @ Dt + np.eye(n)
    beta = gamma**2 / (1 + np.exp(-float(value["alpha"]))) / np.linalg.norm(Z, 2)
    H11 = X11 @ X11.T + C.T @ C + beta * np.eye(n)
    H12 = np.sqrt(beta) * (X11 @ X21.T + C.T @ Dt)
    V = beta * Z - gamma**2 * np.eye(n)
    R = H12 @ np.linalg.inv(V) @ H12.T
    # Their code adds 1e-6 I inside both roots.
    A = np.linalg.solve(np.linalg.cholesky(H11 - R).T, turn @ np.linalg.cholesky(-R).T)
    return A, lambda A: A @ np.linalg.inv(H12.T) @ V.T, C, np.sqrt(beta) * Dt, gamma


def test_the_published_cells_arrays_run_and_are_proven_with_their_own_gain():
    data = np.load(FOLDER / "decodepfl_l2ru.npz")
    A, B, C, D = (data[f"l2ru_{name}"] for name in "ABCD")
    root, drive, output, feedthrough, gamma = published(data)
    np.testing.assert_allclose(root, A, rtol=0, atol=1e-5)
    for found, stored in ((drive(A), B), (output, C), (feedthrough, D)):
        np.testing.assert_allclose(found, stored, rtol=0, atol=1e-12)
    x, outputs = np.zeros((2, len(A))), []
    for u in data["l2ru_u"].swapaxes(0, 1):
        outputs.append(x @ C.T + u @ D.T)
        x = x @ A.T + u @ B.T
    np.testing.assert_allclose(np.stack(outputs, 1), data["l2ru_y"], rtol=0, atol=1e-12)
    none, n = np.zeros, len(A)
    model = matrices(A, none((n, 0)), B, none((0, n)), none((0, n)), C, none((n, 0)), D)
    found = verify_arrays(model, rate=1.0, gamma=gamma)
    assert found.status == "PASS" and hinf_norm(StateSpace(A, B, C, D)) <= found.gamma <= gamma * (1 + 1e-3)


@pytest.mark.parametrize("name", ["B", "poles", "nan"])
def test_arrays_that_were_changed_are_refused(name):
    cell = stacked().double()
    explicit = cell.explicit()
    unit = explicit.linear[0]
    field = "poles" if name == "poles" else "B"
    part = getattr(unit, field).detach().clone()
    part[0] = float("nan") if name == "nan" else 30.0
    changed = explicit._replace(linear=(unit._replace(**{field: part}), explicit.linear[1]))
    assert verify(cell, changed).status == "NOT_CERTIFIED"


def test_units_share_the_pairs_and_widths_have_defaults():
    cell = make_cell("l2ru", 3, 2, state_size=10, gamma=2.0, layers=3)
    assert cell.sizes == [4, 4, 2] and cell.features == 10 and verify(cell).status == "PASS"
    assert make_cell("l2ru", 1, 1, state_size=2).count == 1
    one, two = (make_cell("nemon", 3, 2, state_size=size, gamma=2.0) for size in (3, 4))
    assert (one.block_size, two.block_size, two.features) == (1, 2, 8)


def test_the_stack_is_one_system_around_its_neurons():
    cell = stacked(activation="identity").double()
    with torch.no_grad():
        for layer in (*cell.inward, *cell.between, *cell.outward):
            layer.b.zero_()
        model = stack(cell.explicit()).model
        inputs = torch.randn(20, 1, 3, dtype=torch.float64)
        outputs = cell(inputs)[0][:, 0].numpy()
    closed = np.linalg.inv(np.eye(len(model.D11)) - model.D11)
    x = np.zeros(8)
    for u, y in zip(inputs[:, 0].numpy(), outputs, strict=True):
        w = closed @ (model.C1 @ x + model.D12 @ u)
        np.testing.assert_allclose(model.C2 @ x + model.D21 @ w + model.D22 @ u, y, atol=1e-12)
        x = model.A @ x + model.B1 @ w + model.B2 @ u


@pytest.mark.parametrize(
    "options",
    [
        {"state_size": 7},
        {"layers": 5},
        {"layers": 0},
        {"rate": 0.0},
        {"rate": 1.1},
        {"gamma": -2.0},
        {"guarantee": {"type": "peak_lipschitz", "gamma": 1.0}},
    ],
)
def test_wrong_options_are_refused_in_one_line(options):
    with pytest.raises(UserError) as error:
        make_cell("l2ru", 3, 2, **{"state_size": 8, "features": 4, **options})
    assert "\n" not in str(error.value)
