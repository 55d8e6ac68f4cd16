"""The ids exist for whoever imports Gymnasium only, and importing stays light."""

import subprocess
import sys

import pytest


def run(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("name", ["Pendulum", "Linear"])
def test_make_and_make_vec_without_importing_the_package(name, tmp_path):
    code = (
        f"import gymnasium, sys\n"
        f"print('torch' in sys.modules)\n"
        f"env = gymnasium.make('robust_policies/{name}-v0')\n"
        f"print(type(env.reset(seed=0)[0]).__name__)\n"
        f"envs = gymnasium.make_vec('robust_policies/{name}-v0', num_envs=3, device='cpu', dtype='float64')\n"
        f"print(type(envs.reset(seed=0)[0]).__name__, envs.reset()[0].dtype)"
    )
    assert run(code, tmp_path) == ["False", "ndarray", "Tensor", "torch.float64"]


def test_every_id_is_there_for_whoever_imports_gymnasium_only(tmp_path):
    code = (
        "import gymnasium\n"
        "ids = [name for name in gymnasium.registry if name.startswith('robust_policies/')]\n"
        "for name in ids:\n"
        "    gymnasium.make(name).reset(seed=0), gymnasium.make_vec(name, num_envs=2).reset(seed=0)\n"
        "    print(name)"
    )
    from robust_policies.envs import ENV_IDS

    assert run(code, tmp_path) == list(ENV_IDS)


def test_the_order_of_imports_does_not_matter(tmp_path):
    code = (
        "import robust_policies.envs, gymnasium, sys\n"
        "print('robust_policies/Linear-v0' in gymnasium.registry, 'torch' in sys.modules)"
    )
    assert run(code, tmp_path) == ["True", "False"]
    code = "from gymnasium.envs.registration import registry; print('robust_policies/Linear-v0' in registry)"
    assert run(code, tmp_path) == ["True"]


def test_registering_twice_changes_nothing(recwarn):
    import gymnasium

    from robust_policies.envs import ENV_IDS, register_tasks

    before = {name: gymnasium.registry[name] for name in ENV_IDS}
    register_tasks()
    assert all(gymnasium.registry[name] is spec for name, spec in before.items())
    assert not recwarn
