"""Environments put back to where others were go on as those do, to the last bit."""

import json

import numpy as np
import pytest
import torch
from kinds import of_each_kind

from robust_policies.envs import ENV_IDS, TorchVectorEnv
from robust_policies.envs.bridges.sb3 import make_sb3_vec_env
from robust_policies.envs.snapshot import Snapshot, capture, restore
from robust_policies.envs.wrappers import EpisodeStatistics, NormalizeObservation, NormalizeReward
from robust_policies.errors import InvalidValueError

PENDULUM = "robust_policies/Pendulum-v0"
ENVS, BEFORE, AFTER = 5, 21, 24
SHORT = {"max_episode_steps": 9}


def actions(env):
    env.action_space.seed(0)
    return [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(BEFORE + AFTER)]


def as_on_disk(snapshot):
    """Return the snapshot after a way through JSON, as a checkpoint holds it."""
    values, same = json.loads(json.dumps([snapshot.values, snapshot.same]))
    return Snapshot(snapshot.tensors, values, same)


def check(task, perturbations=(), **kwargs):
    first, second = (
        make_sb3_vec_env(task, ENVS, seed, env_kwargs={**SHORT, **kwargs}, perturbations=list(perturbations))
        for seed in (1, 99)
    )
    first.reset()
    given = actions(first)
    for action in given[:BEFORE]:
        first.step(action)
    taken = as_on_disk(capture(env=first))
    restore(taken, env=second)
    for action in given[BEFORE:]:
        expected, found = first.step(action), second.step(action)
        for one, other in zip(expected[:3], found[:3], strict=True):
            assert np.array_equal(one, other)
        lengths = [[info.get("episode", {}).get("l") for info in step[3]] for step in (expected, found)]
        assert lengths[0] == lengths[1]
    one, other = capture(env=first), capture(env=second)
    assert one.same == other.same and one.tensors.keys() == other.tensors.keys()
    for name, value in one.tensors.items():
        assert torch.equal(value, other.tensors[name]), name
    first.close()
    second.close()


@pytest.mark.parametrize("task", of_each_kind(ENV_IDS))
def test_every_task_goes_on(task):
    check(task)


@pytest.mark.parametrize(
    "perturbations",
    [
        [{"ObservationNoise": 0.1}],
        [{"ObservationBias": {"size": 0.1, "kind": "uniform"}}],
        [{"ObservationDropout": {"probability": 0.3, "fill": "hold"}}],
        [{"ObservationDelay": 3}],
        [{"ObservationQuantize": 0.1}],
        [{"ActionNoise": 0.1}],
        [{"ActionDelay": 2}],
        [{"ActionDropout": {"probability": 0.3, "fill": "hold"}}],
        [{"StickyAction": 0.3}],
        [{"ForceDisturbance": {"size": 1.0, "start": [0.1, 0.4]}}],
        [{"DynamicsShift": {"parameter": "mass", "factor": [0.5, 1.5]}}],
        [{"DynamicsShift": {"parameter": "mass", "factor": 1.2}}],
        [
            {"ObservationDelay": 2},
            {"StickyAction": 0.2},
            {"DynamicsShift": {"parameter": "mass", "factor": [0.5, 1.5]}},
            {"DynamicsShift": {"parameter": "mass", "offset": 0.2}},
        ],
    ],
    ids=str,
)
def test_every_perturbation_goes_on(perturbations):
    check(PENDULUM, perturbations)


@pytest.mark.parametrize(
    ("task", "ranges"),
    [
        (PENDULUM, {"mass": [0.5, 2.0]}),
        ("robust_policies/MassSpringDamper-v0", {"mass": [0.5, 2.0]}),
        ("robust_policies/Hopper-v0", {"body_mass": [0.8, 1.2]}),
    ],
)
def test_drawn_parameters_go_on(task, ranges):
    check(task, randomize=ranges)
    check(task, [{"ObservationDelay": 1}], randomize=ranges)


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_wrappers_and_the_other_autoreset_go_on(mode):
    first, second = (
        NormalizeReward(
            NormalizeObservation(
                EpisodeStatistics(TorchVectorEnv("cartpole_continuous", ENVS, autoreset_mode=mode, max_episode_steps=9))
            )
        )
        for _ in range(2)
    )
    first.reset(seed=3)
    force = torch.linspace(-1, 1, ENVS).unsqueeze(1)
    # The last of these steps ends episodes, which NEXT_STEP resets in the one after.
    for _ in range(9):
        first.step(force)
    restore(as_on_disk(capture(env=first)), env=second)
    for _ in range(30):
        expected, found = first.step(force), second.step(force)
        for one, other in zip(expected[:4], found[:4], strict=True):
            assert torch.equal(one, other)
    assert torch.equal(first.env.env.return_queue, second.env.env.return_queue)


def test_a_snapshot_is_a_copy_and_does_not_disturb():
    env, twin = (make_sb3_vec_env(PENDULUM, ENVS, 1) for _ in range(2))
    for one in (env, twin):
        one.reset()
    given = actions(env)
    taken = capture(env=env)
    before = {name: value.clone() for name, value in taken.tensors.items()}
    for action in given[:5]:
        assert np.array_equal(env.step(action)[0], twin.step(action)[0])
    assert all(torch.equal(value, before[name]) for name, value in taken.tensors.items())
    restore(taken, env=env)
    for action in given[:5]:
        env.step(action)
    assert all(torch.equal(value, before[name]) for name, value in taken.tensors.items())
    assert torch.equal(env.inner.state, twin.inner.state)


def test_a_snapshot_of_something_else_is_refused():
    taken = capture(env=make_sb3_vec_env(PENDULUM, 3, 1))
    with pytest.raises(InvalidValueError, match=r"is of .*env with 3 environments; expected one of .*env with 4 env"):
        restore(taken, env=make_sb3_vec_env(PENDULUM, 4, 1))
    with pytest.raises(InvalidValueError, match=r"states have shape \(3, 2\); expected \(3, 4\)"):
        restore(taken, env=make_sb3_vec_env("robust_policies/CartPole-v0", 3, 1))
    with pytest.raises(InvalidValueError, match="expected one of"):
        restore(taken, env=make_sb3_vec_env(PENDULUM, 3, 1, perturbations=[{"ObservationDelay": 1}]))


def test_what_an_earlier_version_kept_elsewhere_finds_its_place():
    first, second = (TorchVectorEnv("pendulum", ENVS, seed=seed, **SHORT) for seed in (1, 99))
    first.reset()
    for _ in range(BEFORE):
        first.step(torch.zeros(ENVS, 1))
    names = {"clock/elapsed": "_elapsed", "clock/_surely_running": "_steps_surely_running",
             "clock/_limits_after": "_limits_after", "_streams/seeds": "_seeds"}  # fmt: skip

    def before(part):
        return {f"env/{names.get(path.removeprefix('env/'), path.removeprefix('env/'))}": v for path, v in part.items()}

    taken = Snapshot(*map(before, as_on_disk(capture(env=first))))
    assert {f"env/{name}" for name in names.values()} <= taken.tensors.keys() | taken.values.keys()
    restore(taken, env=second)
    assert not any(hasattr(second, name) for name in names.values())
    assert torch.equal(second.elapsed, first.elapsed) and second.np_random_seed == first.np_random_seed
    for _ in range(AFTER):
        expected, found = (env.step(torch.ones(ENVS, 1)) for env in (first, second))
        assert all(torch.equal(one, other) for one, other in zip(expected[:4], found[:4], strict=True))
