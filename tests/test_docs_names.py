"""What the documentation calls is where it says."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "envs").glob("*/README.md"))]
IMPORT = re.compile(r"^\s*from (robust_policies[\w.]*) import (?:\(([^)]*)\)|([^\n(#]+))", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_import_in_the_documentation_works(page):
    for module, several, few in IMPORT.findall(page.read_text()):
        for part in (several or few).split(","):
            name = part.split(" as ")[0].strip()
            if name and not hasattr(importlib.import_module(module), name):
                importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize(
    ("page", "module"), [("control.md", "robust_policies.control"), ("networks.md", "robust_policies.networks")]
)
def test_functions_of_a_page_are_in_its_module(page, module):
    called = set(re.findall(r"`([a-z][a-z_0-9]*)\((?!\))", (ROOT / "docs" / page).read_text()))
    assert called
    assert not {name for name in called if not hasattr(importlib.import_module(module), name)}


def test_functions_named_with_their_module_are_in_it():
    text = (ROOT / "docs" / "youla.md").read_text()
    modules = {"youla", "semidefinite", "small_gain", "region", "saturation"}
    for module, name in re.findall(r"`(\w+)\.(\w+)[`(]", text):
        if module in modules | {"certificates"}:
            full = module if module == "certificates" else f"control.{module}"
            assert hasattr(importlib.import_module(f"robust_policies.{full}"), name), (module, name)
