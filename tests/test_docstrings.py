"""Every public function that takes arrays says their shapes, and what it raises.

Read from the sources, not from imported modules, so that optional packages need not be installed. A shape is a tuple of
sizes such as (batch, nx), (..., ny), (n,) or (), or the word itself. It may stand in the function's docstring, in its
class's, or where the class it overrides declares it: an implementation need not repeat its contract.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "robust_policies"
PACKAGES = (
    *("networks", "certificates", "control", "policies", "envs", "train", "evaluation", "sweep", "cli", "files"),
    "export",
)

ARRAYS = re.compile(r"\b(Tensor|ndarray|Array|ArrayLike|NDArray)\b")
_COUNTS = (
    "axes batch cells? channels columns count entries envs? episodes horizon length members? points rates? rows runs "
    "samples sizes? starts? steps? time times width window"
).replace(" ", "|")
# What there may be any number of, but a tuple of these alone is a tuple of values: (state, action).
_THINGS = "actions? activations? features hidden inputs? noises? observations? outputs? parameters? states? values?"
_SIZE = rf"(?:\d+|\.\.\.|\*?[A-Za-z]{{1,2}}\d?(?:_\w+)?|{_COUNTS})"
_GROUP = re.compile(r"\([^()]*(?:\([^()]*\)[^()]*)*\)")
_TOKEN = re.compile(rf"^(?:{_SIZE}|{_THINGS.replace(' ', '|')})$")
_NUMBER = re.compile(rf"^{_SIZE}$")
_WORD = re.compile(r"\b(?:shapes?|scalars?|entry by entry|elementwise)\b")
RAISES = re.compile(r"\b[Rr]aises?\b")


@dataclass
class Class:
    """A class as its source declares it: bases by name, and the docstrings of its methods."""

    doc: str
    bases: list[str]
    methods: dict[str, str] = field(default_factory=dict)


def says_shape(text: str) -> bool:
    """Return whether `text` holds a tuple of sizes, `(a x b)`, or one of the words."""
    return bool(_WORD.search(text)) or any(_is_shape(group[1:-1]) for group in _GROUP.findall(text))


def _is_shape(inner: str) -> bool:
    if not inner.strip():
        return True
    sizes = inner.split(",") if "," in inner else inner.split(" x ")
    tokens = [re.findall(r"\.\.\.|\*?\w+|[^\s\w()+*/-]", size) for size in sizes]
    if tokens and not tokens[-1] and len(tokens) > 1:
        tokens.pop()
    elif len(sizes) < 2:
        return False
    known = all(one and all(_TOKEN.match(token) for token in one) for one in tokens)
    return known and any(_NUMBER.match(token) for one in tokens for token in one)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _declared(trees: list[ast.Module]) -> dict[str, list[Class]]:
    """Return all classes by name; one name may stand for several."""
    found: dict[str, list[Class]] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base).split("[")[0].rsplit(".", 1)[-1] for base in node.bases]
                methods = {one.name: ast.get_docstring(one) or "" for one in _functions(node.body)}
                found.setdefault(node.name, []).append(Class(ast.get_docstring(node) or "", bases, methods))
    return found


def _inherited(name: str, bases: list[str], classes: dict[str, list[Class]]) -> str:
    """Return the docstrings of the method `name` in all ancestors."""
    texts, todo, seen = [], list(bases), set()
    while todo:
        base = todo.pop()
        if base in seen:
            continue
        seen.add(base)
        for one in classes.get(base, []):
            texts.append(one.methods.get(name, ""))
            todo += one.bases
    return "\n".join(texts)


def _takes_arrays(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return any(one is not None and one.annotation and ARRAYS.search(ast.unparse(one.annotation)) for one in every)


def _raises(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether the function itself raises an error that is not a mere `not implemented`."""
    names = [ast.unparse(node.exc) for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc]
    return any(not name.startswith("NotImplementedError") for name in names)


@functools.cache
def _sources(root: Path) -> tuple[dict[Path, ast.Module], dict[str, list[Class]]]:
    """Return the trees of all files below `root`, and their classes: read once for all packages."""
    trees = {path: _tree(path) for path in sorted(root.rglob("*.py"))}
    return trees, _declared(list(trees.values()))


def offenders(package: str, root: Path = ROOT) -> list[str]:
    """Return `file:line name: what is missing` for each public array function of `package` that says too little."""
    trees, classes = _sources(root)
    found = []
    for path, tree in trees.items():
        if path.relative_to(root).parts[0] not in (package, f"{package}.py"):
            continue
        groups: list[tuple[str, str, list[str], list[ast.stmt]]] = [("", "", [], tree.body)]
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                bases = [ast.unparse(base).split("[")[0].rsplit(".", 1)[-1] for base in node.bases]
                groups.append((f"{node.name}.", ast.get_docstring(node) or "", bases, node.body))
        for prefix, class_text, bases, body in groups:
            for function in _functions(body):
                if function.name.startswith("_") or not _takes_arrays(function):
                    continue
                own = ast.get_docstring(function) or ""
                text = "\n".join((own, class_text, _inherited(function.name, bases, classes)))
                missing = [] if says_shape(text) else ["no shape"]
                if _raises(function) and not RAISES.search(text):
                    missing.append("raises, and does not say so")
                if missing:
                    where = f"{path.relative_to(root.parent)}:{function.lineno}"
                    found.append(f"{where} {prefix}{function.name}: {', '.join(missing)}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_array_functions_say_shapes_and_errors(package):
    found = offenders(package)
    assert not found, "\n".join(["Write shapes such as (batch, nx), and `Raises:`, into these docstrings:", *found])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Return the output (batch, ny).", True),
        ("Return x (..., nx) of u (n,).", True),
        ("XY ((n_in + n_out) x n_out)", True),
        ("A gain of H (2 nx + nv, nx)", True),
        ("Values entry by entry, whatever their shape.", True),
        ("Return (next state, output) by the model's equations.", False),
        ("Return the least value (see above).", False),
        ("Return the values (outputs, the empty state).", False),
        ("Return the step from (state, action).", False),
    ],
)
def test_what_counts_as_a_shape(text, says):
    assert says_shape(text) is says
