"""Torch-native wrappers against Gymnasium's own on NumPy environments, and against counting by hand."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers import vector as numpy_wrappers

from robust_policies.envs import TaskEnv, TorchVectorEnv
from robust_policies.envs.perturb import vector as perturb
from robust_policies.envs.wrappers import (
    ClipAction,
    EpisodeStatistics,
    NormalizeObservation,
    NormalizeReward,
    RescaleAction,
    RunningMoments,
)
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError, UnknownNameError
from robust_policies.policies.actor import Scaling

MODES = ["SAME_STEP", "NEXT_STEP", "DISABLED"]
COUNT, LIMIT, SEED = 5, 7, 3


@pytest.fixture
def tasks(own_task):
    def with_walls(content):
        content["limits"]["state"] = [0.6, 5.0]
        content["reset"]["spread"] = [0.5, 1.0]

    def with_two_actions(content):
        content["parameters"]["B"] = [[0.005, 0.0], [0.1, -0.05]]
        content["limits"]["action"] = [2.0, 0.5]
        content["cost"]["R"] = [[0.1, 0.0], [0.0, 0.2]]

    return {
        "pendulum": "pendulum",
        "walls": own_task("linear", with_walls, "walls"),
        "two_actions": own_task("linear", with_two_actions, "two_actions"),
    }


def ours(task, mode="SAME_STEP", limit=LIMIT, **options):
    return TorchVectorEnv(task, COUNT, autoreset_mode=mode, max_episode_steps=limit, **options)


class OwnOptions(VectorWrapper):
    """SyncVectorEnv takes reset_mask out of the very options that its statistics wrapper reads afterwards."""

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed, options=None if options is None else dict(options))


def theirs(task, mode="SAME_STEP", limit=LIMIT):
    makers = [lambda: TaskEnv(task, max_episode_steps=limit)] * COUNT
    return OwnOptions(SyncVectorEnv(makers, autoreset_mode=AutoresetMode[mode]))


def numbers(steps, size=1, scale=2.0):
    return np.random.default_rng(0).uniform(-scale, scale, (steps, COUNT, size)).astype(np.float32)


def play(env, steps, partial=(), size=1):
    """Yield what a reset and `steps` steps return, with partial resets before the steps in `partial`."""
    mode, done = env.metadata["autoreset_mode"], np.zeros(COUNT, bool)
    yield "reset", None, env.reset(seed=SEED)
    for k, actions in enumerate(numbers(steps, size)):
        chosen = np.array([(i + k) % 2 == 0 for i in range(COUNT)]) if k in partial else np.zeros(COUNT, bool)
        if mode is AutoresetMode.DISABLED:
            chosen = chosen | done
        if chosen.any():
            yield "reset", chosen, env.reset(options={"reset_mask": chosen.copy()})
        result = env.step(actions)
        done = np.asarray(result[2]) | np.asarray(result[3])
        yield "step", done, result


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["pendulum", "walls"])
def test_statistics_are_those_of_gymnasium(tasks, name, mode):
    env = EpisodeStatistics(ours(tasks[name], mode), buffer_length=9)
    other = numpy_wrappers.RecordEpisodeStatistics(theirs(tasks[name], mode), buffer_length=9)
    ended = 0
    for mine, reference in zip(play(env, 40, {4, 17}), play(other, 40, {4, 17}), strict=True):
        assert mine[0] == reference[0]
        if mine[0] == "reset":
            continue
        info, expected = mine[2][-1], reference[2][-1]
        assert ("episode" in info) == ("_episode" in info) == ("episode" in expected)
        if "episode" in expected:
            ended += int(expected["_episode"].sum())
            np.testing.assert_array_equal(info["_episode"], expected["_episode"])
            np.testing.assert_array_equal(info["episode"]["l"], expected["episode"]["l"])
            np.testing.assert_allclose(info["episode"]["r"], expected["episode"]["r"], rtol=1e-5, atol=1e-5)
            seconds = info["episode"]["t"].numpy()
            assert (seconds[expected["_episode"]] > 0).all() and (seconds[~expected["_episode"]] == 0).all()
    assert env.episode_count == other.episode_count == ended > 15
    np.testing.assert_allclose(env.return_queue, other.return_queue, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(env.length_queue, other.length_queue)
    assert len(env.time_queue) == 9 and (env.time_queue > 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_an_episode_is_as_long_as_the_time_limit_however_it_is_reset(mode):
    env = EpisodeStatistics(ours("pendulum", mode))
    for _ in play(env, 30):
        pass
    assert env.length_queue.tolist() == [LIMIT] * len(env.length_queue)


def test_statistics_keep_the_latest_episodes_when_more_end_at_once():
    env = EpisodeStatistics(ours("pendulum"), buffer_length=3)
    last = [result[-1]["episode"]["r"] for _, _, result in play(env, 2 * LIMIT) if "episode" in result[-1]][-1]
    assert env.episode_count == 2 * COUNT
    assert torch.equal(env.return_queue, last[-3:])


def test_a_partial_reset_drops_what_the_episode_had_so_far():
    env = EpisodeStatistics(ours("pendulum", "DISABLED"))
    env.reset(seed=0)
    for _ in range(4):
        env.step(torch.zeros(COUNT, 1))
    env.reset(options={"reset_mask": torch.tensor([True, False, False, False, False])})
    for _ in range(LIMIT - 4):
        info = env.step(torch.zeros(COUNT, 1))[-1]
    assert info["_episode"].tolist() == [False, True, True, True, True]
    assert info["episode"]["l"].tolist() == [0, LIMIT, LIMIT, LIMIT, LIMIT]


def test_an_ended_episode_that_is_reset_by_hand_takes_the_next_step():
    env = NormalizeReward(EpisodeStatistics(ours("pendulum", "NEXT_STEP")))
    env.reset(seed=0)
    for _ in range(LIMIT):
        env.step(torch.zeros(COUNT, 1))
    before = float(env.moments.count)
    env.reset(options={"reset_mask": np.array([True, False, False, False, True])})
    env.step(torch.zeros(COUNT, 1))
    assert float(env.moments.count) == before + 2
    for _ in range(LIMIT - 1):
        info = env.step(torch.zeros(COUNT, 1))[-1]
    assert info["_episode"].tolist() == [True, False, False, False, True]
    assert info["episode"]["l"].tolist() == [LIMIT, 0, 0, 0, LIMIT]


def test_two_statistics_need_two_names():
    twice = EpisodeStatistics(EpisodeStatistics(ours("pendulum", limit=1)))
    twice.reset(seed=0)
    with pytest.raises(InvalidValueError, match="already holds 'episode'"):
        twice.step(torch.zeros(COUNT, 1))
    named = EpisodeStatistics(EpisodeStatistics(ours("pendulum", limit=1)), stats_key="outer")
    named.reset(seed=0)
    info = named.step(torch.zeros(COUNT, 1))[-1]
    assert torch.equal(info["outer"]["r"], info["episode"]["r"]) and info["_outer"].all()


@pytest.mark.parametrize("name", ["pendulum", "walls"])
def test_observations_are_normalised_as_by_gymnasium(tasks, name):
    env = NormalizeObservation(ours(tasks[name], "NEXT_STEP"))
    other = numpy_wrappers.NormalizeObservation(theirs(tasks[name], "NEXT_STEP"))
    for mine, reference in zip(play(env, 40), play(other, 40), strict=True):
        np.testing.assert_allclose(mine[2][0], reference[2][0], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(env.moments.mean, other.obs_rms.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(env.moments.variance, other.obs_rms.var, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["pendulum", "walls"])
def test_every_observation_counts_once(tasks, name, mode):
    env = NormalizeObservation(ours(tasks[name], mode))
    rows = []
    for event, mask, result in play(ours(tasks[name], mode), 40, {4, 17}):
        observation, info = result[0], result[-1]
        rows.append(observation if event == "step" or mask is None else observation[torch.as_tensor(mask)])
        if "final_obs" in info:
            rows.append(info["final_obs"][info["_final_obs"]])
    for _ in play(env, 40, {4, 17}):
        pass
    seen = torch.cat(rows).double()
    prior = 1e-4
    assert float(env.moments.count) == pytest.approx(len(seen) + prior, rel=1e-12)
    mean = seen.sum(0) / (len(seen) + prior)
    variance = (prior * (1 + mean**2) + ((seen - mean) ** 2).sum(0)) / (len(seen) + prior)
    torch.testing.assert_close(env.moments.mean, mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(env.moments.variance, variance, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_all_observations_of_a_step_are_normalised_by_the_fixed_scale_after_it(tasks, mode):
    env = NormalizeObservation(ours(tasks["walls"], mode))
    plain = ours(tasks["walls"], mode)
    for mine, raw in zip(play(env, 25, {4}), play(plain, 25, {4}), strict=True):
        offset, scale = env.fixed_scale()
        assert offset.dtype == scale.dtype == np.float64 and (scale > 0).all()
        np.testing.assert_allclose(mine[2][0], (raw[2][0].numpy() - offset) / scale, rtol=1e-5, atol=1e-5)
        assert ("final_obs" in mine[2][-1]) == ("final_obs" in raw[2][-1])
        if "final_obs" in raw[2][-1]:
            expected = (raw[2][-1]["final_obs"].numpy() - offset) / scale
            np.testing.assert_allclose(mine[2][-1]["final_obs"], expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(mine[2][-1]["_final_obs"], raw[2][-1]["_final_obs"])


@pytest.mark.parametrize("wrapper", [NormalizeObservation, NormalizeReward])
def test_frozen_statistics_stay_and_go_on_when_training_again(wrapper):
    env = wrapper(ours("pendulum"))
    for _ in play(env, 10):
        pass
    before = env.state_dict()
    env.freeze()
    assert not env.training and not env.update_running_mean
    for _ in play(env, 10):
        pass
    assert all(torch.equal(before[name], value) for name, value in env.state_dict().items())
    env.update_running_mean = True
    env.step(torch.zeros(COUNT, 1))
    assert env.training and float(env.moments.count) == float(before["count"]) + COUNT


@pytest.mark.parametrize("wrapper", [NormalizeObservation, NormalizeReward])
def test_statistics_are_saved_and_loaded(wrapper, tmp_path):
    first, second = wrapper(ours("pendulum")), wrapper(ours("pendulum"))
    for _ in play(first, 20):
        pass
    torch.save(first.state_dict(), tmp_path / "statistics.pt")
    second.load_state_dict(torch.load(tmp_path / "statistics.pt"))
    first.freeze()
    second.freeze()
    for mine, other in zip(play(first, 10), play(second, 10), strict=True):
        assert torch.equal(mine[2][0], other[2][0]) and (mine[0] == "reset" or torch.equal(mine[2][1], other[2][1]))


def test_a_state_that_does_not_fit_changes_nothing():
    env = NormalizeObservation(ours("pendulum"))
    env.reset(seed=0)
    before = env.state_dict()
    for change, error, message in (
        ({"men": before["mean"]}, UnknownNameError, "Did you mean 'mean'"),
        ({"mean": torch.zeros(2)}, ShapeError, r"shape \(2,\); expected \(3\)"),
        ({"mean": torch.tensor([0.0, float("nan"), 0.0])}, NonFiniteError, "1 NaN"),
        ({"variance": -before["variance"]}, InvalidValueError, "none below 0"),
    ):
        with pytest.raises(error, match=message):
            env.load_state_dict({**before, **change})
    with pytest.raises(InvalidValueError, match="no 'count'"):
        env.load_state_dict({name: before[name] for name in ("mean", "variance")})
    assert all(torch.equal(before[name], value) for name, value in env.state_dict().items())


def test_normalised_observations_may_be_clipped():
    env = NormalizeObservation(ours("pendulum"), clip=0.5)
    free = NormalizeObservation(ours("pendulum"))
    for mine, other in zip(play(env, 10), play(free, 10), strict=True):
        assert torch.equal(mine[2][0], other[2][0].clamp(-0.5, 0.5))
    assert env.single_observation_space == gymnasium.spaces.Box(-0.5, 0.5, (3,), np.float32)
    assert env.observation_space.shape == (COUNT, 3) and np.isinf(free.observation_space.high).all()


@pytest.mark.parametrize("name", ["pendulum", "walls"])
@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_rewards_are_normalised_as_by_gymnasium(tasks, name, discount):
    env = NormalizeReward(ours(tasks[name]), discount=discount)
    other = numpy_wrappers.NormalizeReward(theirs(tasks[name]), gamma=discount)
    for mine, reference in zip(play(env, 40), play(other, 40), strict=True):
        if mine[0] == "step":
            np.testing.assert_allclose(mine[2][1], reference[2][1], rtol=2e-5, atol=1e-6)
    assert float(env.moments.count) == pytest.approx(40 * COUNT + 1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_discounted_returns_are_those_of_the_steps_taken(tasks, mode):
    discount, returns, seen = 0.9, np.zeros(COUNT), []
    ignored = np.zeros(COUNT, bool)
    for event, mask, result in play(ours(tasks["walls"], mode), 40, {4, 17}):
        if event == "reset":
            chosen = np.ones(COUNT, bool) if mask is None else mask
            returns[chosen], ignored[chosen] = 0.0, False
            continue
        for i in range(COUNT):
            if not ignored[i]:
                returns[i] = returns[i] * discount * (not result[2][i]) + float(result[1][i])
                seen.append(returns[i])
        returns[mask] = 0.0
        ignored = mask & (mode == "NEXT_STEP")
    env = NormalizeReward(ours(tasks["walls"], mode), discount=discount)
    for _ in play(env, 40, {4, 17}):
        pass
    assert float(env.moments.count) == pytest.approx(len(seen) + 1e-4, rel=1e-12)
    np.testing.assert_allclose(env.moments.mean, np.sum(seen) / (len(seen) + 1e-4), rtol=1e-10)
    np.testing.assert_allclose(env.moments.variance, np.var(seen), rtol=1e-4)


def test_moments_of_any_split_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    rows = 1e4 + torch.randn(100, 2, generator=generator, dtype=torch.float64)
    counted = torch.rand(100, generator=generator) < 0.5
    whole, split, masked = (RunningMoments((2,), torch.device("cpu")) for _ in range(3))
    whole.update(rows[counted])
    for part in rows[counted].split([1, 7, 20, int(counted.sum()) - 28]):
        split.update(part)
    poisoned = torch.where(counted.unsqueeze(-1), rows, torch.nan)
    masked.update(poisoned[:40], counted[:40])
    masked.update(poisoned[:40], torch.zeros(40, dtype=torch.bool))
    masked.update(poisoned[40:], counted[40:])
    for other in (split, masked):
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(other.variance, whole.variance, rtol=1e-9, atol=0)


def test_rescaled_actions_are_those_of_gymnasium_in_each_dimension(tasks):
    low, high = np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.25], np.float32)
    env = RescaleAction(ours(tasks["two_actions"]), low, high)
    other = numpy_wrappers.RescaleAction(theirs(tasks["two_actions"]), low, high)
    assert env.single_action_space == other.single_action_space == gymnasium.spaces.Box(low, high)
    assert env.action_space == other.action_space
    for mine, reference in zip(play(env, 20, size=2), play(other, 20, size=2), strict=True):
        np.testing.assert_allclose(mine[2][0], reference[2][0], rtol=1e-6, atol=1e-6)
    ends = env.actions(torch.tensor([[-1.0, 0.0], [3.0, 0.25], [1.0, 0.125]]))
    torch.testing.assert_close(ends, torch.tensor([[-2.0, -0.5], [2.0, 0.5], [0.0, 0.0]]))


def test_clipped_actions_are_those_of_gymnasium_in_each_dimension(tasks):
    bounds = np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.25], np.float32)
    env = ClipAction(RescaleAction(ours(tasks["two_actions"]), *bounds))
    other = numpy_wrappers.ClipAction(numpy_wrappers.RescaleAction(theirs(tasks["two_actions"]), *bounds))
    assert np.isinf(env.single_action_space.high).all() and env.action_space.shape == (COUNT, 2)
    given = torch.tensor([[-5.0, -5.0], [5.0, 5.0], [2.0, 0.1]])
    assert env.actions(given).tolist() == [[-1.0, 0.0], [3.0, 0.25], [2.0, pytest.approx(0.1)]]
    for mine, reference in zip(play(env, 20, size=2), play(other, 20, size=2), strict=True):
        np.testing.assert_allclose(mine[2][0], reference[2][0], rtol=1e-6, atol=1e-6)


def test_default_rescaling_spans_the_action_space():
    env, plain = RescaleAction(ours("pendulum")), ours("pendulum")
    env.reset(seed=0)
    plain.reset(seed=0)
    assert env.single_action_space == gymnasium.spaces.Box(-1.0, 1.0, (1,))
    half = torch.full((COUNT, 1), 0.5)
    assert torch.equal(env.step(half)[0], plain.step(2 * half)[0])


@pytest.mark.parametrize("wrapper", [ClipAction, RescaleAction])
def test_wrong_actions_leave_everything_alone(wrapper):
    env = wrapper(EpisodeStatistics(NormalizeReward(NormalizeObservation(ours("pendulum")))))
    observation, _ = env.reset(seed=0)
    state, moments = env.base.state, env.env.env.env.state_dict()
    for actions, error, message in (
        (torch.zeros(COUNT), ShapeError, r"expected \(5, 1\)"),
        (torch.zeros(COUNT, 2), ShapeError, r"expected \(5, 1\)"),
        (np.zeros((COUNT, 1), np.int64), ShapeError, "dtype"),
        ([[0.0]] * COUNT, ShapeError, "type list"),
        (torch.full((COUNT, 1), torch.nan), NonFiniteError, "NaN"),
    ):
        with pytest.raises(error, match=message):
            env.step(actions)
    assert torch.equal(env.base.state, state)
    assert all(torch.equal(moments[name], value) for name, value in env.env.env.env.state_dict().items())
    assert env.env.episode_count == 0 and observation.shape == (COUNT, 3)


@pytest.mark.parametrize("mode", MODES)
def test_wrappers_leave_the_dynamics_alone(tasks, mode):
    plain = ours(tasks["walls"], mode)
    env = NormalizeReward(NormalizeObservation(EpisodeStatistics(ClipAction(ours(tasks["walls"], mode)))))
    for mine, raw in zip(play(env, 25, {4}), play(plain, 25, {4}), strict=True):
        if mine[0] == "step":
            assert all(torch.equal(mine[2][i], raw[2][i]) for i in (2, 3))
            assert mine[2][1].dtype == raw[2][1].dtype
        assert mine[2][0].dtype == raw[2][0].dtype
        assert torch.equal(env.unwrapped.state, plain.state)


@pytest.mark.parametrize("mode", MODES)
def test_perturbations_stand_inside_and_outside(tasks, mode):
    def frozen(env):
        env = NormalizeObservation(env)
        env.load_state_dict({"mean": torch.tensor([0.3]), "variance": torch.tensor([4.0]), "count": 10.0})
        env.freeze()
        return env

    inside = EpisodeStatistics(frozen(perturb.ObservationDelay(ours(tasks["walls"], mode), 2)))
    outside = perturb.ObservationDelay(frozen(EpisodeStatistics(ours(tasks["walls"], mode))), 2)
    assert (outside.dtype, outside.max_episode_steps) == (torch.float32, LIMIT)
    for mine, other in zip(play(inside, 25, {4}), play(outside, 25, {4}), strict=True):
        torch.testing.assert_close(mine[2][0], other[2][0], rtol=1e-6, atol=1e-6)
        for name in {"final_obs", "_episode"} & mine[2][-1].keys():
            torch.testing.assert_close(mine[2][-1][name], other[2][-1][name], rtol=1e-6, atol=1e-6)
        if "episode" in mine[2][-1]:
            assert torch.equal(mine[2][-1]["episode"]["r"], other[2][-1]["episode"]["r"])
    assert inside.episode_count > 10


def test_the_fixed_scale_is_a_policys():
    env, plain = NormalizeObservation(ours("pendulum")), ours("pendulum")
    for mine, raw in zip(play(env, 20), play(plain, 20), strict=True):
        offset, scale = env.fixed_scale()
        folded = Scaling(3, scale=scale, offset=offset)(raw[2][0])
        torch.testing.assert_close(folded, mine[2][0], rtol=1e-5, atol=1e-5)


def test_float64_stays_float64():
    env = NormalizeReward(NormalizeObservation(ours("pendulum", dtype="float64")))
    observation, _ = env.reset(seed=0)
    assert observation.dtype == torch.float64
    assert env.step(torch.zeros(COUNT, 1, dtype=torch.float64))[1].dtype == torch.float64
    assert env.single_observation_space.dtype == np.float64


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_returned_tensors_are_the_callers(mode):
    stack = lambda: EpisodeStatistics(NormalizeReward(NormalizeObservation(ours("pendulum", mode))))  # noqa: E731
    env, twin = stack(), stack()
    for mine, other in zip(play(env, 20), play(twin, 20), strict=True):
        assert torch.equal(mine[2][0], other[2][0])
        info = mine[2][-1]
        for spoiled in (mine[2][0], *(info.get("episode", {}).values()), info.get("final_obs")):
            if spoiled is not None:
                spoiled.fill_(77)
        for mask in {"_episode", "_final_obs"} & info.keys():
            info[mask].fill_(False)
    assert torch.equal(env.return_queue, twin.return_queue)
    assert torch.equal(env.length_queue, twin.length_queue) and (env.length_queue == LIMIT).all()


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_steps_in_inference_mode_mix_with_others(mode):
    stack = lambda: EpisodeStatistics(NormalizeReward(NormalizeObservation(ours("pendulum", mode))))  # noqa: E731
    env, twin = stack(), stack()
    env.reset(seed=0)
    twin.reset(seed=0)
    for k, actions in enumerate(numbers(20)):
        with torch.inference_mode(k % 3 == 0):
            mine = env.step(actions)
        assert torch.equal(mine[0], twin.step(actions)[0])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_alike(again):
    env = RescaleAction(EpisodeStatistics(NormalizeReward(NormalizeObservation(ours("pendulum", "NEXT_STEP")))))
    for _ in play(env, LIMIT):
        pass
    twin = again(env)
    assert twin.unwrapped is not env.unwrapped
    for actions in numbers(10):
        first, second = env.step(actions), twin.step(actions)
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(env.env.return_queue, twin.env.return_queue)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda env: EpisodeStatistics(env, buffer_length=0), "buffer_length is 0; expected a whole number"),
        (lambda env: NormalizeObservation(env, epsilon=0.0), "epsilon is 0.0; expected a finite number > 0"),
        (lambda env: NormalizeObservation(env, clip=-1.0), "clip is -1.0; expected a finite number > 0"),
        (lambda env: NormalizeReward(env, discount=0.0), "discount is 0.0; expected a finite number > 0 and <= 1"),
        (lambda env: NormalizeReward(env, discount=1.5), "discount is 1.5; expected a finite number > 0 and <= 1"),
        (lambda env: RescaleAction(env, 1.0, 1.0), "low is 1.0 and high is 1.0; expected low < high"),
        (lambda env: RescaleAction(env, [0.0, 0.0], 1.0), r"low is \[0.0, 0.0\]; expected a finite number, or 1 of"),
        (lambda env: RescaleAction(env, -np.inf, 1.0), "low is -inf; expected a finite number"),
        (lambda env: RescaleAction(env, "a", 1.0), "low is 'a'; expected a number"),
        (lambda env: RescaleAction(ClipAction(env)), "expected finite bounds to rescale to"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(InvalidValueError, match=message):
        build(ours("pendulum"))


@pytest.mark.parametrize(
    "wrapper", [EpisodeStatistics, NormalizeObservation, NormalizeReward, ClipAction, RescaleAction]
)
def test_only_vectorized_torch_environments_are_wrapped(wrapper):
    with pytest.raises(InvalidValueError, match="expected a TorchVectorEnv or a wrapper"):
        wrapper(TaskEnv("pendulum"))
    with pytest.raises(InvalidValueError, match="For NumPy environments use gymnasium"):
        wrapper(theirs("pendulum"))


@pytest.mark.parametrize("wrapper", [ClipAction, RescaleAction])
def test_actions_that_are_choices_are_neither_clipped_nor_rescaled(wrapper):
    with pytest.raises(InvalidValueError, match=r"Discrete\(2\); expected a Box"):
        wrapper(ours("cartpole"))


def test_the_other_wrappers_take_choices():
    env = NormalizeReward(EpisodeStatistics(NormalizeObservation(ours("cartpole", limit=50))))
    other = numpy_wrappers.NormalizeReward(numpy_wrappers.RecordEpisodeStatistics(theirs("cartpole", limit=50)))
    env.reset(seed=SEED)
    other.reset(seed=SEED)
    rng = np.random.default_rng(0)
    for _ in range(60):
        choices = rng.integers(0, 2, COUNT)
        mine, reference = env.step(choices), other.step(choices)
        np.testing.assert_allclose(mine[1], reference[1], rtol=2e-5)
        np.testing.assert_array_equal(mine[2], reference[2])
    assert env.env.episode_count == other.env.episode_count > 5
    assert env.env.length_queue.tolist() == list(other.env.length_queue)
