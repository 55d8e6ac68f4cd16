"""The ids exist for whoever imports Gymnasium only, and importing stays light."""

import subprocess
import sys


def run(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_id_is_there_for_whoever_imports_gymnasium_only(tmp_path):
    code = (
        "import gymnasium, sys\n"
        "print('torch' in sys.modules)\n"
        # Two take a file of their user.
        "ids = [name for name in gymnasium.registry if name.startswith('robust_policies/')]\n"
        "ids.remove('robust_policies/Identified-v0')\n"
        "ids.remove('robust_policies/Fmu-v0')\n"
        "for name in ids:\n"
        "    observation = gymnasium.make(name).reset(seed=0)[0]\n"
        "    envs = gymnasium.make_vec(name, num_envs=2, device='cpu', dtype='float64')\n"
        "    print(name, type(observation).__name__, type(envs.reset(seed=0)[0]).__name__, envs.reset()[0].dtype)"
    )
    from robust_policies.envs import ENV_IDS

    torch_is_loaded, *said = run(code, tmp_path)
    assert torch_is_loaded == "False"
    assert said == [word for name in ENV_IDS for word in (name, "ndarray", "Tensor", "torch.float64")]


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
