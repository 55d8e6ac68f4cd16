"""Build the wheel, install it into a new environment and use it as somebody without a checkout does."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
TINY = [
    "task.num_envs=4", "policy.state_size=4", "policy.features=4", "policy.hidden_sizes=[4]", "algorithm.n_steps=100",
    "algorithm.batch_size=200", "algorithm.n_epochs=2", "algorithm.total_steps=400", "checkpoints.evaluate_episodes=2",
]  # fmt: skip
USE = """
import gymnasium
env = gymnasium.make("robust_policies/Pendulum-v0")
observation, _ = env.reset(seed=0)

import robust_policies
from pathlib import Path
from robust_policies.policies import load_policy
policy = load_policy("run")
action, state = policy.predict(observation)
assert action in env.action_space, action
assert policy.certificate().status == "PASS"
print(Path(robust_policies.__file__).parent)
"""


def run(*command: object, cwd: Path) -> str:
    """Return what a command prints; end with its output if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(work: Path) -> Path:
    """Return the wheel of the checkout's files, built from a copy so that nothing is left in the checkout."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=CHECKOUT)
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file():
            (work / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, work / "source" / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", work, work / "source", cwd=work)
    (wheel,) = work.glob("*.whl")
    return wheel


def install(wheel: Path, work: Path) -> Path:
    """Return the commands' folder of a new environment that holds the wheel and sees this environment's packages.

    Installing the dependencies again would take minutes and show nothing of the wheel. They are found through a .pth
    file, which leads to their folder without following the .pth files in it: the editable checkout is not seen.
    """
    run(sys.executable, "-m", "venv", "--without-pip", work / "new", cwd=work)
    commands = work / "new" / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", commands / "python", "install", "-q", "--no-index"]
    run(*pip, "--no-deps", wheel, cwd=work)
    packages = run(commands / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=work)
    (Path(packages.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # Nothing is installed: it fails where the wheel asks for what is not there.
    run(*pip, "--dry-run", wheel, cwd=work)
    return commands


def main() -> None:
    """Fail on the first thing that does not work."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        commands = install(build(work), work)
        listed = run(commands / "robust-policies", "list", "envs", cwd=work)
        assert any(line.split()[0] == "robust_policies/Pendulum-v0" for line in listed.splitlines()), listed
        train = [commands / "robust-policies", "train", "pendulum_r2dn_gamma6", "-o", "run", "--no-evaluate"]
        run(*train, "--set", *TINY, cwd=work)
        found = Path(run(commands / "python", "-c", USE, cwd=work).splitlines()[-1])
        assert found.is_relative_to(work / "new"), f"{found} is not the wheel's"
    print("The wheel installs, lists, makes an environment, trains and loads a policy.")


if __name__ == "__main__":
    main()
