"""Every environment through gymnasium.make_vec: both ways to vectorize, options, and specs that rebuild it."""

import pickle
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from env_cases import KIND_IDS, MODES, close, every_id, every_kind, unexpected
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from robust_policies.envs import ENV_IDS, TorchVectorEnv


@every_id
def test_the_default_is_our_own_vector_and_says_nothing(env_id):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = gymnasium.make_vec(env_id)
    assert type(env) is TorchVectorEnv and env.num_envs == 1 and not unexpected(caught)
    assert env.autoreset_mode is AutoresetMode.SAME_STEP and env.render_mode is None
    assert gymnasium.spec(env_id).vector_entry_point is not None


@every_kind
@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
def test_both_ways_give_the_same_environment(env_id, vectorization):
    env = gymnasium.make_vec(env_id, num_envs=2, vectorization_mode=vectorization)
    other = gymnasium.make_vec(env_id, num_envs=2)
    assert type(env) is (SyncVectorEnv if vectorization == "sync" else TorchVectorEnv)
    assert env.observation_space == other.observation_space and env.action_space == other.action_space
    close(env.reset(seed=0)[0], other.reset(seed=0)[0])


@pytest.mark.parametrize("ids", [KIND_IDS, pytest.param(ENV_IDS, marks=pytest.mark.soak)], ids=["kinds", "all"])
def test_gymnasiums_processes_run_the_single_environment(ids, tmp_path):
    """In a process of its own, without this one's threads, which its children would not have."""
    code = (
        "import gymnasium, numpy as np\n"
        "import robust_policies\n"
        "how = {'vectorization_mode': 'async', 'vector_kwargs': {'autoreset_mode': 'SameStep'}}\n"
        f"for env_id in {list(ids)}:\n"
        "    theirs, ours = gymnasium.make_vec(env_id, 2, **how), gymnasium.make_vec(env_id, 2)\n"
        "    assert np.allclose(theirs.reset(seed=0)[0], ours.reset(seed=0)[0], atol=1e-6), env_id\n"
        "    theirs.action_space.seed(0)\n"
        "    actions = theirs.action_space.sample()\n"
        "    assert np.allclose(theirs.step(actions)[0], ours.step(actions)[0], atol=1e-6), env_id\n"
        "    theirs.close()\n"
        "    print(env_id)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(ids)


@every_kind
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_envs": 3},
        {"num_envs": 2, "vectorization_mode": "sync"},
        {"vectorization_mode": "vector_entry_point", "max_episode_steps": 5},
        {"render_mode": "rgb_array"},
        {"vectorization_mode": "sync", "wrappers": (gymnasium.wrappers.TimeAwareObservation,), "max_episode_steps": 5},
    ],
    ids=lambda arguments: "+".join(arguments) or "none",
)
def test_specs_rebuild_the_vector(env_id, arguments):
    env = gymnasium.make_vec(env_id, **arguments)
    again = gymnasium.make_vec(env.spec)
    assert again.spec == env.spec and type(again) is type(env) and again.num_envs == env.num_envs
    assert again.observation_space == env.observation_space and again.action_space == env.action_space
    assert again.single_observation_space == env.single_observation_space
    assert again.render_mode == env.render_mode and again.metadata == env.metadata
    assert getattr(again, "max_episode_steps", None) == getattr(env, "max_episode_steps", None)
    close(env.reset(seed=3)[0], again.reset(seed=3)[0], rtol=0, atol=0)


@every_kind
@pytest.mark.parametrize("mode", [mode.value for mode in MODES])
def test_specs_survive_json_and_pickle(env_id, mode):
    env = gymnasium.make_vec(env_id, num_envs=2, autoreset_mode=mode, dtype="float64", max_episode_steps=6)
    for spec in (EnvSpec.from_json(env.spec.to_json()), pickle.loads(pickle.dumps(env.spec))):
        again = gymnasium.make_vec(spec)
        assert again.spec == env.spec and again.num_envs == 2 and again.max_episode_steps == 6
        assert again.metadata["autoreset_mode"].value == mode
        assert again.single_observation_space.dtype == np.float64
        close(env.reset(seed=3)[0], again.reset(seed=3)[0], rtol=0, atol=0)
