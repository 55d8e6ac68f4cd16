import numpy as np
import pytest
import torch

from robust_policies.certificates import verify
from robust_policies.errors import InvalidValueError
from robust_policies.networks import cell_from_config, make_cell
from robust_policies.networks.activations import maxmin


def test_pairs_are_sorted_and_the_gradient_keeps_its_norm():
    x = torch.tensor([[1.0, 2.0, 5.0, -3.0]])
    assert maxmin(x).tolist() == [[2.0, 1.0, 5.0, -3.0]]
    x = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobian = torch.func.vmap(torch.func.jacrev(maxmin))(x)
    np.testing.assert_allclose(jacobian @ jacobian.mT, np.broadcast_to(np.eye(6), (7, 6, 6)))


def test_a_perceptron_takes_it_and_other_cells_do_not():
    cell = make_cell("mlp", 3, 2, hidden_sizes=(4, 6), activation="maxmin")
    outputs, state = cell(torch.randn(5, 2, 3))
    assert outputs.shape == (5, 2, 2) and state.shape == (2, 0)
    assert cell.options()["activation"] == "maxmin"
    with pytest.raises(InvalidValueError, match="multiple of 2"):
        make_cell("mlp", 3, 2, hidden_sizes=(4, 5), activation="maxmin")
    with pytest.raises(InvalidValueError, match="maxmin"):
        make_cell("mlp", 3, 2, hidden_sizes=(4,), activation="gelu")
    with pytest.raises(InvalidValueError, match="activation"):
        make_cell("r2dn", 3, 2, state_size=2, features=2, hidden_sizes=(4,), activation="maxmin")


def test_householder_reflects_each_pair_by_its_own_normal():
    torch.manual_seed(0)
    cell = make_cell("mlp", 3, 2, hidden_sizes=(4, 6), activation="householder").double()
    for angle in cell.angles:
        torch.nn.init.normal_(angle)
    u = torch.randn(1, 9, 3, dtype=torch.float64)
    h = u[0]
    for layer, angle in zip(cell.layers[:-1], cell.angles, strict=True):
        # R q = (1, -1) / sqrt 2 with R a turn by the angle.
        q = torch.stack((angle.cos() - angle.sin(), -angle.sin() - angle.cos()), 1) / 2**0.5
        v = layer(h).unflatten(1, (-1, 2))
        below = (v * q).sum(2, keepdim=True).clamp(max=0)
        assert (below < 0).any() and (below == 0).any()
        h = (v - 2 * below * q).flatten(1)
    torch.testing.assert_close(cell(u)[0][0], cell.layers[-1](h), rtol=1e-12, atol=1e-12)
    again = cell_from_config(cell.config()).double()
    again.load_state_dict(cell.state_dict())
    torch.testing.assert_close(again(u)[0], cell(u)[0], rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["maxmin", "householder"])
def test_an_lbdn_around_pairs_keeps_its_gain_and_reaches_it(activation):
    torch.manual_seed(1)
    cell = make_cell("lbdn", 3, 2, hidden_sizes=(8, 8), gamma=2.0, activation=activation).double()
    for layer in cell.network.layers[:-1]:
        if layer.angle is not None:
            torch.nn.init.normal_(layer.angle)
    optimizer, points = torch.optim.Adam(cell.parameters(), 0.05), torch.randn(16, 3, dtype=torch.float64)

    def largest(points):
        moved = points + 1e-4 * torch.nn.functional.normalize(torch.ones_like(points), dim=-1)
        return ((cell(moved[None])[0] - cell(points[None])[0]).norm(dim=-1) / 1e-4).max()

    for _ in range(60):
        optimizer.zero_grad()
        (-largest(points)).backward()
        optimizer.step()
    found = verify(cell)
    assert found.status == "PASS" and found.gamma <= 2.0 * (1 + 1e-9)
    assert 0.98 * 2.0 < float(largest(points)) <= found.gamma * (1 + 1e-9)
    wide = torch.randn(200, 3, dtype=torch.float64) * 10
    jacobians = torch.func.vmap(torch.func.jacrev(lambda u: cell.network(u)))(wide)
    assert float(torch.linalg.matrix_norm(jacobians, 2).max()) <= found.gamma * (1 + 1e-9)
    # Arrays that another hand made larger are refused.
    explicit = cell.explicit()
    larger = explicit.layers[0]._replace(B=1.1 * explicit.layers[0].B)
    assert verify(cell, explicit._replace(layers=(larger, *explicit.layers[1:]))).status == "NOT_CERTIFIED"


def test_cells_whose_guarantee_needs_slopes_entry_by_entry_refuse_pairs():
    options = {"state_size": 2, "features": 2}
    for kind in ("r2dn", "ren", "nemon", "l2ru", "lipschitz_rnn"):
        given = {"state_size": 2} if kind == "lipschitz_rnn" else options
        given = {**given, "hidden_sizes": (4,)} if kind == "r2dn" else given
        for activation in ("maxmin", "householder"):
            with pytest.raises(InvalidValueError, match="slope in"):
                make_cell(kind, 3, 2, activation=activation, **given)
    with pytest.raises(InvalidValueError, match="multiple of 2"):
        make_cell("lbdn", 3, 1, hidden_sizes=(4,), linear_output=False, activation="maxmin")
