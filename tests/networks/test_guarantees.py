"""The guarantee's LMI with the cell's own metric P, its survival under training, and its tightness."""

import pytest
import torch

from robust_policies.networks import LBDN, R2DN, REN, Contracting, Dissipative, Lipschitz

MARGIN = 1e-10
"""The LMI's largest eigenvalue may exceed zero by this much times the largest eigenvalue of its positive part."""


def supply_matrices(cell):
    nu, ny = cell.input_size, cell.output_size
    if isinstance(cell.guarantee, Dissipative):
        return cell.guarantee.Q, cell.guarantee.S, cell.guarantee.R
    eye = torch.eye
    gamma = cell.gamma
    return -eye(ny).double() / gamma, torch.zeros(nu, ny).double(), gamma * eye(nu).double()


@torch.no_grad()
def violation(cell):
    """Return lambda_max of V+ - rate^2 V - supply + multiplier term, relative; <= 0 proves the guarantee.

    In (x, w, u). R2DN: |v|^2 - |w|^2 >= 0; REN: 2 w' Lam (v - w) >= 0 with its own Lam.
    """
    e, P = cell.explicit64(), cell.metric()
    nx, nv, nu = e.A.shape[0], e.B1.shape[1], e.B2.shape[1]
    eye = torch.eye(nx + nv + nu, dtype=torch.float64)
    x, w, u = eye[:nx], eye[nx : nx + nv], eye[nx + nv :]
    following = torch.cat((e.A, e.B1, e.B2), dim=1)
    feedback = e.D11 if isinstance(cell, REN) else torch.zeros(nv, nv, dtype=torch.float64)
    v = torch.cat((e.C1, feedback, e.D12), dim=1)
    y = torch.cat((e.C2, e.D21, e.D22), dim=1)
    gain = following.mT @ P @ following
    if isinstance(cell, REN):
        cross = w.mT @ (cell.multiplier().unsqueeze(1) * (v - w))
        multiplier = cross + cross.mT
    else:
        multiplier = v.mT @ v - w.mT @ w
    L = gain + multiplier - cell.rate**2 * x.mT @ P @ x
    if isinstance(cell.guarantee, Contracting):
        L, gain = L[:-nu, :-nu], gain[:-nu, :-nu]
    else:
        Q, S, R = supply_matrices(cell)
        cross = u.mT @ S @ y
        L = L - (y.mT @ Q @ y + cross + cross.mT + u.mT @ R @ u)
    assert float(torch.linalg.eigvalsh(P)[0]) > 0
    scale = max(float(torch.linalg.matrix_norm(part, 2)) for part in (gain, P, multiplier))
    return float(torch.linalg.eigvalsh((L + L.mT) / 2)[-1]) / scale


def guarantee_of(kind, nu, ny, generator):
    if kind == "contracting":
        return Contracting()
    if kind == "lipschitz":
        return Lipschitz(float(10 ** (2 * torch.rand((), generator=generator) - 1)))
    if kind == "passive":
        return Dissipative(-0.1 * torch.eye(ny), 0.5 * torch.eye(nu, ny), 0.1 * torch.eye(nu))
    S = torch.randn(nu, ny, generator=generator)
    Q = torch.randn(ny, ny, generator=generator)
    return Dissipative(-Q @ Q.mT - 0.5 * torch.eye(ny), S, (1 + float(S.square().sum())) * torch.eye(nu))


def random_cell(kind, model, seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    nu, ny, nx, nv = (int(torch.randint(1, 6, (), generator=generator)) for _ in range(4))
    guarantee = guarantee_of(kind, nu, ny, generator)
    rate = (1.0, 0.9, 0.5)[seed % 3]
    activation = ("relu", "tanh", "identity")[seed % 3]
    if model == "r2dn":
        hidden = ((4,), (5, 3), (2, 6, 4))[seed % 3]
        cell = R2DN(nu, nx, ny, nv, hidden, activation, guarantee, rate, linear_output=seed % 2 == 0)
    else:
        cell = REN(nu, nx, ny, nv, activation, guarantee, rate)
    cell = cell.double()
    scale = 10 ** (2 * float(torch.rand((), generator=generator)) - 1)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return cell


def gain(cell, one, two):
    outputs, _ = cell(torch.cat((one, two), dim=1))
    y1, y2 = outputs.chunk(2, dim=1)
    return ((y1 - y2).square().sum((0, 2)) / (one - two).square().sum((0, 2)).clamp(min=1e-30)).sqrt()


def maximise_gain(cell, steps, rate=0.02, time=12, batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (time, batch, cell.input_size)
    one = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    two = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([*cell.parameters(), one, two], lr=rate)
    best = 0.0
    for _ in range(steps):
        found = gain(cell, one, two)
        best = max(best, float(found.detach().max()))
        optimizer.zero_grad()
        (-found.max()).backward()
        optimizer.step()
    return best


@pytest.mark.parametrize("model", ["r2dn", "ren"])
@pytest.mark.parametrize("kind", ["contracting", "lipschitz", "passive", "dissipative"])
def test_lmi_holds_for_random_models(kind, model):
    worst = max(violation(random_cell(kind, model, seed)) for seed in range(30))
    assert worst <= MARGIN


@pytest.mark.parametrize("model", ["r2dn", "ren"])
@pytest.mark.parametrize("kind", ["contracting", "lipschitz", "dissipative"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_lmi_survives_training_for_a_large_gain(kind, model, seed):
    cell = random_cell(kind, model, 100 + seed)
    best = maximise_gain(cell, 50)
    assert violation(cell) <= MARGIN
    if cell.gamma is not None:
        assert best <= cell.gamma * (1 + 1e-9)


@pytest.mark.parametrize("model", ["r2dn", "ren"])
def test_lmi_survives_a_trainable_gamma(model):
    torch.manual_seed(3)
    options = {"guarantee": Lipschitz(1.5, trainable=True)}
    cell = R2DN(2, 3, 4, 5, (4,), **options) if model == "r2dn" else REN(2, 3, 4, 5, **options)
    cell = cell.double()
    maximise_gain(cell, 50)
    assert cell.gamma is not None and cell.gamma > 1.6
    assert violation(cell) <= MARGIN


@pytest.mark.parametrize(
    ("model", "outputs"),
    [
        ("r2dn", 3),
        ("ren", 1),
        pytest.param("r2dn", 1, marks=pytest.mark.soak),
        pytest.param("ren", 3, marks=pytest.mark.soak),
    ],
)
def test_the_bound_is_reached(model, outputs):
    torch.manual_seed(0)
    shape = (2, 3, outputs, 4)
    cell = R2DN(*shape, (6,), guarantee=Lipschitz(2.0)) if model == "r2dn" else REN(*shape, guarantee=Lipschitz(2.0))
    best = maximise_gain(cell.double(), 400, rate=0.05)
    assert 0.99 * 2.0 <= best <= 2.0 * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_dissipative_supply_is_never_negative(seed):
    for model in ("r2dn", "ren"):
        cell = random_cell("dissipative", model, 200 + seed)
        one, two = torch.randn(2, 30, 8, cell.input_size, dtype=torch.float64)
        du, dy = one - two, cell(one)[0] - cell(two)[0]
        Q, S, R = supply_matrices(cell)
        rate = ((dy @ Q) * dy).sum(-1) + 2 * ((du @ S) * dy).sum(-1) + ((du @ R) * du).sum(-1)
        assert float(rate.cumsum(0).min()) >= -1e-9 * float(rate.abs().sum(0).max())


@pytest.mark.parametrize("model", ["r2dn", "ren"])
def test_two_states_merge_at_the_rate(model):
    for seed in range(6):
        cell = random_cell("contracting", model, 3 * seed + 2)
        P, e = cell.metric(), cell.explicit()
        x = torch.randn(8, cell.state_size, dtype=torch.float64)
        z = torch.randn(8, cell.state_size, dtype=torch.float64)
        for _ in range(10):
            u = torch.randn(8, cell.input_size, dtype=torch.float64)
            before = (((x - z) @ P) * (x - z)).sum(1)
            x, z = cell.step(e, u, x)[1], cell.step(e, u, z)[1]
            after = (((x - z) @ P) * (x - z)).sum(1)
            rounding = 1e-12 * float(torch.linalg.matrix_norm(P, 2)) * float(x.square().sum(1).max() + 1)
            assert bool((after <= cell.rate**2 * before * (1 + 1e-9) + rounding).all())


@pytest.mark.parametrize("linear", [True, False])
def test_lbdn_bound_holds_and_is_reached(linear):
    torch.manual_seed(0)
    net = LBDN(3, (8, 8), 2, gamma=3.0, linear_output=linear).double()
    one = torch.randn(16, 3, dtype=torch.float64, requires_grad=True)
    two = torch.randn(16, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([*net.parameters(), one, two], lr=0.02)
    best = 0.0
    for _ in range(400):
        found = (net(one) - net(two)).norm(dim=1) / (one - two).norm(dim=1)
        best = max(best, float(found.detach().max()))
        optimizer.zero_grad()
        (-found.max()).backward()
        optimizer.step()
    assert 0.99 * 3.0 <= best <= 3.0 * (1 + 1e-9)


@pytest.mark.parametrize("model", ["r2dn", "ren"])
@pytest.mark.parametrize("kind", ["contracting", "lipschitz", "dissipative"])
def test_long_memory_starts_near_the_identity_and_keeps_the_guarantee(kind, model):
    torch.manual_seed(0)
    guarantee = guarantee_of(kind, 2, 3, torch.Generator().manual_seed(0))
    options = {"guarantee": guarantee, "init": "long_memory"}
    cell = R2DN(2, 6, 3, 8, (8,), **options) if model == "r2dn" else REN(2, 6, 3, 8, **options)
    A = cell.explicit64().A
    assert float((A - torch.eye(6).double()).abs().max()) < 0.1
    assert violation(cell) <= MARGIN


@pytest.mark.parametrize("model", ["r2dn", "ren"])
@pytest.mark.parametrize("kind", ["contracting", "lipschitz", "dissipative"])
def test_timescales_start_with_fast_and_slow_states_that_noise_drives_alike(kind, model):
    torch.manual_seed(0)
    guarantee = guarantee_of(kind, 2, 3, torch.Generator().manual_seed(0))
    options = {"guarantee": guarantee, "init": "timescales", "rate": 0.9999}
    cell = R2DN(2, 6, 3, 8, (8,), **options) if model == "r2dn" else REN(2, 6, 3, 8, **options)
    arrays = cell.explicit64()
    expected = 0.9999 * (1 - torch.logspace(-0.1549, -3, 6, dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.eigvals(arrays.A).real.sort().values, expected, atol=0.02, rtol=0)
    assert float(torch.linalg.eigvals(arrays.A).abs().max().detach()) > 0.99
    assert violation(cell) <= MARGIN
    # B2 B2' / (1 - a^2) is the variance of a state under white noise: no state has far more of it than another.
    variance = arrays.B2.detach().square().sum(1) / (1 - (expected / 0.9999).square())
    assert float(variance.max() / variance.min()) < 100
