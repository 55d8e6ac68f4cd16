"""Policies on disk: the pickle-free pair policy.json + policy.safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from robust_policies import __version__, checks

# The lazy face: a policy is loaded without Stable-Baselines3, which only a model of its own to save brings along.
from robust_policies import policies as face
from robust_policies.certificates.certificate import Certificate, array_hashes
from robust_policies.envs.batch import spec_of
from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    MissingFileError,
    UnknownNameError,
    UserError,
)
from robust_policies.files.atomic import read_json, write_atomic
from robust_policies.policies.certify import running_arrays
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.running_arrays import PREFIX
from robust_policies.policies.youla.policy import YoulaPolicy

SCHEMA = 1
KINDS = {policy.kind: policy for policy in (DeployedPolicy, YoulaPolicy)}


def save_policy(policy_or_model: Any, folder_or_stem: str | Path, task: str | Mapping[str, Any] | None = None) -> Path:
    """Return the path of the written policy.json; its weights lie beside it in policy.safetensors.

    Args:
        policy_or_model: a DeployedPolicy, or what `deploy` makes one of, such as a model of Stable-Baselines3, a runner
            of rsl_rl or an agent of skrl; the statistics of its normaliser are frozen into the files.
        folder_or_stem: a folder, or a path ending in .json or .safetensors that names the pair.
        task: the environment's id, or {"id": ID, "kwargs": {...}}: `evaluate` and `enjoy` then take the folder as it
            is. None: they are told.

    Raises:
        InvalidValueError: the policy cannot be stored so. UnknownNameError: there is no such environment.
        NonFiniteError: a weight is NaN or infinite.
    """
    policy, acts_in = policy_or_model, _checked_task(task)
    if not isinstance(policy, DeployedPolicy):
        policy = face.deploy(policy)
    content, tensors = policy.parts()
    for name, tensor in tensors.items():
        # The limits in a linear model may be infinite; it looks at its numbers itself.
        if not name.startswith("model."):
            checks.finite_tensor(name, tensor)
    weights = safetensors.torch.save(tensors)
    json_path, weights_path = _pair(Path(folder_or_stem))
    content["weights"] = {"file": weights_path.name, "sha256": hashlib.sha256(weights).hexdigest()}
    content = {"schema": SCHEMA, "version": __version__, "type": policy.kind, **acts_in, **content}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomic(weights_path, lambda file: file.write(weights))
    return write_atomic(json_path, lambda file: file.write(text.encode()))


def stored_task(path: str | Path) -> tuple[str, dict[str, Any]] | None:
    """Return the environment's id and options that a policy was saved with, None if with none."""
    json_path, _ = _pair(Path(path))
    content = read_json(json_path, "policy", SCHEMA).get("task")
    if content is None:
        return None
    try:
        return str(content["id"]), dict(content["kwargs"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{json_path} garbles its task ({error!r}); save the policy again.") from error


def load_policy(path: str | Path, *, allow_pickle: bool = False) -> DeployedPolicy:
    """Return the policy in a folder, or named by its policy.json or policy.safetensors.

    Nothing but this package's classes is built. A Stable-Baselines3 zip can run code when it is read: it is read only
    with `allow_pickle=True`.

    Raises:
        MissingFileError, CorruptFileError, SchemaError, UnknownNameError, ShapeError: what is wrong with the files.
    """
    path = Path(path)
    if path.suffix == ".zip":
        return _load_zip(path, allow_pickle)
    json_path, _ = _pair(path)
    if not json_path.is_file():
        zipped = json_path.with_suffix(".zip")
        hint = f" There is a {zipped.name}: load it with allow_pickle=True." if zipped.is_file() else ""
        raise MissingFileError(f"{json_path} does not exist; expected a policy saved with save_policy.{hint}")
    content = read_json(json_path, "policy", SCHEMA)
    if not isinstance(kind := content.get("type"), str) or kind not in KINDS:
        raise UnknownNameError.among("policy type", str(kind), KINDS)
    try:
        weights_path = json_path.with_name(Path(content["weights"]["file"]).name)
        stored = _stored(weights_path, content["weights"]["sha256"])
        return KINDS[kind].from_parts(content, stored, weights_path)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise CorruptFileError(f"{json_path} lacks or garbles the entry {error}; save the policy again.") from error


def certificate_is_of(certificate: Certificate, policy: DeployedPolicy) -> bool:
    """Return whether a certificate is of the arrays that this policy runs."""
    # Of what nothing is proven all its parameters are listed.
    known = [policy.running_arrays(), *([] if isinstance(policy, YoulaPolicy) else [running_arrays(policy.actor)])]
    return any(certificate.arrays_sha256 == array_hashes(arrays) for arrays in known)


def running_arrays_agree(path: str | Path, policy: DeployedPolicy) -> bool:
    """Return whether what `robust_policies.runtime` runs of the files is what this policy, loaded from them, runs.

    Files without arrays of its own agree: it refuses them. Arrays may differ by the rounding of another processor.
    """
    json_path, _ = _pair(Path(path))
    content = read_json(json_path, "policy", SCHEMA)
    if "runtime" not in content:
        return True
    stored = _stored(json_path.with_name(Path(content["weights"]["file"]).name), content["weights"]["sha256"])
    expected, arrays = policy.parts()
    own = {name for name in (*stored, *arrays) if name.startswith((PREFIX, f"policy.{PREFIX}"))}
    same = content["runtime"] == expected["runtime"]
    inner = (part.get("policy", {}).get("runtime") for part in (content, expected))
    return same and next(inner) == next(inner) and all(_alike(stored.get(name), arrays.get(name)) for name in own)


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    largest = max(1.0, float(other.double().abs().nan_to_num(posinf=0.0).max())) if other.numel() else 1.0
    return bool(((one == other) | ((one.double() - other.double()).abs() <= 1e-5 * largest)).all())


def _checked_task(task: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the entry of policy.json, empty where no task is given."""
    if task is None:
        return {}
    given: dict[str, Any] = {"id": task} if isinstance(task, str) else dict(task)
    if not isinstance(given.get("id"), str) or not set(given) <= {"id", "kwargs"}:
        raise InvalidValueError(f"task is {task!r}; expected an environment's id, or its id and kwargs.")
    kwargs = dict(given.get("kwargs") or {})
    try:
        json.dumps(kwargs, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"kwargs of the task are {kwargs!r}; expected what JSON can hold ({error}).") from error
    spec_of(given["id"])
    return {"task": {"id": given["id"], "kwargs": kwargs}}


def _pair(path: Path) -> tuple[Path, Path]:
    stem = path if path.suffix in {".json", ".safetensors"} else path / "policy.json"
    return stem.with_suffix(".json"), stem.with_suffix(".safetensors")


def _stored(path: Path, expected_hash: Any) -> dict[str, Tensor]:
    """Return the tensors in a weights file that is the one its json describes."""
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; expected the weights beside the policy's json file.")
    data = path.read_bytes()
    try:
        stored = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CorruptFileError(f"{path} is not a whole safetensors file ({error}); save the policy again.") from error
    if hashlib.sha256(data).hexdigest() != expected_hash:
        raise CorruptFileError(f"{path} is not the file its json describes (sha256 differs); save the policy again.")
    return stored


def _load_zip(path: Path, allow_pickle: bool) -> DeployedPolicy:
    if not allow_pickle:
        raise InvalidValueError(
            f"{path} is a Stable-Baselines3 zip, which can run code when it is read; pass its folder or policy.json, "
            "or allow_pickle=True if you trust it."
        )
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; expected a model saved by Stable-Baselines3.")
    from sb3_contrib import RecurrentPPO

    try:
        model = RecurrentPPO.load(path, device="cpu")
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise CorruptFileError(f"{path} is not a model saved by RecurrentPPO ({error}); save it again.") from error
    return face.deploy(model.policy)
