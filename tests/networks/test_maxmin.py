import numpy as np
import pytest
import torch

from robust_policies.errors import InvalidValueError
from robust_policies.networks import make_cell
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
