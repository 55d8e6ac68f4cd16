"""Every Python block of every page runs, prints what the page says, and imports from the public faces alone."""

import ast
import doctest
import importlib
import io
import re
import shutil
from contextlib import redirect_stdout, suppress
from pathlib import Path
from unittest import SkipTest
from unittest.mock import patch

import gymnasium
import pytest
import torch
import yaml
from sybil import Sybil
from sybil.example import NotEvaluated
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from robust_policies.envs.perturb import parse
from robust_policies.evaluation.limits import parse_limits
from robust_policies.evaluation.suite import parse_suite
from robust_policies.files import assets
from robust_policies.networks import CELLS
from robust_policies.runtime.cells import OWN_STEPS
from robust_policies.train import parse_recipe

ROOT = Path(__file__).parents[2]
ROOMS = ("networks", "certificates", "control", "envs", "policies", "train", "evaluation", "identification")
FACES = [f"robust_policies.{room}" for room in ROOMS]
# The wrappers of `perturb` and `perturb.vector` have the same names, so each keeps a face of its own.
# So has what needs another library.
BRIDGES = {"robust_policies.envs.bridges", "robust_policies.policies.bridges"}
PUBLIC = {*FACES, *BRIDGES, "robust_policies.envs.perturb", "robust_policies.cli", "robust_policies.runtime"}
PUBLIC |= {"robust_policies.control.observers"}
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "envs/*/README.md", "examples/*.md", "results/**/README.md", "train/*.md")
    for path in ROOT.glob(pattern)
    if re.search(r"^```(python|yaml|output)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
)
EXAMPLES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*.py"))


def page_of(example):
    return Path(example.path).name


def check_yaml(example):
    """Read a block of YAML as what it is: a list of perturbations, a recipe, part of one, or a suite."""
    content = yaml.safe_load(example.parsed)
    if isinstance(content, list):
        names = [item if isinstance(item, str) else next(iter(item)) for item in content]
        assert [spec.name for spec in parse(example.parsed)] == names
    elif "require" in content:
        parse_limits(content, page_of(example))
    elif "episodes" in content:
        parse_suite(content, page_of(example))
    else:
        parse_recipe({"task": {"id": "Pendulum-v1"}, "algorithm": {"total_steps": 1}, **content}, page_of(example))


class Printed:
    """What the last block of a page printed, to be compared with the block of output that follows it."""

    def __init__(self):
        self.text = ""

    def check(self, example):
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        same = doctest.OutputChecker().check_output(example.parsed, self.text, flags)
        assert same, f"printed:\n{self.text}\nthe page says:\n{example.parsed}"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page, demo, tmp_path, monkeypatch):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert all(reason for reason in re.findall(r"<!-+ *skip: *\w+(.*?)-->", text)), (
        "a block is skipped without a reason"
    )
    if re.search("results/(demo|pendulum)", text):
        shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    printed = Printed()
    checked = [CodeBlockParser("yaml", check_yaml), CodeBlockParser("output", printed.check)]
    sybil = Sybil([PythonCodeBlockParser(), SkipParser(), *checked])
    document = sybil.parse(ROOT / page)
    document.namespace["tasks_folder"] = assets.tasks_folder()
    torch.manual_seed(0)
    # What a page registers is known on that page alone.
    with patch.dict(gymnasium.registry), patch.dict(CELLS), patch.dict(OWN_STEPS):
        for example in document.examples():
            with (
                redirect_stdout(io.StringIO()) as text,
                suppress(NotEvaluated, SkipTest),
            ):
                example.evaluate()
            printed.text = text.getvalue()


def imported(source):
    """Return the modules of this package that source code imports from, the deepest name that is one."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] == "robust_policies"}


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES])
def test_the_page_imports_from_the_faces_alone(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [text] if page.endswith(".py") else re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert not {name for block in blocks for name in imported(block)} - PUBLIC


@pytest.mark.parametrize("face", [*FACES, *sorted(BRIDGES)])
def test_every_name_of_the_face_is_there(face):
    module = importlib.import_module(face)
    stub = Path(module.__file__).with_suffix(".pyi")
    names = {alias.asname for node in ast.parse(stub.read_text()).body for alias in node.names}
    assert None not in names and names == set(module.__all__)
    assert not [name for name in names if not hasattr(module, name)]
