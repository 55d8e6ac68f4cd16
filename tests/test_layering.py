"""Files import one another in one direction only, and the ground is light."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import robust_policies

PACKAGE = Path(robust_policies.__file__).parent
FOUNDATION = {"errors", "checks", "files", "graphs", "mujoco_names"}
MAY_IMPORT = {
    "networks": set(),
    "certificates": {"networks"},
    "control": {"networks", "certificates"},
    "envs": set(),
    "policies": {"networks", "certificates", "control", "envs"},
    "train": {"networks", "certificates", "control", "envs", "policies"},
    "evaluation": {"networks", "certificates", "control", "envs", "policies", "train"},
    "export": {"networks", "certificates", "control", "envs", "policies", "runtime"},
    "identification": {"networks", "certificates", "control", "envs", "policies", "train", "evaluation"},
    "sweep": {"networks", "certificates", "control", "envs", "policies", "train", "evaluation"},
}
MODULES = {
    ".".join(("robust_policies", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FACES = {name for name, path in MODULES.items() if path.name == "__init__.py"}
# What may import in the body of a function: the command, which shows its help before it loads torch.
LAZY = ("robust_policies.cli.",)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> list[tuple[ast.AST, str]]:
    """Return every import of this package in a file, wherever it stands, with the module it names."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        else:
            continue
        found += [(node, name) for name in names if name.split(".")[0] == "robust_policies"]
    return found


def parts(path: Path) -> set[str]:
    return {name.split(".")[1] for _, name in imports(path) if "." in name}


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_folders_import_one_way(part):
    allowed = MAY_IMPORT[part] | FOUNDATION | {part}
    files = sorted((PACKAGE / part).rglob("*.py"))
    assert files
    # The lazy face of its own folder loads a module when a name is used, not before.
    wrong = {str(path.relative_to(PACKAGE)): sorted(parts(path) - allowed) for path in files}
    assert not {path: names for path, names in wrong.items() if names}


def test_the_foundation_imports_only_itself():
    for path in (
        PACKAGE / "errors.py",
        PACKAGE / "checks.py",
        PACKAGE / "graphs.py",
        PACKAGE / "mujoco_names.py",
        *(PACKAGE / "files").rglob("*.py"),
    ):
        assert parts(path) <= FOUNDATION, path


def test_no_files_import_each_other_in_a_circle():
    # Faces are lazy: importing one loads nothing else.
    uses = {
        name: {found for _, found in imports(path) if found in MODULES and found not in FACES} - {name}
        for name, path in MODULES.items()
        if name not in FACES
    }
    reached: dict[str, set[str]] = {}
    for name in uses:
        seen, left = set(), list(uses[name])
        while left:
            other = left.pop()
            if other not in seen:
                seen.add(other)
                left += uses.get(other, ())
        reached[name] = seen
    circles = {frozenset(b for b in reached[a] if a in reached[b]) for a in reached if a in reached[a]}
    assert not circles, [sorted(circle) for circle in circles]


def test_no_import_of_this_package_hides_in_a_function():
    hidden = []
    for name, path in MODULES.items():
        if name.startswith(LAZY):
            continue
        tree = parsed(path)
        inner = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for node in ast.walk(function)
        }
        # The same objects: a file is parsed once.
        hidden += [f"{name}:{node.lineno}" for node, _ in imports(path) if id(node) in inner]
    assert not hidden


def test_the_data_folder_named_envs_is_never_imported():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] in {"envs", "train"} for alias in node.names), path
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] not in {"envs", "train"}, path


# The lightest first: one process runs them one after another, and what is absent after all of them is so after each.
NOT_LOADED = {
    "import robust_policies.files.lock": ["torch", "stable_baselines3", "matplotlib", "plotly", "gymnasium"],
    "from robust_policies.cli import main": ["torch", "stable_baselines3"],
    "import robust_policies.envs": ["torch", "stable_baselines3"],
    "from robust_policies.train.recipe import load_recipe; load_recipe('pendulum_r2dn_gamma6')": [
        "matplotlib", "plotly", "stable_baselines3", "tensorboard",
    ],
    "from robust_policies.policies import load_policy": ["stable_baselines3", "matplotlib", "plotly"],
    "from robust_policies.evaluation.suite import suite_named; suite_named('quick')": ["matplotlib", "plotly"],
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded():
    """What is loaded after each of the imports, of `NOT_LOADED`."""
    script = "import sys\n" + "".join(
        f"{code}\nprint([name for name in {absent!r} if name in sys.modules])\n" for code, absent in NOT_LOADED.items()
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(zip(NOT_LOADED, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("code", NOT_LOADED)
def test_what_an_import_does_not_load(code, loaded):
    assert loaded[code] == "[]"
