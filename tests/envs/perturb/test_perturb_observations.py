"""What each perturbation of observations does, against results computed by hand."""

import gymnasium
import numpy as np
import pytest
import torch

import robust_policies.envs  # noqa: F401
from robust_policies.envs import perturb as single
from robust_policies.envs.perturb import vector
from robust_policies.errors import InvalidValueError, ShapeError

ID = "robust_policies/Pendulum-v0"
COUNT, STEPS = 256, 12


def batch(**kwargs):
    return gymnasium.make_vec(ID, num_envs=COUNT, **kwargs)


def recorded(env, seed=0, steps=STEPS):
    """Return observations (steps + 1, COUNT, 3) and infos of a fixed sequence of actions."""
    observation, info = env.reset(seed=seed)
    observations, infos = [observation], [info]
    for t in range(steps):
        action = 2.0 * torch.sin(torch.arange(COUNT) + 0.7 * t).unsqueeze(-1)
        observation, _, _, _, info = env.step(action)
        observations.append(observation)
        infos.append(info)
    return torch.stack(observations), infos


@pytest.fixture(scope="module")
def clean():
    return recorded(batch())[0]


def test_uniform_noise_fills_its_interval_in_each_dimension(clean):
    size = torch.tensor([0.1, 0.0, 2.0])
    noisy, infos = recorded(vector.ObservationNoise(batch(), size.tolist(), "uniform"))
    noise = noisy - clean
    assert (noise.abs() <= size + 1e-5).all()
    assert (noise[..., 1] == 0).all()
    # 3328 numbers: their mean is within 5 standard deviations of 0, the largest beyond 0.99 of the interval.
    for column in (0, 2):
        values = (noise[..., column] / size[column]).flatten()
        assert values.mean().abs() < 5 / np.sqrt(3 * values.numel())
        assert values.max() > 0.99 and values.min() < -0.99
    assert torch.allclose(torch.stack([i["observation_noise_size"] for i in infos]), noise.norm(dim=-1), atol=1e-5)


def test_gaussian_noise_has_its_mean_deviation_and_tails_and_is_new_every_step(clean):
    noisy, _ = recorded(vector.ObservationNoise(batch(), 0.5))
    noise = ((noisy - clean) / 0.5).flatten(0, 1).double()
    count = len(noise)
    assert noise.mean(0).abs().max() < 5 / np.sqrt(count)
    assert (noise.std(0) - 1).abs().max() < 5 / np.sqrt(2 * count)
    beyond = (noise.abs() > 1.959964).double().mean()
    assert abs(beyond - 0.05) < 5 * np.sqrt(0.05 * 0.95 / noise.numel())
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 5 / np.sqrt(count)
    over_time = (noisy - clean)[:, :, 0]
    lagged = torch.corrcoef(torch.stack((over_time[1:].flatten(), over_time[:-1].flatten())))[0, 1]
    assert abs(lagged) < 5 / np.sqrt(STEPS * COUNT)


def test_noise_on_the_sphere_has_exactly_its_norm_in_every_direction(clean):
    noisy, infos = recorded(vector.ObservationNoise(batch(dtype=torch.float64), 0.3, "sphere"))
    plain, _ = recorded(batch(dtype=torch.float64))
    noise = noisy - plain
    assert (noise.norm(dim=-1) - 0.3).abs().max() < 1e-12
    assert all((info["observation_noise_size"] - 0.3).abs().max() < 1e-12 for info in infos)
    # A direction uniform on the sphere has mean zero and covariance 1/3.
    direction = (noise / 0.3).flatten(0, 1)
    assert direction.mean(0).abs().max() < 5 / np.sqrt(3 * len(direction))
    assert (direction.T @ direction / len(direction) - torch.eye(3) / 3).abs().max() < 5 * 0.3 / np.sqrt(len(direction))


def test_linf_noise_lies_on_the_corners_of_its_box(clean):
    noisy, _ = recorded(vector.ObservationNoise(batch(), [0.5, 0.25, 1.0], "linf"))
    noise = noisy - clean
    assert (noise.abs() - torch.tensor([0.5, 0.25, 1.0])).abs().max() < 1e-5
    corners = (noise > 0).flatten(0, 1).long() @ torch.tensor([1, 2, 4])
    share = torch.bincount(corners, minlength=8) / len(corners)
    assert (share - 1 / 8).abs().max() < 5 * np.sqrt(7 / 64 / len(corners))


def test_normalized_units_are_half_the_width_of_the_space_or_the_given_scale(clean):
    noisy, _ = recorded(vector.ObservationNoise(batch(), 0.1, "linf", "normalized"))
    assert ((noisy - clean).abs() - torch.tensor([0.1, 0.1, 0.8])).abs().max() < 1e-5
    noisy, _ = recorded(vector.ObservationNoise(batch(), 0.1, "linf", "normalized", [1.0, 2.0, 3.0]))
    assert ((noisy - clean).abs() - torch.tensor([0.1, 0.2, 0.3])).abs().max() < 1e-5


def test_normalized_units_see_the_space_beneath_other_perturbations():
    inner = single.ObservationNoise(gymnasium.make(ID), 0.1)
    assert not np.isfinite(inner.observation_space.high).any()
    outer = single.ObservationBias(inner, 0.5, units="normalized")
    assert np.allclose(outer.perturbation.bias, [[0.5, 0.5, 4.0]])


def test_bias_is_added_to_every_observation(clean):
    offset = torch.tensor([0.5, -1.0, 0.0])
    biased, infos = recorded(vector.ObservationBias(batch(), offset.tolist()))
    assert torch.equal(biased, clean + offset)
    assert all(torch.allclose(info["observation_bias_size"], offset.norm()) for info in infos)


def test_random_bias_stays_for_an_episode_and_is_drawn_anew_for_the_next():
    env = vector.ObservationBias(batch(max_episode_steps=5), 0.5, "uniform")
    plain = batch(max_episode_steps=5)
    first, second = env.reset(seed=0)[0] - plain.reset(seed=0)[0], None
    assert (first.abs() <= 0.5 + 1e-6).all() and first.unique().numel() > 0.9 * first.numel()
    for t in range(1, 9):
        action = torch.zeros(COUNT, 1)
        biased, *_, info = env.step(action)
        observation, *_, plain_info = plain.step(action)
        if t == 5:
            assert torch.allclose(info["final_obs"] - plain_info["final_obs"], first, atol=2e-6)
            second = biased - observation
            assert ((second - first).abs() > 1e-4).float().mean() > 0.99
        elif t > 5:
            assert torch.allclose(biased - observation, second, atol=2e-6)
        else:
            assert torch.allclose(biased - observation, first, atol=2e-6)


def test_dropout_delivers_zeros_at_its_rate(clean):
    dropped, infos = recorded(vector.ObservationDropout(batch(), 0.3))
    lost = (dropped == 0).all(-1)
    assert torch.equal(dropped, torch.where(lost.unsqueeze(-1), 0.0, clean))
    assert abs(lost.double().mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / lost.numel())
    assert lost[0].any()
    assert torch.allclose(infos[0]["observation_dropout_size"], torch.where(lost[0], clean[0].norm(dim=-1), 0.0))


def test_holding_dropout_delivers_the_last_delivered(clean):
    held, _ = recorded(vector.ObservationDropout(batch(), 0.6, "hold"))
    assert torch.equal(held[0], clean[0])
    for t in range(1, STEPS + 1):
        repeats, passes = (held[t] == held[t - 1]).all(-1), (held[t] == clean[t]).all(-1)
        assert (repeats | passes).all()
        assert repeats.any() and passes.any()


def test_dropout_per_dimension_loses_each_by_itself(clean):
    dropped, _ = recorded(vector.ObservationDropout(batch(), 0.5, per_dimension=True))
    lost = dropped == 0
    assert torch.equal(dropped, torch.where(lost, 0.0, clean))
    patterns = lost.flatten(0, 1).long() @ torch.tensor([1, 2, 4])
    assert torch.bincount(patterns, minlength=8).min() > 0


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_dropout_never_and_always(clean, probability):
    dropped, _ = recorded(vector.ObservationDropout(batch(), probability))
    assert torch.equal(dropped, clean * (1.0 - probability))


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_delay_shows_the_observation_of_so_many_steps_before(clean, steps):
    late, infos = recorded(vector.ObservationDelay(batch(), steps))
    for t in range(STEPS + 1):
        assert torch.equal(late[t], clean[max(t - steps, 0)])
        expected = (late[t] - clean[t]).norm(dim=-1)
        assert torch.allclose(infos[t]["observation_delay_size"], expected)


def test_quantized_observations_lie_on_the_grid_at_most_half_a_step_away(clean):
    step = torch.tensor([0.25, 0.0, 0.5])
    rounded, _ = recorded(vector.ObservationQuantize(batch(), step.tolist()))
    assert torch.equal(rounded[..., 1], clean[..., 1])
    for column in (0, 2):
        multiples = rounded[..., column] / step[column]
        assert torch.equal(multiples, multiples.round())
        assert ((rounded - clean)[..., column].abs() <= step[column] / 2).all()
    assert torch.equal(
        vector.ObservationQuantize(batch(), 0.5).perturbation._rounded(torch.tensor([0.2, 0.26, -0.8])),
        torch.tensor([0.0, 0.5, -1.0]),
    )


def test_the_space_is_widened_only_where_observations_can_leave_it():
    env = gymnasium.make(ID)
    assert single.ObservationDelay(env).observation_space == env.observation_space
    assert single.ObservationNoise(env, clip=True).observation_space == env.observation_space
    widened = single.ObservationNoise(env, [0.1, 0.0, 0.0]).observation_space
    assert widened.high.tolist() == [np.inf, 1.0, 8.0] and widened.low.tolist() == [-np.inf, -1.0, -8.0]
    assert single.ObservationQuantize(env, [0.3, 0.5, 3.0]).observation_space.high.tolist() == [1.0, 1.0, 9.0]
    batched = vector.ObservationNoise(batch(), [0.1, 0.0, 0.0])
    assert batched.observation_space.shape == (COUNT, 3)
    assert batched.single_observation_space == widened


def test_clipped_noise_stays_in_the_space_and_reports_what_was_added(clean):
    noisy, infos = recorded(vector.ObservationNoise(batch(), 3.0, clip=True))
    assert (noisy.abs() <= torch.tensor([1.0, 1.0, 8.0])).all()
    assert torch.allclose(infos[3]["observation_noise_size"], (noisy - clean)[3].norm(dim=-1))
    assert ((noisy - clean).norm(dim=-1) < 1.0).any()


def test_whole_number_observations_can_be_delayed_but_not_summed():
    class Counter(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (2, 2), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return np.zeros((2, 2), np.uint8), {}

        def step(self, action):
            self.t += 1
            return np.full((2, 2), self.t, np.uint8), 0.0, False, False, {}

    env = single.ObservationDelay(Counter(), 1)
    env.reset(seed=0)
    assert [env.step(0)[0].tolist() for _ in range(3)] == [[[t, t], [t, t]] for t in range(3)]
    observation, *_, info = env.step(0)
    assert observation.dtype == np.uint8 and info["observation_delay_size"] == pytest.approx(2.0)
    with pytest.raises(InvalidValueError, match="Box of floating numbers"):
        single.ObservationNoise(Counter())


def test_sizes_and_scales_that_do_not_fit_are_refused():
    env = gymnasium.make(ID)
    with pytest.raises(ShapeError, match=r"size has 2 number\(s\); expected one, or 3"):
        single.ObservationNoise(env, [0.1, 0.2])
    with pytest.raises(ShapeError, match="scale has 2"):
        single.ObservationNoise(env, 0.1, units="normalized", scale=[1.0, 2.0])
    with pytest.raises(InvalidValueError, match=r"no finite bounds in dimension\(s\) 0"):
        single.ObservationNoise(gymnasium.make("robust_policies/Linear-v0"), 0.1, units="normalized")
    dictionary = gymnasium.spaces.Dict({"a": env.observation_space})
    transformed = gymnasium.wrappers.TransformObservation(env, lambda observation: {"a": observation}, dictionary)
    with pytest.raises(InvalidValueError, match="flatten them first"):
        single.ObservationDelay(transformed)
