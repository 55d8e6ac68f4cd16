"""The convex recurrent network: convexity, its exact gain, and the published constraint, which bounds one step only."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robust_policies.certificates import matrices, verify
from robust_policies.certificates.positive import gain, positive_system
from robust_policies.certificates.verify import running_rows
from robust_policies.control.norms import StateSpace, hinf_norm
from robust_policies.errors import UserError
from robust_policies.networks import ConvexCell, Lipschitz, make_cell

REFERENCE = Path(__file__).parent / "reference_cells" / "convex_rnn_own.npz"


def random_cell(seed, scale=1.0, gamma=2.0, **options):
    torch.manual_seed(seed)
    cell = ConvexCell(2, 6, 3, guarantee=Lipschitz(gamma), rate=0.95, **options).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return cell


def test_the_prototypes_run_and_gain_are_reproduced():
    data = np.load(REFERENCE)
    W, U, V, D, b = (data[name] for name in ("W", "U", "V", "D", "b"))
    n, nu, ny, none = len(W), U.shape[1], len(V), np.zeros
    cell = ConvexCell(nu, n, ny).double()
    arrays = (none((n, n)), np.eye(n), none((n, nu)), W, none((ny, n)), none((n, n)), U, V, D, none(n), b, none(ny))
    explicit = type(cell.explicit())(*(torch.tensor(array) for array in arrays))
    found, _ = cell.run(explicit, torch.tensor(data["x"]).unsqueeze(1), cell.initial_state(1), None)
    np.testing.assert_allclose(found[:, 0].numpy(), data["y"], rtol=0, atol=1e-12 * np.abs(data["y"]).max())
    model = matrices(none((n, n)), np.eye(n), none((n, nu)), W, U, none((ny, n)), V, D)
    assert gain(positive_system(model)) == pytest.approx(float(data["gain"]), rel=1e-6)
    assert gain(positive_system(model)) >= float(data["gain"]) * (1 - 1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("activation", ["relu", "softplus", "elu"])
def test_every_output_is_convex_in_all_inputs_and_the_first_state(scale, activation):
    for seed in range(5):
        cell = random_cell(seed, scale, activation=activation)
        one, two = torch.randn(2, 15, 40, 2, dtype=torch.float64) * 3
        x, z = torch.randn(2, 40, 6, dtype=torch.float64)
        with torch.no_grad():
            middle = cell(0.5 * (one + two), 0.5 * (x + z))[0]
            chord = 0.5 * (cell(one, x)[0] + cell(two, z)[0])
        assert float((middle - chord).max()) <= 1e-12 * max(1.0, float(chord.abs().max()))


def largest_gain(run, steps, inputs, seed=0):
    """Return the largest l2 gain over `steps` steps among constant and random differences of inputs."""
    generator = torch.Generator().manual_seed(seed)
    base = 5 + 0.1 * torch.randn(steps, 60, inputs, generator=generator, dtype=torch.float64)
    delta = torch.rand(1, 60, inputs, generator=generator, dtype=torch.float64).expand(steps, -1, -1).clone()
    delta[:, 30:] += torch.randn(steps, 30, inputs, generator=generator, dtype=torch.float64)
    change = run(base + 1e-2 * delta) - run(base)
    return float((change.square().sum((0, 2)) / (1e-2 * delta).square().sum((0, 2))).sqrt().max())


@pytest.mark.parametrize("positive", [True, False])
def test_the_gain_is_proven_and_never_exceeded(positive):
    for seed in range(4):
        cell = random_cell(seed, positive=positive)
        found = verify(cell)
        assert found.status == "PASS" and found.gamma <= 2.0 * (1 + 1e-3) and found.rate <= 0.95 * (1 + 1e-6)
        with torch.no_grad():
            assert largest_gain(lambda u, cell=cell: cell(u)[0], 50, 2) <= found.gamma * (1 + 1e-9)


def test_with_positive_arrays_the_gain_is_that_of_the_linear_system_and_constants_attain_it():
    cell = random_cell(1, positive=True)
    model = running_rows(cell).model
    # All units on: x+ = W x + U u and the output reads the new state.
    on = StateSpace(model.C1, model.D12, model.D21 @ model.C1, model.D21 @ model.D12 + model.D22)
    bound = gain(running_rows(cell).system)
    assert bound == pytest.approx(hinf_norm(on), rel=1e-6) and bound >= hinf_norm(on) * (1 - 1e-9)
    cell.bv.data.fill_(50.0)
    whole = on.C @ np.linalg.solve(np.eye(6) - on.A, on.B) + on.D
    direction = torch.tensor(np.abs(np.linalg.svd(whole)[2][0]))
    with torch.no_grad():
        base = torch.zeros(1500, 1, 2, dtype=torch.float64)
        change = cell(base + direction)[0] - cell(base)[0]
    assert float((change.square().sum() / 1500).sqrt()) >= 0.98 * bound


def published(norm):
    """Return two relu layers and an output whose arrays are >= 0 and of this spectral norm."""
    random = np.random.default_rng(0)

    def clipped(rows, columns):
        matrix = random.random((rows, columns))
        return torch.tensor(matrix / np.linalg.norm(matrix, 2) * norm)

    W, U, V = [clipped(16, 16), clipped(16, 16)], [clipped(16, 2), clipped(16, 16)], clipped(2, 16)

    def run(inputs):
        h, outputs = [torch.full((inputs.shape[1], 16), 5.0, dtype=torch.float64) for _ in W], []
        for z in inputs:
            for k in range(2):
                h[k] = z = torch.relu(h[k] @ W[k].T + z @ U[k].T + 5)
            outputs.append(torch.relu(z @ V.T + 5))
        return torch.stack(outputs)

    return run, W[0], U[0], V


def test_the_published_constraint_fails_the_test_that_ours_passes():
    run, W, U, V = published(1.0)
    for matrix in (W, U, V):
        assert float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(1.0)
    gains = [largest_gain(run, steps, 2) for steps in (1, 5, 50)]
    assert gains[0] <= 1 + 1e-9
    assert 2 < gains[1] < gains[2] and gains[2] > 100
    none, n = np.zeros, 16
    model = matrices(none((n, n)), np.eye(n), none((n, 2)), W.numpy(), U.numpy(), none((2, n)), V.numpy(), none((2, 2)))
    assert gain(positive_system(model)) > 10
    cell = random_cell(0, gamma=1.0, positive=True)
    cell.bv.data.fill_(5.0)
    with torch.no_grad():
        assert 0.1 < largest_gain(lambda u: cell(u)[0], 50, 2) <= 1 + 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "tanh"},
        {"rate": 1.0},
        {"gamma": 0.0},
        {"positive": "yes"},
        {"guarantee": {"type": "peak_lipschitz", "gamma": 1.0}},
        {"features": 3},
    ],
)
def test_wrong_options_are_refused_in_one_line(options):
    with pytest.raises(UserError) as error:
        make_cell("convex", 3, 2, **{"state_size": 4, **options})
    assert "\n" not in str(error.value)
