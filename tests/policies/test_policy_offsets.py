"""What is added to actions and subtracted from observations: one-sided actuators, and observations far from zero."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from policy_models import SMALL, ShortEpisodes, randomize, short_model
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.env_util import make_vec_env

from robust_policies.errors import ShapeError
from robust_policies.evaluation import run_episodes
from robust_policies.networks import R2DN, Lipschitz
from robust_policies.policies import DeployedPolicy, certify_model, load_policy, save_policy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling, mean_head
from robust_policies.train.actor import new_actor
from robust_policies.train.recipe.sections import PolicySection

PUMP = spaces.Box(np.float32([0.0, -1.0]), np.float32([5.0, 2.0]))
SHOWN = (0.0, 0.05, 0.1, 0.2)


def on(space, n_envs=1):
    return make_vec_env(lambda: ShortEpisodes(space), n_envs, seed=0)


def factor(policy, name):
    return next(factor.gain for factor in policy.certificate().factors if factor.name == name)


def test_a_one_sided_box_gives_scale_and_offset_which_are_stored_and_certified(tmp_path):
    model = short_model(env=on(PUMP, 3)).learn(72)
    head = model.policy.action_net
    assert head.scale.tolist() == [2.5, 1.5] and head.offset.tolist() == [2.5, 0.5]
    randomize(model.policy, 0.1)
    save_policy(model, tmp_path)
    ours, folded = load_policy(tmp_path), load_policy(tmp_path).actor.folded()
    assert folded.sizes.tolist() == [2.5, 1.5] and folded.centre.tolist() == [2.5, 0.5]
    observations = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    np.testing.assert_array_equal(ours.predict(observations)[0], model.predict(observations, deterministic=True)[0])
    assert factor(ours, "action scale") == 2.5
    without = short_model(env=on(PUMP, 3), action_scale=[2.5, 1.5])
    without.policy.load_state_dict({k: v for k, v in model.policy.state_dict().items() if k != "action_net.offset"})
    # An offset changes no difference of actions.
    assert without.policy.certificate().gamma_raw == ours.certificate().gamma_raw


def test_the_first_mean_action_of_a_pump_is_the_middle_of_its_range():
    model = short_model(env=on(PUMP, 3))
    np.testing.assert_array_equal(model.predict(np.ones(3, np.float32), deterministic=True)[0], [2.5, 0.5])


@pytest.mark.parametrize(
    ("space", "options", "scale", "offset"),
    [
        (spaces.Box(-2.0, 2.0, (2,)), {}, None, None),
        (PUMP, {"action_scale": 0.1}, [0.1, 0.1], None),
        (PUMP, {"action_offset": [1.0, 0.0]}, [2.5, 1.5], [1.0, 0.0]),
        (PUMP, {"action_scale": [1.0, 2.0], "action_offset": 0.5}, [1.0, 2.0], [0.5, 0.5]),
    ],
)
def test_what_is_given_and_symmetric_boxes_stay_as_they_are(space, options, scale, offset):
    head = short_model(env=on(space, 3), **options).policy.action_net
    actor = new_actor(PolicySection(state_size=4, features=5, hidden_sizes=[6], **options), 3, space, 0)
    for found in (head, actor.head):
        for value, wanted in ((found.scale, scale), (found.offset, offset)):
            assert (value is None) == (wanted is None)
            if wanted is not None:
                torch.testing.assert_close(value, torch.tensor(wanted))
    assert mean_head(spaces.Box(0.0, np.inf, (2,)), 2, False).offset is None
    with pytest.raises(ShapeError, match="action_offset"):
        short_model(action_offset=[1.0, 2.0, 3.0])


def test_weights_stored_before_offsets_were_known_act_as_they_did():
    old, new = (short_model(env=on(PUMP, 3)).policy for _ in range(2))
    old.action_net.scale = old.action_net.offset = None
    randomize(old)
    new.load_state_dict(old.state_dict())
    observations = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    np.testing.assert_array_equal(*(p.predict(observations, deterministic=True)[0] for p in (old, new)))


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_squashed_policies_of_a_one_sided_box_are_saved_and_act_as_in_sb3(algorithm, tmp_path):
    model = algorithm("MlpPolicy", on(PUMP), policy_kwargs={"net_arch": [8]}, buffer_size=10, seed=0)
    randomize(model.policy)
    save_policy(model, tmp_path)
    observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    expected = model.predict(observations, deterministic=True)[0]
    # Stable-Baselines3 unscales squashed actions in another order.
    np.testing.assert_allclose(load_policy(tmp_path).predict(observations)[0], expected, atol=2e-6)
    certified = load_policy(tmp_path).certificate().gamma_raw
    assert certified is not None and certified <= certify_model(model).gamma_raw * (1 + 1e-9)


class Far(gymnasium.Env):
    """A cart about 5e6 m away, seen in float64."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = 0.05, 0
        return np.array([5e6 + self.x]), {}

    def step(self, action):
        self.x += 0.01 * float(action[0])
        self.t += 1
        return np.array([5e6 + self.x]), -(self.x**2), False, self.t >= 10, {}


def far_policy(offset):
    torch.manual_seed(0)
    body = ScaledCell(R2DN(1, 4, 1, 6, (8,), guarantee=Lipschitz(4.0)), Scaling(1, 0.1, offset))
    return DeployedPolicy(Actor(body, MeanHead(1, 1, False)), Far.observation_space, spaces.Box(-9.0, 9.0, (1,)))


@pytest.mark.parametrize("offset", [5e6, 5e6 + 0.3])
def test_centimetres_at_five_million_metres_change_the_action_as_at_zero(offset, tmp_path):
    near, far = far_policy(0.0), far_policy(offset)
    save_policy(far, tmp_path)
    for policy in (far, load_policy(tmp_path)):
        for shift in SHOWN:
            np.testing.assert_allclose(
                policy.predict([offset + shift])[0], near.predict([shift])[0], rtol=1e-5, atol=1e-7
            )


def test_float32_observations_and_offsets_keep_every_bit():
    offset, x = 0.1, torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Scaling(3, 0.7, offset)(x), (x - torch.tensor(offset)) / torch.tensor(0.7))


def test_recurrent_ppo_reads_float64_observations_before_it_subtracts(tmp_path):
    options = {"observation_offset": [5e6], "observation_scale": [0.1], "zero_init": False}
    model = short_model(env=make_vec_env(Far, 3), **options)
    assert model.learn(72).rollout_buffer.observations.dtype == np.float64
    save_policy(model, tmp_path)
    ours = load_policy(tmp_path)
    observations = 5e6 + np.array(SHOWN)[:, None]
    acted = model.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(acted, ours.predict(observations)[0])
    assert len(np.unique(acted)) == len(SHOWN)
    batch = torch.as_tensor(observations)
    states = (torch.zeros(1, len(SHOWN), 4), torch.zeros(1, len(SHOWN), 4))
    assert len(torch.unique(model.policy.predict_values(batch, states, torch.zeros(len(SHOWN))))) == len(SHOWN)


def test_evaluation_reads_observations_in_the_precision_that_the_offset_needs():
    near, far = (
        run_episodes(far_policy(offset), lambda offset=offset: Shifted(offset), "random", [0.0], 2, 0).returns
        for offset in (0.0, 5e6)
    )
    np.testing.assert_allclose(near, far, rtol=1e-5)


class Shifted(Far):
    """The same cart from another origin."""

    def __init__(self, origin):
        self.origin = origin

    def reset(self, **options):
        observation, info = super().reset(**options)
        return observation - 5e6 + self.origin, info

    def step(self, action):
        observation, *rest = super().step(action)
        return observation - 5e6 + self.origin, *rest


def test_every_cell_takes_a_head_with_an_offset():
    for cell in SMALL:
        assert short_model(cell, env=on(PUMP, 3)).policy.action_net.offset is not None
