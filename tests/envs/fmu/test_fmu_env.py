"""An FMU is an environment: what a step's input does, states, resets, in processes, and what is refused."""

import copy
import pickle
from functools import partial

import gymnasium
import numpy as np
import pytest
from fmu_made import build
from gymnasium.utils.env_checker import check_env

from robust_policies.envs.batch import make_batch
from robust_policies.envs.fmu import FmuEnv
from robust_policies.errors import (
    CorruptFileError,
    FmuError,
    InvalidValueError,
    MissingFileError,
    NonFiniteError,
    ShapeError,
    UnknownNameError,
)

ID = "robust_policies/Fmu-v0"
H, A = 0.1, 0.5


@pytest.fixture(scope="module", params=["2", "3"])
def fmu(request, tmp_path_factory):
    """Return the test's FMU, of both versions in turn."""
    return build(tmp_path_factory.mktemp(f"fmu{request.param}"), request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Return an FMU of FMI 2."""
    return build(tmp_path_factory.mktemp("fmu"), "2")


def test_an_action_acts_in_its_own_step_and_is_seen_at_its_end(fmu):
    env = gymnasium.make(ID, fmu=fmu, dtype="float64")
    first, info = env.reset(seed=0)
    assert first.tolist() == [1.0, 0.0, 0.0] and info == {"time": 0.0}
    x = 1.0
    for t, u in enumerate((0.7, -1.5, 0.0, 2.0)):
        (seen, through, begun), reward, terminated, truncated, info = env.step(np.array([u]))
        x = x + H * (u - A * x)
        # A row of FMPy's recorder would show the input of the step before beside this state.
        assert seen == pytest.approx(x, abs=1e-15) and through == u
        assert begun == pytest.approx(t * H, abs=1e-12) and info["time"] == pytest.approx((t + 1) * H)
        assert reward == pytest.approx(-(seen**2 + through**2 + begun**2)) and not terminated and not truncated


def test_time_does_not_drift(one):
    env = FmuEnv(one, outputs=["begun"], max_episode_steps=None, dtype="float64")
    env.reset(seed=0)
    for t in range(1000):
        (begun,), *_ = env.step(np.zeros(1))
        assert begun == t * H


def test_it_is_an_environment_as_gymnasium_wants_it(fmu):
    check_env(gymnasium.make(ID, fmu=fmu, max_episode_steps=5).unwrapped, skip_render_check=True)
    env = gymnasium.make(ID, fmu=fmu, max_episode_steps=3)
    env.reset(seed=1)
    assert [env.step(np.zeros(1, np.float32))[3] for _ in range(3)] == [False, False, True]


def test_actions_are_clipped_and_costs_are_as_told(one):
    env = FmuEnv(one, outputs=["x"], cost={"outputs": [2.0], "actions": [0.1], "setpoint": [0.5]}, dtype="float64")
    env.reset(seed=0)
    (x,), reward, *_ = env.step(np.array([50.0]))
    assert x == pytest.approx(1.0 + H * (2.0 - A)) and reward == pytest.approx(-(2.0 * (x - 0.5) ** 2 + 0.1 * 4.0))
    env = FmuEnv(
        one, outputs=["x"], reward=lambda before, u, after: before[0] + 10 * u[0] + 100 * after[0], dtype="float64"
    )
    env.reset(seed=0)
    assert env.step(np.array([1.0]))[1] == pytest.approx(1.0 + 10.0 + 100 * 1.05)


def test_parameters_are_given_drawn_and_reproducible(fmu):
    env = FmuEnv(fmu, outputs=["x"], parameters={"a": 2.0}, randomize={"x": (3.0, 4.0)}, dtype="float64")
    starts = [env.reset(seed=5)[0][0], env.reset()[0][0], env.reset(seed=5)[0][0]]
    assert starts[0] == starts[2] != starts[1] and all(3 <= x <= 4 for x in starts)
    assert env.step(np.zeros(1))[0][0] == pytest.approx(starts[2] * (1 - H * 2.0))
    env.reset(seed=5, options={"parameters": {"a": 0.0, "x": 7.0}})
    assert env.step(np.zeros(1))[0][0] == 7.0


def test_a_state_is_saved_and_comes_back_with_its_step_count_and_draws(fmu):
    env = FmuEnv(fmu, randomize={"x": (0.0, 1.0)}, max_episode_steps=6, dtype="float64")
    env.reset(seed=2)
    env.step(np.array([1.0]))
    state, inputs = env.save_state(), (0.3, -2.0, 1.1)

    def rest():
        return [env.step(np.array([u])) for u in inputs], env.reset()[0]

    one, other = rest(), None
    here = env.restore_state(state)
    assert env.step(np.array([0.3]))[0].tolist() == one[0][0][0].tolist()
    assert here.tolist() == env.restore_state(state).tolist()
    other = rest()
    for a, b in zip(one[0], other[0], strict=True):
        assert a[0].tolist() == b[0].tolist() and a[1:] == b[1:]
    assert one[1].tolist() == other[1].tolist()


def test_states_that_are_not_kept_are_refused(one, tmp_path):
    silent = FmuEnv(build(tmp_path / "silent", "2", keeps=False))
    silent.reset(seed=0)
    with pytest.raises(InvalidValueError, match="canGetAndSetFMUState"):
        silent.save_state()
    forgets = FmuEnv(build(tmp_path / "forgets", "3", "FORGETS"))
    forgets.reset(seed=0)
    with pytest.raises(InvalidValueError, match="does not come back"):
        forgets.save_state()
    a, b = FmuEnv(one), FmuEnv(one)
    a.reset(seed=0), b.reset(seed=0)
    with pytest.raises(InvalidValueError, match="another instance"):
        b.restore_state(a.save_state())


def test_an_fmu_whose_reset_leaves_things_is_made_anew(tmp_path):
    env = FmuEnv(build(tmp_path, "2", "HOLDS_BACK"), outputs=["x"], dtype="float64")
    starts = []
    for _ in range(3):
        starts.append(env.reset(seed=0)[0][0])
        env.step(np.array([2.0]))
    assert starts == [1.0] * 3


def test_many_in_one_process_and_in_several_are_the_same(one):
    actions = np.linspace(-1, 1, 2, dtype=np.float32)[:, None]
    found = []
    for mode in ("sync", "async"):
        envs = gymnasium.make_vec(ID, num_envs=2, vectorization_mode=mode, fmu=one, max_episode_steps=5)
        rows = [envs.reset(seed=0)[0], *(envs.step(actions)[0] for _ in range(7))]
        envs.close()
        found.append(np.stack(rows))
    assert np.array_equal(*found) and not np.array_equal(found[0][1, 0], found[0][1, 1])
    batch = make_batch(ID, 2, {"fmu": one})
    batch.reset(seed=0)
    assert np.array_equal(batch.step(actions)[0], found[0][1])


def test_copies_and_pickles_are_environments_of_their_own(one):
    env = FmuEnv(one, outputs=["x"], parameters={"a": 1.0}, dtype="float64")
    env.reset(seed=0)
    env.step(np.array([2.0]))
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert other.reset(seed=0)[0].tolist() == [1.0]
        assert other.step(np.zeros(1))[0].tolist() == [pytest.approx(0.9)]
    assert env.step(np.zeros(1))[0][0] == pytest.approx((1.0 + H * (2.0 - 1.0)) * (1 - H))


def test_what_the_fmu_refuses_and_what_it_ends_is_told(tmp_path):
    env = FmuEnv(build(tmp_path / "ends", "2", "ENDS"))
    env.reset(seed=0)
    for _ in range(10):
        env.step(np.zeros(1))
    with pytest.raises(FmuError, match="doStep failed"):
        env.step(np.zeros(1))
    assert env.reset(seed=0)[0][0] == 1.0
    env = FmuEnv(build(tmp_path / "three", "3"), randomize={"x": (200.0, 200.0)})
    env.reset(seed=0)
    assert env.step(np.zeros(1))[2] is True


def test_arguments_that_do_not_fit_are_refused(one, tmp_path):
    (tmp_path / "no.fmu").write_bytes(b"no archive")
    for make, error, words in (
        (partial(FmuEnv, tmp_path / "absent.fmu"), MissingFileError, "no FMU at"),
        (partial(FmuEnv, tmp_path / "no.fmu"), CorruptFileError, "no FMU that can be read"),
        (partial(FmuEnv, one, inputs=["v"]), UnknownNameError, "variable"),
        (partial(FmuEnv, one, outputs=["seem"]), UnknownNameError, "Did you mean 'seen'"),
        (partial(FmuEnv, one, action_low=[0.0, 1.0]), ShapeError, "expected 1"),
        (partial(FmuEnv, one, action_low=[3.0]), InvalidValueError, "low below high"),
        (partial(FmuEnv, one, time_step=-1.0), InvalidValueError, "time_step"),
        (partial(FmuEnv, one, cost={"output": [1.0]}), UnknownNameError, "outputs"),
        (partial(FmuEnv, one, cost={"outputs": [1.0]}), ShapeError, "3 finite"),
        (partial(FmuEnv, one, parameters={"b": 1.0}), UnknownNameError, "variable"),
        (partial(FmuEnv, one, randomize={"a": (2.0, 1.0)}), InvalidValueError, "low, high"),
        (partial(FmuEnv, one, dtype="int32"), InvalidValueError, "float32"),
    ):
        with pytest.raises(error, match=words):
            make()
    env = FmuEnv(one)
    with pytest.raises(InvalidValueError, match="before reset"):
        env.step(np.zeros(1))
    env.reset(seed=0)
    with pytest.raises(ShapeError):
        env.step(np.zeros(2))
    with pytest.raises(NonFiniteError):
        env.step(np.array([np.nan]))
    with pytest.raises(UnknownNameError, match="reset option"):
        env.reset(options={"parameter": {}})
