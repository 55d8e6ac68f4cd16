"""A wheel and an editable install both find the tasks and the recipes, from any working directory."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from robust_policies.files import assets

CHECKOUT = Path(__file__).resolve().parent.parent
QUESTION = """
from robust_policies.files import assets
print(assets.__file__)
print(assets.task_names())
print(assets.recipe_names())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # The source is copied first, so that the build leaves nothing in the checkout.
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, tracked):
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((CHECKOUT / name).read_bytes())
    output = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(output), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(output.glob("*.whl"))


def ask(code: str, folder: Path, **variables: str) -> list[str]:
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_the_wheel_brings_tasks_and_recipes(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    location, tasks, recipes = ask(QUESTION, tmp_path, PYTHONPATH=str(site))
    assert Path(location).is_relative_to(site)
    assert tasks == str(assets.task_names())
    assert recipes == str(assets.recipe_names())


def test_the_wheel_has_every_data_file(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    for folder, name in ((assets.tasks_folder(), "_tasks"), (assets.recipes_folder(), "_recipes")):
        for path in folder.rglob("*"):
            if path.suffix in {".yaml", ".xml", ".md"}:
                assert f"robust_policies/{name}/{path.relative_to(folder).as_posix()}" in packed


def test_an_environment_of_the_wheel_runs_without_importing_the_package(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = "import gymnasium; env = gymnasium.make('robust_policies/Pendulum-v0'); print(env.reset(seed=0)[0].shape)"
    assert ask(code, tmp_path, PYTHONPATH=str(site))[-1] == "(3,)"


def test_the_checkout_finds_them_from_another_folder(tmp_path):
    _, tasks, recipes = ask(QUESTION, tmp_path)
    assert "pendulum" in tasks
    assert "pendulum_lstm" in recipes


def test_the_pinned_versions_cover_the_declared_dependencies():
    import tomllib

    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    lines = (CHECKOUT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    declared = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    for requirement in declared:
        name = requirement.split(">=")[0].split("[")[0].lower().replace("_", "-")
        assert name in pinned or name == "robust-policies", requirement
