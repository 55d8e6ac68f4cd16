"""A policy from the files that `save_policy` wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, UserError
from robust_policies.files.atomic import read_json
from robust_policies.runtime.policy import RuntimePolicy, cell_policy, youla_policy

SCHEMA = 1


def load(path: str | Path, *, seed: int = 0) -> RuntimePolicy:
    """Return the policy in a folder, or named by its policy.json or policy.safetensors.

    `seed` is of the samples of `predict(..., deterministic=False)`.

    Raises:
        MissingFileError, CorruptFileError, SchemaError, UnknownNameError: what is wrong with the files.
        InvalidValueError: the policy was saved before its running arrays were saved with it.
    """
    path = Path(path)
    stem = path if path.suffix in {".json", ".safetensors"} else path / "policy.json"
    json_path, weights_path = stem.with_suffix(".json"), stem.with_suffix(".safetensors")
    if not json_path.is_file():
        raise MissingFileError(f"{json_path} does not exist; expected a policy saved with save_policy.")
    content = read_json(json_path, "policy", SCHEMA)
    if not isinstance(content.get("runtime"), Mapping):
        raise InvalidValueError(
            f"{json_path} was saved without the arrays that run; save it again: save_policy(load_policy(DIR), DIR)."
        )
    try:
        weights_path = json_path.with_name(Path(content["weights"]["file"]).name)
        tensors = _tensors(weights_path, content["weights"]["sha256"])
        if content["type"] == "youla_policy":
            inner = {k.removeprefix("policy."): v for k, v in tensors.items() if k.startswith("policy.")}
            arrays = _nested(content["policy"]["runtime"]["arrays"], inner)
            base = {name: tensors[stored] for name, stored in content["runtime"]["base"]["arrays"].items()}
            return youla_policy(content, inner, arrays, base, seed)
        return cell_policy(content, tensors, _nested(content["runtime"]["arrays"], tensors), seed)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise CorruptFileError(f"{json_path} lacks or garbles the entry {error}; save the policy again.") from error


def _tensors(path: Path, expected: Any) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; expected the weights beside the policy's json file.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise CorruptFileError(f"{path} is not the file its json describes (sha256 differs); save the policy again.")
    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CorruptFileError(f"{path} is not a whole safetensors file ({error}); save the policy again.") from error


def _nested(names: Any, tensors: Mapping[str, Any]) -> Any:
    """Return what holds the names of tensors with the tensors in their places."""
    if isinstance(names, Mapping):
        return {key: _nested(value, tensors) for key, value in names.items()}
    if isinstance(names, list):
        return [_nested(value, tensors) for value in names]
    return None if names is None else tensors[names]
