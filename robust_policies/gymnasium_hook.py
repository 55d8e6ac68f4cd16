"""Register this package's ids when Gymnasium is imported, so that `gymnasium.make(id)` works by itself.

Gymnasium read the entry-point group `gymnasium.envs` until version 1.0 took its plug-ins away. In its place the file
`robust_policies_gymnasium.pth`, installed beside the package, puts a one-line finder in front of `sys.meta_path`; when
`gymnasium.envs` is imported for the first time that finder asks `find` below. Nothing of this package is loaded before.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_MODULE = "gymnasium.envs"


def find(path: Sequence[str] | None) -> ModuleSpec | None:
    """Return the spec of `gymnasium.envs` found on `path`, whose loading is followed by our registration."""
    spec = PathFinder.find_spec(_MODULE, path)
    if spec is None or spec.loader is None:
        return spec
    loader = spec.loader
    execute = loader.exec_module

    def execute_then_register(module: ModuleType) -> None:
        execute(module)
        importlib.import_module("robust_policies.envs.registration").register_tasks()

    # The one way in: the loader is Python's own.
    loader.exec_module = execute_then_register  # type: ignore[method-assign]
    return spec
