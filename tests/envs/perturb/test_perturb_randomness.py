"""The generators of perturbations: derived by a hash, bit for bit the same on every way in."""

import gymnasium
import numpy as np
import pytest
import torch

from robust_policies.envs.perturb import ObservationNoise
from robust_policies.envs.perturb.randomness import Randomness, derive, generator_words, salt
from robust_policies.errors import InvalidValueError

ID = "robust_policies/Pendulum-v0"
COUNT = 4


def test_hashes_are_the_same_from_our_streams_and_from_numpys_generators():
    envs = gymnasium.make_vec(ID, num_envs=COUNT)
    envs.reset(seed=3)
    rows = torch.tensor([0, 2, 3])
    words = generator_words(envs.unwrapped, rows)

    class Vector:
        np_random = envs.np_random

    assert torch.equal(words, generator_words(Vector(), rows))
    state = derive(words, salt("a", torch.device("cpu")))
    # 128 bits of hash of three states: each bit is set in about half, no two words are equal.
    assert len(state.unique()) == state.numel()
    assert not torch.equal(state, derive(words, salt("b", torch.device("cpu"))))


def test_one_bit_of_the_environments_state_changes_half_of_the_derived_bits():
    words = torch.zeros((5, 129), dtype=torch.int64)
    for bit in range(64):
        words[0, 1 + bit] = words[1, 65 + bit] = 1 << bit if bit < 63 else -(1 << 63)
    state = derive(words, salt("label", torch.device("cpu")))
    changed = state[:, 1:] ^ state[:, :1]
    bits = torch.stack([(changed >> bit) & 1 for bit in range(64)]).double()
    # 128 flips of 128 bits: the mean of 16384 fair coins, and each of 128 within five deviations.
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.numel())
    assert (bits.sum((0, 1)) - 64).abs().max() < 5 * np.sqrt(128) / 2


def test_a_perturbations_generator_draws_numpys_numbers():
    random = Randomness(3, torch.device("cpu"), "label")
    random.begin(torch.arange(3), torch.arange(15).reshape(5, 3), None)
    expected = []
    for row in range(3):
        generator = np.random.Generator(np.random.PCG64(0))
        random.streams.store(row, generator.bit_generator)
        expected.append(generator.random(4))
    assert np.array_equal(random.uniform(4), np.stack(expected))


def test_an_environment_that_draws_nothing_at_resets_still_gets_new_noise_in_each_episode():
    class Silent(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), 0.0, False, False, {}

    env = ObservationNoise(Silent())
    values = [float(env.reset(seed=0)[0][0])] + [float(env.reset()[0][0]) for _ in range(3)]
    assert len(set(values)) == 4
    assert [float(env.reset(seed=0)[0][0])] + [float(env.reset()[0][0]) for _ in range(3)] == values


def test_generators_other_than_pcg64_are_refused_before_anything_happens():
    env = ObservationNoise(gymnasium.make(ID))
    env.reset(seed=0)
    state = env.unwrapped.state
    env.unwrapped.np_random = np.random.Generator(np.random.MT19937(0))
    with pytest.raises(InvalidValueError, match=r"MT19937; expected numpy\.random\.PCG64"):
        env.reset()
    assert np.array_equal(env.unwrapped.state, state)
