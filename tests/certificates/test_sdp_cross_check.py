"""The same inequality, written again for a solver of semidefinite programs that knows nothing of this package."""

import importlib.util

import numpy as np
import pytest
import torch

from robust_policies.certificates.layers import chain_model, norm_product
from robust_policies.certificates.lmi import matrices
from robust_policies.certificates.multipliers import LipschitzMultiplier, SlopeMultiplier
from robust_policies.certificates.verify import running_neurons, verify, verify_arrays, verify_chain
from robust_policies.networks import R2DN, REN, Contracting, Lipschitz, make_cell

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("cvxpy", "clarabel"))), reason="the extra control is missing"
)

NAMES = ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22")


def sdp_gain(e, per_neuron, ell=1.0, inputs=None, outputs=None):
    """Return the least gain over P and the multiplier, from V+ - V <= g |u|^2 - |y|^2 - multiplier; inf if none."""
    # Imported when a test uses it: cvxpy takes two seconds, of every process that collects the tests, and pytest looks
    # at every name of a module, which loads what is only promised there.
    import cvxpy as cp

    nx, nv, nu, ny = e["A"].shape[0], e["C1"].shape[0], e["B2"].shape[1], e["C2"].shape[0]
    inputs = np.ones(nu) if inputs is None else inputs
    outputs = np.ones(ny) if outputs is None else outputs
    g = cp.Variable()
    n = nx + nv + nu
    u = np.hstack([np.zeros((nu, nx + nv)), np.diag(1 / inputs)])
    v = np.hstack([e["C1"], e["D11"], e["D12"]])
    w = np.hstack([np.zeros((nv, nx)), np.eye(nv), np.zeros((nv, nu))])
    y = np.diag(outputs) @ np.hstack([e["C2"], e["D21"], e["D22"]])
    M = g * (u.T @ u) - y.T @ y
    constraints = []
    if per_neuron:
        lam = cp.Variable(nv, nonneg=True)
        form = w.T @ cp.diag(lam) @ (v - w)
        M = M - form - form.T
    else:
        tau = cp.Variable(nonneg=True)
        M = M - tau * (ell**2 * v.T @ v - w.T @ w)
    if nx:
        P = cp.Variable((nx, nx), symmetric=True)
        x = np.hstack([np.eye(nx), np.zeros((nx, nv + nu))])
        after = np.hstack([e["A"], e["B1"], e["B2"]])
        M = M + x.T @ P @ x - after.T @ P @ after
        constraints.append(P >> 0)
    slack = cp.Variable((n, n), PSD=True)
    problem = cp.Problem(cp.Minimize(g), [*constraints, 0.5 * (M + M.T) == slack])
    problem.solve(solver=cp.CLARABEL)
    return float(np.sqrt(g.value)) if problem.status in ("optimal", "optimal_inaccurate") else np.inf


def arrays_of(cell):
    explicit = cell.explicit64()
    arrays = {name: getattr(explicit, name).detach().numpy() for name in NAMES}
    nv = arrays["C1"].shape[0]
    return arrays | {"D11": explicit.D11.detach().numpy() if hasattr(explicit, "D11") else np.zeros((nv, nv))}


def neurons_of(cell):
    """Return the arrays of a cell around its single neurons, whatever it is."""
    model = running_neurons(cell).model
    return {name: getattr(model, name) for name in (*NAMES, "D11")}


def model_of(e):
    return matrices(*(e[name] for name in NAMES), D11=e["D11"])


def make(kind, guarantee, seed, nx=3, nv=4, nu=2, ny=3):
    torch.manual_seed(seed)
    options = {"hidden_sizes": (5,)} if kind is R2DN else {}
    return kind(nu, nx, ny, features=nv, guarantee=guarantee, **options).double()


@pytest.mark.parametrize("kind", [R2DN, REN])
@pytest.mark.parametrize("guarantee", [Lipschitz(2.0), Contracting()], ids=["gain", "contracting"])
def test_the_least_proven_gain_is_the_optimum_of_the_semidefinite_program(kind, guarantee):
    for seed in range(2):
        cell = make(kind, guarantee, seed)
        optimum = sdp_gain(neurons_of(cell), per_neuron=True)
        assert optimum <= sdp_gain(arrays_of(cell), per_neuron=kind is REN) * (1 + 1e-5)
        inputs, outputs = np.array([0.3, 4.0]), np.array([2.0, 1.0, 0.5])
        for units in ((np.ones(2), np.ones(3)), (inputs, outputs)):
            reference = sdp_gain(neurons_of(cell), True, inputs=units[0], outputs=units[1])
            found = verify_chain(cell, inputs=units[0], outputs=units[1])
            assert reference * (1 - 1e-5) <= found <= reference * (1 + 1e-3)
        proven = verify(cell)
        assert proven.status == "PASS"
        assert optimum * (1 - 1e-5) <= proven.gamma <= optimum * (1 + 1e-3)


@pytest.mark.parametrize("kind", [R2DN, REN])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_a_gain_is_passed_where_the_program_says_so_and_nowhere_below(kind, seed):
    cell = make(kind, Lipschitz(3.0), seed)
    e = arrays_of(cell)
    family = LipschitzMultiplier(4) if kind is R2DN else SlopeMultiplier(4)
    optimum = sdp_gain(e, per_neuron=kind is REN)
    for hint in (cell.metric().numpy(), None):
        for factor, status in ((0.9, "NOT_CERTIFIED"), (0.998, "NOT_CERTIFIED"), (1.001, "PASS")):
            found = verify_arrays(model_of(e), rate=1.0, gamma=factor * optimum, family=family, P=hint)
            assert found.status == status, (hint is None, factor)


def test_models_without_any_guarantee_are_proven_exactly_where_the_program_is_feasible():
    statuses = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        size = 0.25 + 0.08 * seed
        shapes = {"A": (3, 3), "B1": (3, 4), "B2": (3, 2), "C1": (4, 3), "D12": (4, 2), "C2": (2, 3), "D21": (2, 4),
                  "D22": (2, 2)}  # fmt: skip
        e = {name: size * rng.standard_normal(shape) for name, shape in shapes.items()}
        e["D11"] = np.tril(size * rng.standard_normal((4, 4)), -1)
        optimum = sdp_gain(e, per_neuron=True)
        found = verify_arrays(model_of(e), rate=1.0, family=SlopeMultiplier(4))
        statuses.add(found.status)
        assert (found.status == "PASS") == (optimum < 1e6), (seed, optimum)
        if found.status == "PASS":
            assert optimum * (1 - 1e-5) <= found.gamma <= optimum * (1 + 1e-3)
    assert statuses == {"PASS", "NOT_CERTIFIED"}


def test_the_gain_of_a_perceptron_is_the_optimum_of_lipsdp():
    for seed, hidden in enumerate([(5,), (6, 4), (4, 4, 4)]):
        torch.manual_seed(seed)
        cell = make_cell("mlp", 3, 2, hidden_sizes=hidden).double()
        weights = [weight.detach().numpy() for weight in cell.explicit().weights]
        model = chain_model(weights)
        e = {name: getattr(model, name) for name in (*NAMES, "D11")}
        optimum = sdp_gain(e, per_neuron=True)
        found = verify(cell)
        assert optimum * (1 - 1e-5) <= found.gamma <= optimum * (1 + 1e-3) < norm_product(weights)
