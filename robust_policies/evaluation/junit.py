"""The outcomes of acceptance limits as JUnit's XML, which build servers show as tests."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from robust_policies import __version__
from robust_policies.evaluation.limits import Outcome
from robust_policies.files.atomic import write_atomic

# What XML 1.0 cannot hold.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(path: str | Path, name: str, outcomes: Sequence[Outcome], facts: dict[str, str] | None = None) -> Path:
    """Return `path` after writing a test suite `name` there, a test case for each requirement.

    A requirement that is not met is a failure, of type "limit" where there is a value and "missing" where there is
    none. `facts` become properties of the suite.
    """
    failed = str(sum(not outcome.met for outcome in outcomes))
    counts = {"tests": str(len(outcomes)), "failures": failed, "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": _text(name), **counts, "time": "0"})
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in {"robust-policies": __version__, **(facts or {})}.items():
        ElementTree.SubElement(properties, "property", {"name": _text(key), "value": _text(value)})
    for outcome in outcomes:
        one = outcome.requirement
        title = f"{one.label}: {one}" if one.label else str(one)
        case = ElementTree.SubElement(suite, "testcase", {"classname": _text(name), "name": _text(title), "time": "0"})
        value, limit, margin = outcome.shown
        said = f"value {value}, limit {limit}, margin {margin}"
        if not outcome.met:
            kind = "missing" if outcome.value is None else "limit"
            failure = ElementTree.SubElement(case, "failure", {"type": kind, "message": _text(outcome.reason or said)})
            failure.text = said
        else:
            ElementTree.SubElement(case, "system-out").text = said
    ElementTree.indent(root)
    return write_atomic(path, lambda file: ElementTree.ElementTree(root).write(file, "utf-8", xml_declaration=True))


def _text(value: str) -> str:
    return _FORBIDDEN.sub("?", value)
