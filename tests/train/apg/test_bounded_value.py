import pytest
import torch
from lbdn_chain import chain
from test_apg import algorithm_for

from robust_policies.certificates import verify_layers
from robust_policies.errors import InvalidValueError
from robust_policies.networks import LBDN
from robust_policies.train import load_recipe
from robust_policies.train.recipe.sections import BoundedCritic


def test_a_value_of_bounded_gain_keeps_it_while_it_is_fitted():
    critic = BoundedCritic(cell="lbdn", gamma=1.5, hidden_sizes=[8, 8])
    algorithm = algorithm_for("pendulum", num_envs=8, horizon=8, critic=critic, critic_learning_rate=0.1)
    before = [next(algorithm.value.parameters()).detach().clone()]
    for _ in range(6):
        algorithm.update(1.0)
    assert not torch.equal(before[0], next(algorithm.value.parameters()))
    for value in (algorithm.value, algorithm.target):
        network = value.network[0]
        assert isinstance(network, LBDN) and network.hidden_sizes == (8, 8)
        features = torch.randn(64, value.mean.numel(), generator=torch.Generator().manual_seed(0))
        seen = (value.scale * value.scaled(features)).detach().unsqueeze(1)
        assert (torch.cdist(seen, seen) <= value.scale * (1.5 * torch.cdist(features, features) + 1e-5)).all()
        assert verify_layers(chain(network), "relu").gamma <= 1.5 * (1 + 1e-6)


def test_it_is_asked_for_in_a_recipe():
    recipe = load_recipe("pendulum_r2dn_apg", ["algorithm.critic={cell: lbdn, gamma: 3}"])
    assert recipe.algorithm.critic == BoundedCritic(cell="lbdn", gamma=3.0)
    with pytest.raises(InvalidValueError, match=r"algorithm\.critic\.gamma is missing"):
        load_recipe("pendulum_r2dn_apg", ["algorithm.critic={cell: lbdn}"])
