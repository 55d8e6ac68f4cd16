"""The Lipschitz RNN: its discrete map, and proofs of it that are looked for afterwards and refused where none holds."""

import pytest
import torch

from robust_policies.certificates import empirical_gain, verify
from robust_policies.errors import UserError
from robust_policies.networks import LipschitzRNN, make_cell
from robust_policies.networks.lipschitz_rnn import published_growth, published_margin


def cell(seed=0, **options):
    torch.manual_seed(seed)
    return LipschitzRNN(2, 4, 1, **options).double()


@pytest.mark.parametrize("method", ["euler", "rk2"])
def test_the_arrays_are_the_integration_of_the_equation(method):
    made, (u, x) = cell(method=method, step_size=0.3), torch.randn(2, 5, 4, dtype=torch.float64)
    u = u[:, :2]
    with torch.no_grad():
        made.b.normal_()
        A, W = made.flow()

        def slope(h):
            return h @ A.T + torch.tanh(h @ W.T + u @ made.U.T + made.b)

        middle = x + 0.15 * slope(x) if method == "rk2" else x
        output, following = made.step(made.explicit(), u, x)
    torch.testing.assert_close(following, x + 0.3 * slope(middle), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output, x @ made.C.T + made.by, rtol=1e-12, atol=1e-12)


def test_the_linear_part_is_symmetric_and_skew_by_shares():
    made = cell(beta_A=1.0, shift_A=0.2, beta_W=0.0)
    A, W = (matrix.detach() for matrix in made.flow())
    torch.testing.assert_close(A + A.T, -0.4 * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(W, W.T)


@pytest.mark.parametrize("method", ["euler", "rk2"])
def test_what_contracts_is_proven_and_no_search_exceeds_it(method):
    made = cell(method=method, shift_A=3.0)
    with torch.no_grad():
        made.MA.mul_(0.3)
        made.MW.mul_(0.3)
    assert published_margin(*made.flow()) > 0
    found = verify(made)
    assert found.status == "PASS" and found.rate < 1 and found.gamma is not None
    assert empirical_gain(made, 20, batch=4, adam_iterations=8).gain <= found.gamma


def test_a_flow_that_contracts_may_have_a_discrete_map_that_does_not():
    made = cell(shift_A=30.0, step_size=0.2)
    assert published_margin(*made.flow()) > 0
    found = verify(made)
    assert found.status == "NOT_CERTIFIED" and found.reason
    assert verify(cell(shift_A=0.0, beta_A=0.5)).status == "NOT_CERTIFIED"


@pytest.mark.parametrize("method", ["euler", "rk2"])
def test_the_published_constant_of_a_horizon_holds_and_ours_is_below_it_where_there_is_one(method):
    for shift, scale in ((3.0, 0.3), (0.0, 2.0)):
        made = cell(method=method, shift_A=shift, beta_A=0.5)
        with torch.no_grad():
            made.MA.mul_(scale)
            made.MW.mul_(scale)
            inputs = torch.randn(60, 1, 2, dtype=torch.float64).expand(-1, 200, -1)
            one, two = torch.randn(2, 200, 4, dtype=torch.float64)
            apart = (made.trajectory(inputs, one)[1] - made.trajectory(inputs, two)[1]).norm(dim=-1)
        found = (apart / (one - two).norm(dim=-1)).amax(1)
        bounds = [published_growth(*made.flow(), made.step_size * (t + 1)) for t in range(60)]
        assert all(ratio <= bound for ratio, bound in zip(found.tolist(), bounds, strict=True))
        proven = verify(made)
        assert (proven.status == "PASS") == (shift > 0)
        if shift:
            assert float(found[-1]) <= proven.overshoot * proven.rate**60 < 1 < 1000 < bounds[-1]
        else:
            # Over one step it is no empty bound.
            assert float(found[0]) > 0.6 * bounds[0]
    assert published_growth(*made.flow(), 1e6) == float("inf")


@pytest.mark.parametrize(
    "options", [{"method": "rk4"}, {"step_size": 0.0}, {"beta_A": 1.5}, {"shift_W": -1.0}, {"gamma": 2.0}]
)
def test_wrong_options_are_refused_in_one_line(options):
    with pytest.raises(UserError) as error:
        make_cell("lipschitz_rnn", 3, 2, **{"state_size": 4, **options})
    assert "\n" not in str(error.value)
