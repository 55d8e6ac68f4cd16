"""Many generators at once draw what NumPy's own draw one by one."""

import numpy as np
import pytest
import torch

from robust_policies.envs.streams import Streams, _Unsigned, normals, uniforms_for_normals
from robust_policies.errors import InvalidValueError


def test_uniform_numbers_equal_numpys_bit_for_bit():
    seeds = [0, 1, 12345, 2**32 + 7, 2**63 - 1, *range(50, 90)]
    streams = Streams(len(seeds), torch.device("cpu"))
    streams.seed(range(len(seeds)), seeds)
    generators = [np.random.default_rng(seed) for seed in seeds]
    for size in (1, 2, 5, 3, 2, 64):
        expected = np.stack([generator.random(size) for generator in generators])
        assert np.array_equal(streams.uniform(size).numpy(), expected)
    rows = torch.tensor([3, 7])
    assert np.array_equal(streams.uniform(4, rows).numpy(), np.stack([generators[i].random(4) for i in (3, 7)]))
    assert np.array_equal(streams.uniform(1).numpy(), np.stack([generator.random(1) for generator in generators]))


def test_the_arithmetic_of_a_gpu_gives_the_same_numbers():
    numpys, tensors = (Streams(40, torch.device("cpu")) for _ in range(2))
    tensors._unsigned = _Unsigned(signed=True)
    for streams in (numpys, tensors):
        streams.seed(range(40), range(100, 140))
    rows = torch.tensor([3, 7, 20])
    for size, chosen in ((1, None), (5, None), (4, rows), (64, None), (2, rows)):
        assert torch.equal(numpys.uniform(size, chosen), tensors.uniform(size, chosen))
    assert torch.equal(numpys.state, tensors.state)


def test_a_stream_hands_its_state_back_to_numpy():
    streams = Streams(3, torch.device("cpu"))
    streams.seed(range(3), [5, 6, 7])
    streams.uniform(9)
    copy, expected = np.random.PCG64(0), np.random.default_rng(6)
    expected.random(9)
    streams.store(1, copy)
    assert copy.state == expected.bit_generator.state
    with pytest.raises(InvalidValueError, match="Philox"):
        streams.load([0], [np.random.Philox(0)])


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_normal_numbers_have_the_moments_of_a_standard_normal(size):
    streams = Streams(20000, torch.device("cpu"))
    streams.seed(range(20000), range(20000))
    drawn = normals(streams.uniform(uniforms_for_normals(size)), size)
    assert drawn.shape == (20000, size)
    assert drawn.mean(0).abs().max() < 0.04
    assert (drawn.T.cov().reshape(size, size) - torch.eye(size)).abs().max() < 0.06
    assert torch.isfinite(drawn).all()
