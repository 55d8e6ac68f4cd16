"""One way from a name to environments, for every command and algorithm."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from robust_policies.envs.batch import make_batch, make_one, ours, plant_of, spec_of, time_limit
from robust_policies.envs.bridges.sb3 import make_sb3_vec_env
from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.errors import InvalidValueError, UnknownNameError

MODULE = """
import gymnasium
from robust_policies.envs import register_task

register_task("own/Mass-v0", {folder!r})


class Broken(gymnasium.Env):
    def __init__(self):
        raise RuntimeError("no licence\\nfound")


gymnasium.register("own/Broken-v0", entry_point=Broken)
"""


@pytest.fixture
def module(own_task, tmp_path, monkeypatch):
    """Return the name of a module that registers a task of this package and an environment that cannot be made."""
    folder = own_task("linear", lambda content: content.update(max_episode_steps=3))
    name = f"own_environments_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(folder=str(folder)))
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for env_id in ("own/Mass-v0", "own/Broken-v0"):
        gymnasium.registry.pop(env_id, None)
    sys.modules.pop(name, None)


def test_a_name_with_its_module_imports_it(module):
    name = f"{module}:own/Mass-v0"
    assert not ours("own/Mass-v0") and ours(name) and spec_of(name).id == "own/Mass-v0"
    batch = make_batch(name, 2, perturbations=["ObservationDelay"])
    assert isinstance(batch.unwrapped, TorchVectorEnv) and time_limit(batch) == 3
    assert plant_of(name).max_episode_steps == 3 and time_limit(make_one(name)) is None
    assert make_sb3_vec_env(name, 2).num_envs == 2


def test_a_tasks_folder_is_an_option_of_an_id(own_task):
    folder = own_task("linear", lambda content: content.update(max_episode_steps=7))
    kwargs = {"task": str(folder)}
    assert time_limit(make_batch("robust_policies/Linear-v0", 2, kwargs)) == 7
    assert plant_of("robust_policies/Linear-v0", kwargs).max_episode_steps == 7


def test_a_function_makes_environments_that_are_stepped_side_by_side():
    def short():
        return gymnasium.wrappers.TimeLimit(gymnasium.make("Pendulum-v1").unwrapped, 5)

    batch = make_batch(short, 3, autoreset=AutoresetMode.DISABLED)
    named = make_batch("Pendulum-v1", 3, autoreset=AutoresetMode.DISABLED)
    assert isinstance(batch, SyncVectorEnv) and time_limit(batch) == 5 and time_limit(named) == 200
    assert not ours(short) and plant_of(short) is None
    assert np.array_equal(batch.reset(seed=3)[0], named.reset(seed=3)[0])
    for one in (short, short()):
        assert np.array_equal(make_sb3_vec_env(one, 2, seed=3).reset(), named.reset(seed=3)[0][:2])


def test_what_another_package_cannot_make_is_said_to_be_theirs(module):
    name = f"{module}:own/Broken-v0"
    for make in (make_one, lambda env: make_batch(env, 2), lambda env: make_sb3_vec_env(env, 2)):
        with pytest.raises(InvalidValueError, match="its own package, not this one, raised RuntimeError: no licence"):
            make(name)
    with pytest.raises(InvalidValueError, match=r"does not take the options \{'wings': 2\}"):
        make_batch("Pendulum-v1", 2, {"wings": 2})


def test_a_name_that_leads_nowhere_is_answered_with_how_others_are_named(module):
    with pytest.raises(UnknownNameError, match=r"'Pendulm-v1'. Did you mean 'Pendulum-v1'\?.*module:id") as caught:
        make_batch("Pendulm-v1", 2)
    assert len(str(caught.value)) < 300
    with pytest.raises(UnknownNameError, match="Did you mean 'own/Mass-v0'"):
        spec_of(f"{module}:own/Mas-v0")
    with pytest.raises(UnknownNameError, match=r"the module 'nowhere', which cannot be imported \(ModuleNotFoundError"):
        spec_of("nowhere:own/Mass-v0")
    assert not ours("nowhere:own/Mass-v0")
