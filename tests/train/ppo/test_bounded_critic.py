"""A value function of bounded gain, `critic: {cell: lbdn, gamma: ...}`: the bound holds whatever is learnt."""

import numpy as np
import pytest
import torch
from lbdn_chain import chain
from sb3_contrib import RecurrentPPO
from tiny_recipe import TINY

from robust_policies.certificates import verify_layers
from robust_policies.envs import SB3VecEnv, TorchVectorEnv
from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.networks import LBDN
from robust_policies.policies import RecurrentCellPolicy
from robust_policies.train import TensorRecurrentPPO, load_recipe
from robust_policies.train.ppo.run import make_model

GAMMA = 2.0
CRITIC = {"cell": "lbdn", "gamma": GAMMA, "hidden_sizes": [12, 8], "activation": "tanh"}
SCALE = [1.0, 1.0, 8.0]


def model_of(kind, critic=CRITIC, **options):
    env = SB3VecEnv(TorchVectorEnv("pendulum", 8, max_episode_steps=20))
    env.seed(0)
    cell = {"state_size": 4, "features": 5, "hidden_sizes": (6,), "gamma": 5.0}
    policy = {"cell": "r2dn", "cell_kwargs": cell, "critic": critic, "observation_scale": SCALE} | options
    settings = {"n_steps": 20, "batch_size": 80, "n_epochs": 5, "learning_rate": 3e-2, "vf_coef": 1.0, "seed": 0}
    return kind(RecurrentCellPolicy, env, policy_kwargs=policy, device="cpu", **settings)


@pytest.mark.parametrize("kind", [RecurrentPPO, TensorRecurrentPPO])
def test_the_gain_of_the_value_holds_after_training(kind, tmp_path):
    model = model_of(kind)
    network = model.policy.value_net
    assert isinstance(network, LBDN)
    before = [one.detach().clone() for one in network.parameters()]
    model.learn(4 * 160)
    assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    model.save(tmp_path / "model.zip")
    policy = kind.load(tmp_path / "model.zip").policy
    observations = torch.randn(64, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor(SCALE)
    states, starts = (torch.zeros(1, 64, 4), torch.zeros(1, 64, 4)), torch.ones(64)
    with torch.no_grad():
        values = policy.predict_values(observations, states, starts)
        assert torch.equal(values, model.policy.predict_values(observations, states, starts))
    apart = torch.cdist(observations / torch.tensor(SCALE), observations / torch.tensor(SCALE))
    assert (torch.cdist(values, values) <= GAMMA * apart + 1e-5).all()
    found = verify_layers(chain(policy.value_net), "tanh")
    assert found.status == "PASS" and found.gamma is not None
    slopes = ((values - values.T).abs() / apart.fill_diagonal_(np.inf)).max()
    assert float(slopes) <= found.gamma + 1e-5 and found.gamma <= GAMMA * (1 + 1e-6)


def test_the_test_of_the_gain_fails_for_a_free_value():
    model = model_of(TensorRecurrentPPO, "mlp", net_arch={"vf": [12, 8]})
    model.learn(4 * 160)
    modules = [*model.policy.mlp_extractor.value_net, model.policy.value_net][::2]
    weights = [one.weight.detach().double().numpy() for one in modules]
    assert verify_layers(weights, "tanh").gamma > GAMMA


@pytest.mark.parametrize("name", ["recurrent_ppo", "tensor_ppo"])
def test_a_recipe_asks_for_it(name):
    critic = "policy.critic={cell: lbdn, gamma: 3, hidden_sizes: [5]}"
    recipe = load_recipe("pendulum_r2dn_gamma6", [*TINY, critic, f"algorithm.name={name}"])
    again = load_recipe("pendulum_r2dn_gamma6", [*TINY, f"policy.critic={recipe.resolved()['policy']['critic']}"])
    assert again.policy == recipe.policy
    value = make_model(recipe, model_of(RecurrentPPO).env).policy.value_net
    assert value.gamma == 3 and value.hidden_sizes == (5,)


@pytest.mark.parametrize(
    ("critic", "words"),
    [
        ("{cell: lbdn}", "policy.critic.gamma is missing"),
        ("{cell: lbdn, gama: 3}", "Did you mean 'policy.critic.gamma'"),
        ("{cell: gru, gamma: 3}", "expected one of lbdn"),
        ("{cell: lbdn, gamma: -1}", "policy.critic.gamma is -1; expected greater than 0"),
        ("owm", "policy.critic is 'owm'; expected one of own, shared, mlp"),
    ],
)
def test_a_wrong_one_is_refused_in_one_line(critic, words):
    with pytest.raises((InvalidValueError, UnknownNameError)) as found:
        load_recipe("pendulum_r2dn_gamma6", [f"policy.critic={critic}"])
    assert words in str(found.value) and "\n" not in str(found.value)


def test_what_has_none_refuses_it():
    with pytest.raises(InvalidValueError, match=r"policy\.critic is"):
        load_recipe("pendulum_r2dn_apg", ["policy.critic={cell: lbdn, gamma: 3}"])
    for wrong, options in ((CRITIC, {"net_arch": [4]}), ({"cell": "lbdn"}, {}), (CRITIC, {"critic_kwargs": {"a": 1}})):
        with pytest.raises(InvalidValueError):
            model_of(RecurrentPPO, wrong, **options)
    with pytest.raises(UnknownNameError, match="gamma"):
        model_of(RecurrentPPO, CRITIC | {"gama": 1.0})
