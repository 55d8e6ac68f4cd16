"""The packages import one another in one direction only."""

import ast
from pathlib import Path

import pytest

import robust_policies

PACKAGE = Path(robust_policies.__file__).parent
FOUNDATION = {"errors", "checks", "assets"}
MAY_IMPORT = {
    "networks": set(),
    "certificates": {"networks"},
    "control": {"networks", "certificates"},
    "envs": set(),
    "policies": {"networks", "certificates", "control", "envs"},
    "train": {"networks", "certificates", "control", "envs", "policies"},
    "evaluation": {"networks", "certificates", "control", "envs", "policies", "train"},
    "sweep": {"networks", "certificates", "control", "envs", "policies", "train", "evaluation"},
}


def imported_parts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("robust_policies.")}
    return found


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_imports_go_one_way(part):
    allowed = MAY_IMPORT[part] | FOUNDATION | {part, "__version__"}
    files = sorted((PACKAGE / part).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(PACKAGE)): sorted(imported_parts(path) - allowed) for path in files}
    assert not {path: names for path, names in wrong.items() if names}


@pytest.mark.parametrize("module", sorted(FOUNDATION))
def test_the_foundation_imports_only_itself(module):
    assert imported_parts(PACKAGE / f"{module}.py") <= FOUNDATION


def test_the_data_folder_named_envs_is_never_imported():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] in {"envs", "train"} for alias in node.names), path
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] not in {"envs", "train"}, path
