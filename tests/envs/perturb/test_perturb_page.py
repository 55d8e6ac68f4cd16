"""The page on perturbations: its table names every parameter."""

import re
from pathlib import Path

import pytest

from robust_policies.envs.perturb import NAMES, SPECS

PAGE = Path(__file__).parents[3] / "docs" / "perturbations.md"


@pytest.fixture(scope="module")
def text():
    return PAGE.read_text(encoding="utf-8")


def test_the_table_names_every_parameter_with_its_default(text):
    rows, name = {}, ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[1].startswith("`"):
            name = cells[0].strip("`") or name
            for parameter in re.findall(r"`(\w+)`", cells[1]):
                rows[name, parameter] = cells[3]
    assert {key[0] for key in rows} == set(NAMES)
    for name, spec in SPECS.items():
        assert [parameter for one, parameter in rows if one == name] == list(spec.model_fields)
        for parameter, field in spec.model_fields.items():
            stated = rows[name, parameter].strip("`")
            if stated and "," not in stated:
                default = "required" if field.is_required() else str(field.default).lower()
                assert stated == default
