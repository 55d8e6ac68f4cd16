"""What all perturbations keep to: episodes, seeds, common random numbers, order, conformity, copies."""

import copy
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from robust_policies.envs import SB3VecEnv
from robust_policies.envs import perturb as package
from robust_policies.envs.perturb import NAMES, describe, parse, perturb, vector
from robust_policies.errors import InvalidValueError

ID = "robust_policies/Pendulum-v0"
COUNT, LIMIT = 4, 5
ONE_EACH = {
    "ObservationNoise": [{"ObservationNoise": 0.1}],
    "ObservationBias": [{"ObservationBias": {"kind": "uniform"}}],
    "ObservationDropout": [{"ObservationDropout": {"probability": 0.5, "fill": "hold"}}],
    "ObservationDelay": [{"ObservationDelay": 2}],
    "ObservationQuantize": [{"ObservationQuantize": 0.3}],
    "ActionNoise": [{"ActionNoise": 0.3}],
    "ActionDelay": [{"ActionDelay": 2}],
    "ActionDropout": [{"ActionDropout": {"probability": 0.5, "fill": "hold"}}],
    "StickyAction": [{"StickyAction": 0.5}],
    "ForceDisturbance": [{"ForceDisturbance": {"kind": "sine", "start": [0.0, 0.1]}}],
    "DynamicsShift": [{"DynamicsShift": {"parameter": "mass", "factor": [0.5, 2.0]}}],
}
LISTS = {
    **ONE_EACH,
    "all": [item for items in ONE_EACH.values() for item in items],
    "two": 2 * [{"ActionDropout": 0.5}],
}
GYMNASIUM = {name: items for name, items in ONE_EACH.items() if name not in {"ForceDisturbance", "DynamicsShift"}}


def keys_of(info):
    return {key for key in info if key.endswith(("_size", "_value")) and not key.startswith("_")}


def singles(make, items, seed):
    environments = [perturb(make(), items) for _ in range(COUNT)]
    return environments, [env.reset(seed=seed + row) for row, env in enumerate(environments)]


def agree(row, batched, info, single, single_info, tolerance=2e-6):
    assert np.allclose(np.asarray(batched[row]), single, atol=tolerance)
    assert keys_of(single_info) <= keys_of(info)
    for key in keys_of(single_info):
        assert float(info[key][row]) == pytest.approx(single_info[key], abs=tolerance), key


def follow(envs, environments, first, mode, actions):
    """Step a batch and its single environments side by side through episodes that end at different times."""
    observation, info = envs.reset(seed=10)
    for row, (single, single_info) in enumerate(first):
        agree(row, observation, info, single, single_info)
    numpy_in = isinstance(observation, np.ndarray)
    ended = np.zeros(COUNT, dtype=bool)
    ends = np.zeros(COUNT, dtype=int)
    for action in actions:
        observation, reward, terminated, truncated, info = envs.step(action if numpy_in else torch.as_tensor(action))
        done = np.asarray(terminated) | np.asarray(truncated)
        for row, env in enumerate(environments):
            if mode is AutoresetMode.NEXT_STEP and ended[row]:
                single, single_info = env.reset()
                assert not done[row]
            else:
                single, single_reward, one, other, single_info = env.step(action[row])
                assert (one or other) == done[row]
                assert float(reward[row]) == pytest.approx(single_reward, abs=1e-4)
            if done[row] and mode is AutoresetMode.SAME_STEP:
                assert np.allclose(np.asarray(info["final_obs"][row]), single, atol=2e-6)
                for key in keys_of(single_info):
                    assert float(info["final_info"][key][row]) == pytest.approx(single_info[key], abs=2e-6), key
                single, single_info = env.reset()
            agree(row, observation, info, single, single_info)
        if mode is AutoresetMode.DISABLED and done.any():
            before = np.asarray(observation)
            observation, info = envs.reset(options={"reset_mask": done})
            for row in np.nonzero(done)[0]:
                agree(row, observation, info, *environments[row].reset())
            assert np.array_equal(np.asarray(observation)[~done], before[~done])
        ended = done
        ends += done
    assert ends.min() > 0
    return observation, ends


@pytest.mark.parametrize(
    "mode",
    [mode if mode is AutoresetMode.SAME_STEP else pytest.param(mode, marks=pytest.mark.soak) for mode in AutoresetMode],
    ids=lambda mode: mode.name,
)
@pytest.mark.parametrize("name", list(LISTS))
def test_row_i_is_the_single_environment_with_its_seed(name, mode):
    envs = perturb(
        gymnasium.make_vec(ID, num_envs=COUNT, max_episode_steps=LIMIT, autoreset_mode=mode.name), LISTS[name]
    )
    environments, first = singles(lambda: gymnasium.make(ID, max_episode_steps=LIMIT), LISTS[name], 10)
    actions = np.random.default_rng(1).uniform(-2, 2, (17, COUNT, 1)).astype(np.float32)
    observation, _ = follow(envs, environments, first, mode, actions)
    assert isinstance(observation, torch.Tensor) and observation.dtype is torch.float32


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("env_id", ["robust_policies/CartPole-v0", "CartPole-v1"])
def test_row_i_is_the_single_one_where_episodes_end_at_different_times(env_id, mode):
    """A cart-pole falls at its own time in each environment."""
    items = [item for name, items in GYMNASIUM.items() for item in items if name != "ActionNoise"]
    if env_id == "CartPole-v1":
        envs = gymnasium.make_vec(env_id, COUNT, "sync", vector_kwargs={"autoreset_mode": mode})
    else:
        envs = gymnasium.make_vec(env_id, COUNT, autoreset_mode=mode)
        items += [{"ForceDisturbance": 2.0}, {"DynamicsShift": {"parameter": "masspole", "factor": [0.5, 2.0]}}]
    envs = perturb(envs, items)
    environments, first = singles(lambda: gymnasium.make(env_id), items, 10)
    actions = np.random.default_rng(2).integers(0, 2, (60, COUNT))
    _, ends = follow(envs, environments, first, mode, actions)
    assert len(set(ends.tolist())) > 1


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("name", list(GYMNASIUM))
def test_gymnasiums_own_vector_environments_are_perturbed_in_numpy(name, mode):
    def make(**kwargs):
        return gymnasium.make("Pendulum-v1", max_episode_steps=LIMIT)

    plain = gymnasium.vector.SyncVectorEnv([make] * COUNT, autoreset_mode=mode)
    environments, first = singles(make, GYMNASIUM[name], 10)
    actions = np.random.default_rng(3).uniform(-2, 2, (12, COUNT, 1)).astype(np.float32)
    observation, _ = follow(perturb(plain, GYMNASIUM[name]), environments, first, mode, actions)
    assert isinstance(observation, np.ndarray) and observation.dtype == np.float32


@pytest.mark.parametrize("env_id", [ID, "robust_policies/Linear-v0"])
@pytest.mark.parametrize("name", ["ObservationNoise", "ObservationBias", "ActionNoise", "StickyAction"])
def test_the_environments_own_random_numbers_are_the_same_with_and_without(env_id, name):
    plain = gymnasium.make_vec(env_id, num_envs=8, max_episode_steps=4)
    envs = perturb(gymnasium.make_vec(env_id, num_envs=8, max_episode_steps=4), ONE_EACH[name])
    plain.reset(seed=0)
    envs.reset(seed=0)
    action = torch.zeros(8, *plain.single_action_space.shape)
    for t in range(9):
        if name.startswith("Observation") or t in (0, 4, 8):
            assert torch.equal(envs.unwrapped.state, plain.state)
        assert torch.equal(envs.unwrapped._streams.state, plain._streams.state)
        plain.step(action)
        envs.step(action)


@pytest.mark.parametrize("name", list(LISTS))
def test_a_seed_determines_everything_and_episodes_differ(name):
    def run(seed):
        envs = perturb(gymnasium.make_vec(ID, num_envs=COUNT, max_episode_steps=LIMIT), LISTS[name])
        values = [envs.reset(seed=seed)[0]]
        for t in range(8):
            values.append(envs.step(torch.full((COUNT, 1), 0.3 * t - 1.0))[0])
        return torch.stack(values), envs

    (first, envs), (second, _), (other, _) = run(0), run(0), run(100)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(envs.reset(seed=0)[0], first[0])


def test_noise_differs_between_episodes_environments_and_perturbations_of_one_stack():
    envs = perturb(gymnasium.make_vec(ID, num_envs=COUNT), 2 * [{"ObservationNoise": 1.0}])
    sizes = []
    for _ in range(3):
        *_, info = envs.reset() if sizes else envs.reset(seed=0)
        sizes.append(torch.cat((info["observation_noise_size"], info["observation_noise_2_size"])))
    values = torch.cat(sizes)
    assert len(values.unique()) == len(values)


def test_seeds_left_out_of_a_list_continue_their_generators():
    envs = perturb(gymnasium.make_vec(ID, num_envs=3), ONE_EACH["ObservationNoise"])
    env = perturb(gymnasium.make(ID), ONE_EACH["ObservationNoise"])
    envs.reset(seed=7)
    observation, _ = envs.reset(seed=[7, None, 9])
    for row, seeds in enumerate(((7,), (8, None), (9,))):
        for seed in seeds:
            expected, _ = env.reset(seed=seed)
        assert np.allclose(observation[row], expected, atol=1e-6)


def test_the_first_listed_sits_nearest_to_the_plant():
    env = gymnasium.make(ID)
    rounded_last = perturb(env, "[{ObservationBias: 0.1}, {ObservationQuantize: 0.5}]")
    biased_last = perturb(env, "[{ObservationQuantize: 0.5}, {ObservationBias: 0.1}]")
    plain, _ = env.reset(seed=0)
    assert np.allclose(rounded_last.reset(seed=0)[0], np.round((plain + np.float32(0.1)) / 0.5) * 0.5)
    assert np.allclose(biased_last.reset(seed=0)[0], np.round(plain / 0.5) * 0.5 + 0.1)
    stacked = package.ObservationQuantize(package.ObservationBias(env, 0.1), step=0.5)
    assert np.array_equal(stacked.reset(seed=0)[0], rounded_last.reset(seed=0)[0])
    assert [type(layer).__name__ for layer in (rounded_last, rounded_last.env)] == [
        "ObservationQuantize",
        "ObservationBias",
    ]


def test_actions_pass_the_list_backwards():
    late_noise = perturb(gymnasium.make(ID), "[{ActionDelay: 1}, {ActionNoise: {size: 0.5, kind: linf}}]")
    noisy_late = perturb(gymnasium.make(ID), "[{ActionNoise: {size: 0.5, kind: linf}}, {ActionDelay: 1}]")
    late_noise.reset(seed=0)
    noisy_late.reset(seed=0)
    action = np.zeros(1, np.float32)
    for env, torque in ((late_noise, 0.0), (noisy_late, 0.5)):
        speed, angle = env.unwrapped.state[1], env.unwrapped.state[0]
        env.step(action)
        pushed = ((env.unwrapped.state[1] - speed) / 0.05 - 15.0 * np.sin(angle)) / 3.0
        assert abs(pushed) == pytest.approx(torque, abs=1e-6)


@pytest.mark.parametrize("name", list(ONE_EACH))
def test_both_environment_checkers_accept_a_perturbed_environment(name):
    env = perturb(gymnasium.make(ID).unwrapped, ONE_EACH[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=True)
        sb3_check_env(env, warn=False, skip_render_check=True)


@pytest.mark.parametrize("name", ["all", "two"])
def test_copies_go_on_alike(name):
    for make in (lambda: gymnasium.make(ID).unwrapped, lambda: gymnasium.make_vec(ID, num_envs=COUNT)):
        env = perturb(make(), LISTS[name])
        env.reset(seed=4)
        action = np.full(env.action_space.shape, 0.5, np.float32)
        for _ in range(3):
            env.step(action)
        for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
            original = copy.deepcopy(env)
            for _ in range(3):
                assert np.array_equal(original.step(action)[0], twin.step(action)[0])
            assert np.array_equal(original.reset(seed=1)[0], twin.reset(seed=1)[0])


def test_a_perturbed_environment_can_be_made_from_its_spec():
    env = perturb(gymnasium.make(ID), LISTS["all"])
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert describe([env.specification]) == describe([again.specification])
    assert np.array_equal(env.reset(seed=2)[0], again.reset(seed=2)[0])
    action = np.ones(1, np.float32)
    assert all(np.array_equal(env.step(action)[0], again.step(action)[0]) for _ in range(5))


def test_stable_baselines3_gets_perturbed_terminal_observations():
    plain = gymnasium.make_vec(ID, num_envs=COUNT, max_episode_steps=3)
    bridge = SB3VecEnv(perturb(gymnasium.make_vec(ID, num_envs=COUNT, max_episode_steps=3), "{ObservationBias: 1.0}"))
    bridge.seed(0)
    bridge.reset()
    plain.reset(seed=0)
    for _ in range(3):
        *_, infos = bridge.step(np.zeros((COUNT, 1), np.float32))
        *_, info = plain.step(torch.zeros(COUNT, 1))
    terminal = np.stack([one["terminal_observation"] for one in infos])
    assert np.allclose(terminal, info["final_obs"] + 1.0)


def test_returned_arrays_are_the_callers_to_keep():
    for make, zeros in (
        (lambda: gymnasium.make_vec(ID, num_envs=COUNT), torch.zeros(COUNT, 1)),
        (lambda: gymnasium.make(ID), np.zeros(1, np.float32)),
    ):
        for name in ("ObservationDelay", "ObservationDropout", "ObservationBias"):
            env, twin = perturb(make(), ONE_EACH[name]), perturb(make(), ONE_EACH[name])
            spoiled, _ = env.reset(seed=0)
            twin.reset(seed=0)
            for _ in range(4):
                spoiled[...] = 1e6
                spoiled, expected = env.step(zeros)[0], twin.step(zeros)[0]
                assert np.array_equal(spoiled, expected)


@pytest.mark.parametrize("name", list(ONE_EACH))
def test_steps_inside_and_outside_of_inference_mode_may_alternate(name):
    envs, twin = (perturb(gymnasium.make_vec(ID, num_envs=2, max_episode_steps=3), ONE_EACH[name]) for _ in range(2))
    action = torch.ones(2, 1)
    with torch.inference_mode():
        envs.reset(seed=0)
        envs.step(action)
    twin.reset(seed=0)
    twin.step(action)
    for t in range(6):
        with torch.inference_mode(t % 3 == 1):
            observation = envs.step(action)[0]
        assert torch.equal(observation, twin.step(action)[0])


def test_a_masked_reset_returns_the_other_observations_as_they_were_delivered():
    envs = perturb(gymnasium.make_vec(ID, num_envs=2, autoreset_mode="DISABLED"), ONE_EACH["ObservationNoise"])
    envs.reset(seed=0)
    delivered, *_ = envs.step(torch.zeros(2, 1))
    kept = delivered.clone()
    delivered.fill_(1e6)
    observation, info = envs.reset(options={"reset_mask": np.array([True, False])})
    assert torch.equal(observation[1], kept[1]) and not torch.equal(observation[0], kept[0])
    assert info["observation_noise_size"].shape == (2,)


def test_a_reset_before_the_step_that_would_have_reset_is_the_only_one():
    envs = perturb(
        gymnasium.make_vec(ID, num_envs=2, max_episode_steps=2, autoreset_mode="NEXT_STEP"), "{ObservationDelay: 1}"
    )
    envs.reset(seed=0)
    for _ in range(2):
        *_, truncated, _ = envs.step(torch.zeros(2, 1))
    assert truncated.all()
    first, _ = envs.reset()
    assert torch.equal(envs.step(torch.zeros(2, 1))[0], first)


def test_a_step_refused_because_an_episode_has_ended_draws_nothing():
    def begin():
        envs = gymnasium.make_vec(ID, num_envs=2, max_episode_steps=3, autoreset_mode="DISABLED")
        envs = perturb(envs, "{ActionNoise: 0.5}")
        envs.reset(seed=0)
        envs.step(torch.zeros(2, 1))
        envs.reset(options={"reset_mask": np.array([False, True])})
        for _ in range(2):
            *_, truncated, _ = envs.step(torch.zeros(2, 1))
        assert truncated.tolist() == [True, False]
        return envs

    envs, twin = begin(), begin()
    with pytest.raises(InvalidValueError, match="have ended"):
        envs.step(torch.zeros(2, 1))
    for one in (envs, twin):
        one.reset(options={"reset_mask": np.array([True, False])})
    assert torch.equal(envs.step(torch.zeros(2, 1))[0], twin.step(torch.zeros(2, 1))[0])


def test_perturbations_refuse_to_begin_in_the_middle():
    envs = perturb(gymnasium.make_vec(ID, num_envs=2), ONE_EACH["ObservationDelay"])
    with pytest.raises(InvalidValueError, match="before reset"):
        envs.step(torch.zeros(2, 1))
    with pytest.raises(InvalidValueError, match="before the first reset"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(InvalidValueError, match="before reset"):
        package.StickyAction(gymnasium.make(ID)).step(np.zeros(1, np.float32))
    envs.reset(seed=0)
    state = envs.unwrapped.state
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.array([True])})
    assert torch.equal(envs.unwrapped.state, state)


def test_what_is_no_environment_or_has_no_autoreset_mode_is_refused():
    with pytest.raises(InvalidValueError, match="expected a Gymnasium environment"):
        perturb("Pendulum", [])
    envs = gymnasium.make_vec(ID, num_envs=2)
    assert perturb(envs, []) is envs
    envs.metadata = {}
    with pytest.raises(InvalidValueError, match="autoreset_mode"):
        vector.ObservationDelay(envs)


def test_every_name_is_covered_here():
    assert set(ONE_EACH) == set(NAMES)
    assert all(parse(items) for items in LISTS.values())
