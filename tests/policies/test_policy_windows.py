import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from policy_models import SMALL, ShortEpisodes
from stable_baselines3.common.env_util import make_vec_env

from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.networks import CELLS
from robust_policies.policies import HistoryWrapper, VecHistory, WindowedExtractor

WINDOW = 6


def scripted(length):
    """Return an environment whose observation counts the steps since the reset."""

    class Counter(gymnasium.Env):
        observation_space = spaces.Box(0.0, 100.0, (1,), dtype=np.float32)
        action_space = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.count = 1
            return np.array([1.0], np.float32), {}

        def step(self, action):
            self.count += 1
            return np.array([self.count], np.float32), 0.0, self.count > length, False, {}

    return Counter()


def test_a_single_environment_gives_padded_windows_and_passes_the_checker():
    env = HistoryWrapper(scripted(3), window=3)
    first, _ = env.reset(seed=0)
    np.testing.assert_array_equal(first, [[0, 0], [0, 0], [1, 1]])
    second = env.step([0.0])[0]
    np.testing.assert_array_equal(second, [[0, 0], [1, 1], [2, 1]])
    np.testing.assert_array_equal(first, [[0, 0], [0, 0], [1, 1]])
    env.step([0.0])
    last, _, terminated, _, _ = env.step([0.0])
    assert terminated
    np.testing.assert_array_equal(last, [[2, 1], [3, 1], [4, 1]])
    np.testing.assert_array_equal(env.reset()[0], [[0, 0], [0, 0], [1, 1]])
    check_env(HistoryWrapper(gymnasium.make("Pendulum-v1").unwrapped, 4), skip_render_check=True)


def test_a_vectorized_environment_keeps_the_terminal_window_apart():
    env = VecHistory(make_vec_env(lambda: scripted(2), 2), window=3)
    np.testing.assert_array_equal(env.reset()[1], [[0, 0], [0, 0], [1, 1]])
    env.step(np.zeros((2, 1)))
    windows, _, dones, infos = env.step(np.zeros((2, 1)))
    assert dones.all()
    np.testing.assert_array_equal(infos[0]["terminal_observation"], [[1, 1], [2, 1], [3, 1]])
    np.testing.assert_array_equal(windows[0], [[0, 0], [0, 0], [1, 1]])
    np.testing.assert_array_equal(env.step(np.zeros((2, 1)))[0][0], [[0, 0], [1, 1], [2, 1]])


def test_single_and_vectorized_windows_agree():
    single = HistoryWrapper(ShortEpisodes(), WINDOW)
    vector = VecHistory(make_vec_env(ShortEpisodes, 1, seed=5), WINDOW)
    a, b = single.reset(seed=5)[0], vector.reset()
    for _ in range(60):
        np.testing.assert_array_equal(a, b[0])
        a, _, terminated, truncated, _ = single.step(np.zeros(2))
        b, _, dones, infos = vector.step(np.zeros((1, 2)))
        assert bool(dones[0]) == (terminated or truncated)
        if dones[0]:
            np.testing.assert_array_equal(a, infos[0]["terminal_observation"])
            a = single.reset()[0]


@pytest.mark.parametrize("cell", sorted(SMALL))
def test_the_extractor_is_the_recurrent_cell_while_the_window_reaches_back_to_the_start(cell):
    extractor = WindowedExtractor(spaces.Box(-9, 9, (WINDOW, 4)), cell, SMALL[cell], features_dim=3).double()
    torch.manual_seed(0)
    observations = torch.randn(WINDOW, 2, 3, dtype=torch.float64)
    outputs, _ = extractor.cell(observations)
    for t in range(WINDOW):
        window = torch.zeros(2, WINDOW, 4, dtype=torch.float64)
        window[:, WINDOW - 1 - t :, :3] = observations[: t + 1].swapaxes(0, 1)
        window[:, WINDOW - 1 - t :, 3] = 1.0
        torch.testing.assert_close(extractor(window), outputs[t], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cell", ["r2dn", "ren"])
def test_the_window_forgets_at_the_certified_rate(cell):
    options = {**SMALL[cell], "rate": 0.5}
    torch.manual_seed(0)
    long = WindowedExtractor(spaces.Box(-9, 9, (30, 4)), cell, options, features_dim=2).double()
    short = WindowedExtractor(spaces.Box(-9, 9, (20, 4)), cell, options, features_dim=2).double()
    short.load_state_dict(long.state_dict())
    window = torch.cat((torch.randn(5, 30, 3), torch.ones(5, 30, 1)), -1).double()
    assert float((long(window) - short(window[:, 10:])).detach().abs().max()) < 100 * 0.5**20


def test_stacked_flat_observations_are_read_oldest_first():
    flat = WindowedExtractor(spaces.Box(-9, 9, (4 * 3,)), "gru", SMALL["gru"], features_dim=2, window=4)
    stacked = torch.randn(5, 4, 3)
    outputs, _ = flat.cell(stacked.swapaxes(0, 1))
    torch.testing.assert_close(flat(stacked.flatten(1)), outputs[-1])


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_the_orthogonal_initialisation_does_not_reach_the_cell(cell):
    extractor = WindowedExtractor(spaces.Box(-9, 9, (4, 3)), cell, SMALL[cell])
    before = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}
    torch.nn.Sequential(extractor).apply(lambda module: [p.data.zero_() for p in module.parameters(recurse=False)])
    assert all(torch.equal(before[name], tensor) for name, tensor in extractor.state_dict().items())


def test_wrong_spaces_are_refused():
    with pytest.raises(ShapeError, match="HistoryWrapper"):
        WindowedExtractor(spaces.Box(-1, 1, (4,)), "gru", SMALL["gru"])
    with pytest.raises(ShapeError, match="window 3"):
        WindowedExtractor(spaces.Box(-1, 1, (4,)), "gru", SMALL["gru"], window=3)
    with pytest.raises(InvalidValueError, match="Box"):
        WindowedExtractor(spaces.Discrete(4), "gru", SMALL["gru"])
    with pytest.raises(InvalidValueError, match="Box"):
        HistoryWrapper(gymnasium.make("Blackjack-v1"))
    with pytest.raises(InvalidValueError, match="window"):
        HistoryWrapper(ShortEpisodes(), 0)
