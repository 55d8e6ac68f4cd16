"""Pictures of MuJoCo tasks on a machine without a display, whatever was imported or set before."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, mujoco
{setting}
import gymnasium
env = gymnasium.make("robust_policies/InvertedPendulum-v0", render_mode="rgb_array")
env.reset(seed=0)
print(env.render().shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="EGL is asked for on Linux only")
@pytest.mark.parametrize("setting", ["", pytest.param("os.environ['MUJOCO_GL'] = 'egl'", marks=pytest.mark.soak)])
def test_egl_is_used_although_mujoco_was_imported_first(setting):
    environment = {name: value for name, value in os.environ.items() if name not in {"DISPLAY", "MUJOCO_GL"}}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(setting=setting)], env=environment, capture_output=True, text=True
    )
    if "EGL" in done.stderr and done.returncode:
        pytest.skip("this machine has no EGL")
    assert done.returncode == 0 and "(480, 480, 3)" in done.stdout, done.stderr
