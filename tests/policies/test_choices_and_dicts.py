"""Choices among actions and observations, and observations of several entries: encoded, trained, saved, certified."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from policy_models import randomize, short_model
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor

from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError
from robust_policies.policies import HistoryWrapper, VecHistory, load_policy, save_policy
from robust_policies.policies.observations import encode, flat_box, flat_names, flat_size, measured, read
from robust_policies.policies.sb3.deploy import deploy
from robust_policies.policies.spaces import space_from_json, space_to_json

TANKS = spaces.Dict(levels=spaces.Box(-1, 3, (2,)), setpoint=spaces.Box(-1, 3, (1,)))
MIXED = spaces.Dict(
    [
        ("z", spaces.Box(-1, 1, (2,))),
        ("a", spaces.Discrete(3)),
        ("m", spaces.MultiDiscrete([2, 3])),
        ("b", spaces.MultiBinary(2)),
    ]
)
FROM_TWO = spaces.Dict(a=spaces.Discrete(3, start=2), m=spaces.MultiDiscrete([2, 3], start=[5, -1]))
OBSERVED = [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), TANKS, MIXED]
STARTING = [spaces.Discrete(4, start=3), spaces.MultiDiscrete([2, 3], start=[5, -1]), FROM_TWO]
ACTED = [spaces.Discrete(3, start=-1), spaces.MultiDiscrete([2, 3], start=[4, 7])]
IMAGE = spaces.Box(0, 255, (8, 8, 3), np.uint8)


class Sampled(gymnasium.Env):
    """Random observations; actions that are none of the space's are refused."""

    def __init__(self, observations=TANKS, actions=None):
        self.observation_space = observations
        self.action_space = spaces.Box(-1.0, 1.0, (2,)) if actions is None else actions

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = 5
        return self.observation_space.sample(), {}

    def step(self, action):
        assert isinstance(self.action_space, spaces.Box) or self.action_space.contains(action), action
        self.left -= 1
        return self.observation_space.sample(), 1.0, False, self.left == 0, {}


def model_of(observations=TANKS, actions=None, **options):
    return short_model(env=make_vec_env(lambda: Sampled(observations, actions), 2, seed=0), n_envs=2, **options)


def batch(space, count=5):
    samples = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([one[key] for one in samples]) for key in space.spaces}
    return np.stack(samples)


def name(space):
    return type(space).__name__ + str(len(space) if isinstance(space, spaces.Dict) else "")


@pytest.mark.parametrize("space", OBSERVED, ids=name)
def test_flat_observations_are_those_of_stable_baselines3_and_of_gymnasium(space):
    given = batch(space)
    flat = encode(space, given)
    assert flat.shape == (5, flat_size(space)) and len(flat_names(space)) == flat_size(space)
    if isinstance(space, spaces.Dict):
        tensors = {key: torch.as_tensor(value) for key, value in given.items()}
        theirs = CombinedExtractor(space)(preprocess_obs(tensors, space))
    else:
        theirs = preprocess_obs(torch.as_tensor(given), space).flatten(1)
    torch.testing.assert_close(flat, theirs, rtol=0, atol=0)
    first = {key: value[0] for key, value in given.items()} if isinstance(space, spaces.Dict) else given[0]
    np.testing.assert_array_equal(flat[0], np.asarray(spaces.flatten(space, first), dtype=np.float32))
    assert all(flat_box(space).contains(row) for row in flat.numpy())


def test_the_order_is_that_of_the_keys_and_names_say_which_number_is_which():
    assert flat_names(MIXED) == [
        "z[0]", "z[1]", "a=0", "a=1", "a=2", "m[0]=0", "m[0]=1", "m[1]=0", "m[1]=1", "m[1]=2", "b[0]", "b[1]",
    ]  # fmt: skip
    assert measured(MIXED).tolist() == [True] * 2 + [False] * 10
    assert flat_names(FROM_TWO)[:3] == ["a=2", "a=3", "a=4"]


@pytest.mark.parametrize("space", [*OBSERVED, *STARTING, *ACTED], ids=str)
def test_spaces_come_back_from_json_in_their_order(space):
    again = space_from_json(space_to_json(space))
    assert again == space
    if isinstance(space, spaces.Dict):
        assert list(again.spaces) == list(space.spaces)


@pytest.mark.parametrize("space", [*OBSERVED, *STARTING], ids=str)
def test_a_policy_trains_on_it_and_acts_the_same_from_its_files(space, tmp_path):
    model = model_of(space).learn(48)
    randomize(model.policy)
    save_policy(model, tmp_path)
    policy = load_policy(tmp_path)
    given = batch(space)
    theirs, _ = model.predict(given, deterministic=True)
    np.testing.assert_allclose(policy.predict(given)[0], theirs, rtol=1e-5, atol=1e-6)
    alone = {key: value[0] for key, value in given.items()} if isinstance(space, spaces.Dict) else given[0]
    np.testing.assert_allclose(policy.predict(alone)[0], theirs[0], rtol=1e-5, atol=1e-6)
    assert policy.certificate().status == "PASS"


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_choices_that_begin_elsewhere_are_sent_so_in_training_and_deployment(space, tmp_path):
    model = model_of(actions=space).learn(48)
    randomize(model.policy, 2.0)
    save_policy(model, tmp_path)
    policy = load_policy(tmp_path)
    given = batch(TANKS, 50)
    for deterministic in (True, False):
        actions, _ = policy.predict(given, deterministic=deterministic)
        assert all(space.contains(action) for action in actions)
    np.testing.assert_array_equal(policy.predict(given)[0], model.predict(given, deterministic=True)[0])
    tensors = {key: torch.as_tensor(value) for key, value in given.items()}
    states = tuple(torch.zeros(1, 50, model.policy.lstm_hidden_state_shape[-1]) for _ in range(2))
    distribution, _ = model.policy.get_distribution(tensors, states, torch.zeros(50))
    assert (distribution.log_prob(torch.as_tensor(policy.predict(given)[0])).exp() > 0.15).all()


def test_a_single_choice_can_be_a_key():
    policy = deploy(model_of(spaces.Discrete(4), spaces.Discrete(2)))
    assert {0: "left", 1: "right"}[policy.predict(3)[0]]


@pytest.mark.parametrize(
    ("observation", "error", "words"),
    [
        ({"levels": [0.0, 0.0]}, ShapeError, "expected a mapping with levels, setpoint"),
        ([0.0, 0.0, 0.0], ShapeError, "expected a mapping"),
        ({"levels": [0.0], "setpoint": [0.0]}, ShapeError, r"Entry 'levels' has shape \(1,\)"),
        ({"levels": [[0.0, 0.0]] * 2, "setpoint": [0.0]}, ShapeError, "equally many"),
        ({"levels": [0.0, np.nan], "setpoint": [0.0]}, NonFiniteError, "levels"),
    ],
)
def test_a_wrong_observation_is_refused_with_its_entry(observation, error, words):
    with pytest.raises(error, match=words):
        read(TANKS, observation)


@pytest.mark.parametrize("value", [4, -1, 0.5])
def test_a_choice_that_is_none_is_refused(value):
    with pytest.raises(InvalidValueError, match="whole number 0 to 3"):
        read(spaces.Discrete(4), value)


@pytest.mark.parametrize(
    ("space", "options", "words"),
    [
        (TANKS, {"features_extractor_class": FlattenExtractor}, "FlattenExtractor cannot read a Dict of levels"),
        (spaces.Dict(camera=IMAGE, speed=spaces.Box(-1, 1, (1,))), {}, "'camera' of the observations is an image"),
        (IMAGE, {}, "RecurrentCellCnnPolicy"),
        (spaces.MultiDiscrete([[2, 3]]), {}, "one axis"),
    ],
)
def test_what_has_no_flat_form_is_refused_at_construction(space, options, words):
    with pytest.raises(InvalidValueError, match=words):
        model_of(space, **options)


def test_windows_hold_flat_observations():
    env = HistoryWrapper(Sampled(MIXED), window=3)
    window, _ = env.reset(seed=0)
    assert window.shape == (3, flat_size(MIXED) + 1) and env.observation_space.contains(window)
    many = VecHistory(make_vec_env(lambda: Sampled(MIXED), 2, seed=0), window=3)
    many.reset()
    for _ in range(5):
        windows, _, dones, infos = many.step(np.zeros((2, 2)))
    assert dones.all() and infos[0]["terminal_observation"].shape == window.shape
    # One-hot: of each window's newest row the three choices add up to 3.
    np.testing.assert_array_equal(windows[:, -1, 2:10].sum(-1), 3)


@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)], ids=name)
@pytest.mark.parametrize("cell", ["r2dn", "lbdn"])
def test_no_error_within_the_radius_changes_a_choice_and_the_claim_says_so(actions, cell):
    policy = deploy(randomize(model_of(spaces.Box(-1, 1, (4,)), actions, cell=cell).policy, 0.8))
    certificate = policy.certificate()
    assert "the l2 norm of the difference of the logits of the choices, summed over" in certificate.claim
    assert ("over all steps so far" in certificate.claim) == (cell == "r2dn")
    observations = torch.randn(6, 400, 4)
    radii = torch.as_tensor(policy.choice_radii(observations))
    assert radii.shape == (6, 400) and float(radii.min()) >= 0
    direction = torch.randn(6, 400, 4)
    if certificate.choices["memory"]:
        # All of the error up to the last step, just within that step's radius.
        direction = (
            direction / direction.square().sum((0, 2), keepdim=True).sqrt() * 0.999 * radii[-1].reshape(1, -1, 1)
        )
    else:
        direction = direction / direction.norm(dim=-1, keepdim=True) * 0.999 * radii.unsqueeze(-1)
    state, moved = None, None
    for clean, error in zip(observations, direction.float(), strict=True):
        choice, state = policy.predict(clean.numpy(), state=state)
        other, moved = policy.predict((clean + error).numpy(), state=moved)
        if not certificate.choices["memory"]:
            np.testing.assert_array_equal(choice, other)
    np.testing.assert_array_equal(choice, other)


def test_stable_baselines3s_own_policies_on_choices_and_dicts():
    env = make_vec_env(lambda: Sampled(TANKS, spaces.Discrete(3)), 1)
    model = PPO("MultiInputPolicy", env, n_steps=16, batch_size=16, device="cpu")
    policy, given = deploy(model), batch(TANKS)
    np.testing.assert_array_equal(policy.predict(given)[0], model.predict(given, deterministic=True)[0])
    env = make_vec_env(lambda: Sampled(TANKS, spaces.Discrete(3, start=1)), 1)
    with pytest.raises(InvalidValueError, match="do not begin at 0"):
        deploy(PPO("MultiInputPolicy", env, n_steps=16, batch_size=16, device="cpu"))


def test_an_entry_of_a_dict_far_from_zero_keeps_its_digits_in_training_and_deployment():
    space = spaces.Dict(at=spaces.Box(-1e8, 1e8, (1,), np.float64), floor=spaces.Discrete(3, start=2))
    offset = [5e6, 0.0, 0.0, 0.0]
    # Wide actions: none of them is at its limit.
    model = model_of(space, spaces.Box(-100.0, 100.0, (2,)), observation_offset=offset)
    policy = deploy(randomize(model.policy))
    given = {"at": 5e6 + np.array([[0.0], [0.05], [0.1], [0.2]]), "floor": np.full(4, 3)}
    actions, _ = policy.predict(given)
    assert len(np.unique(actions[:, 0])) == 4
    np.testing.assert_allclose(actions, model.predict(given, deterministic=True)[0], rtol=1e-5, atol=1e-6)
