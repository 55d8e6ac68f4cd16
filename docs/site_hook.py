"""MkDocs' hook: the site is laid out as the repository is, so that a link that works in one works in the other.

Pages and what they link to come from the whole repository, a link to a folder goes to the README there (or to its
list of files), and api/FACE.md is made of the names in each face's __init__.pyi.
"""

import ast
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FACES = ("networks", "certificates", "control", "envs", "policies", "train", "evaluation", "identification")
# What the pages may link to; anything else that is linked fails the build.
SHOWN = (
    *("*.md", "LICENSE", "docs/*.md", "docs/images/*", "examples/*", "train/*", "benchmarks/*.json"),
    *("envs/*.md", "envs/*/README.md", "envs/*/task.yaml", "envs/*/*.xml"),
    *("results/*.md", "results/*/*.md", "results/*/*.png", "results/*/*.json"),
)
# Run folders are not part of the repository, and page.md is what a README is made of.
KEPT = "pendulum youla recipes linear identification certified cells digits".split()
NEVER = re.compile(rf"^results/(?!{'|'.join(f'{name}/' for name in KEPT)})[^/]+/|^results/[^/]+/page\.md$")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the site's files in place of those of docs/."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    shown = sorted({path for pattern in SHOWN for path in ROOT.glob(pattern) if path.is_file()})
    names = [path.relative_to(ROOT).as_posix() for path in shown]
    ours = [
        File.generated(config, name, abs_src_path=str(path))
        for name, path in zip(names, shown, strict=True)
        if not NEVER.match(name)
    ]
    ours += [File.generated(config, f"api/{face}.md", content=face_page(face)) for face in FACES]
    return Files([*theme, *ours])


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Return the page with its links to folders led to the README in each."""

    def led(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = os.path.normpath(os.path.join(os.path.dirname(page.file.src_uri), target))
        if files.get_file_from_path(f"{path}/README.md") is not None:
            target = f"{target.rstrip('/')}/README.md"
        return f"[{text}]({target}{anchor or ''})"

    return LINK.sub(led, markdown)


def face_page(face: str) -> str:
    """Return the API page of one face: its docstring, and every public name with its own."""
    folder = ROOT / "robust_policies" / face
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    names = [
        alias.name
        for node in ast.parse((folder / "__init__.pyi").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    blocks = [f"::: robust_policies.{face}.{name}" for name in sorted(names, key=str.lower)]
    return "\n\n".join([f"# robust_policies.{face}", docstring, *blocks]) + "\n"
