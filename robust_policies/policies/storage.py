"""Policies on disk: the pickle-free pair policy.json + policy.safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from robust_policies import __version__, checks

# The lazy face: a policy is loaded without Stable-Baselines3, which only a model of its own to save brings along.
from robust_policies import policies as face
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.scope import Scope
from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    MissingFileError,
    NonFiniteError,
    ShapeError,
    UnknownNameError,
    UserError,
)
from robust_policies.files.atomic import read_json, write_atomic
from robust_policies.networks import cell_from_config
from robust_policies.policies.actor import Actor, FrozenNormalizer, MeanHead, ScaledCell, Scaling
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.records import from_parts, to_parts
from robust_policies.policies.spaces import parameter_count, space_from_json, space_to_json
from robust_policies.policies.youla.base import YoulaOptions
from robust_policies.policies.youla.policy import YoulaPolicy

SCHEMA = 1
KIND = "recurrent_cell_policy"
YOULA = "youla_policy"
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def save_policy(policy_or_model: Any, folder_or_stem: str | Path) -> Path:
    """Return the path of the written policy.json; its weights lie beside it in policy.safetensors.

    Args:
        policy_or_model: a DeployedPolicy, a RecurrentCellPolicy, or a model trained with one; the statistics of the
            model's VecNormalize are frozen into the files.
        folder_or_stem: a folder, or a path ending in .json or .safetensors that names the pair.

    Raises:
        InvalidValueError: the policy cannot be stored so.
        NonFiniteError: a weight is NaN or infinite.
    """
    policy = policy_or_model
    if not isinstance(policy, DeployedPolicy):
        policy = face.deploy(policy)
    if isinstance(policy, YoulaPolicy):
        content, tensors = _youla_parts(policy)
    else:
        content, tensors = {"type": KIND, **_description(policy)}, _tensors(policy)
    for name, tensor in tensors.items():
        # The limits in a linear model may be infinite; it looks at its numbers itself.
        if not name.startswith("model."):
            checks.finite_tensor(name, tensor)
    weights = safetensors.torch.save(tensors)
    json_path, weights_path = _pair(Path(folder_or_stem))
    content["weights"] = {"file": weights_path.name, "sha256": hashlib.sha256(weights).hexdigest()}
    text = json.dumps({"schema": SCHEMA, "version": __version__, **content}, indent=2, allow_nan=False) + "\n"
    write_atomic(weights_path, lambda file: file.write(weights))
    return write_atomic(json_path, lambda file: file.write(text.encode()))


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
    if content.get("type") not in {KIND, YOULA}:
        raise UnknownNameError.among("policy type", str(content.get("type")), [KIND, YOULA])
    try:
        weights_path = json_path.with_name(Path(content["weights"]["file"]).name)
        expected = content["weights"]["sha256"]
        if content["type"] == YOULA:
            return _youla_policy(content, _stored(weights_path, expected), weights_path)
        policy = _build(content)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{json_path} lacks or garbles the entry {error}; save the policy again.") from error
    _take(policy, _stored(weights_path, expected), weights_path)
    return policy


def _youla_parts(policy: YoulaPolicy) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what policy.json and policy.safetensors hold of a Youla policy."""
    content: dict[str, Any] = {"type": YOULA, "policy": _description(policy.policy)}
    tensors = {f"policy.{name}": tensor for name, tensor in _tensors(policy.policy).items()}
    for name, record in (
        ("model", policy.model),
        ("design", policy.design),
        ("options", policy.controller.options),
        ("scope", policy.scope),
    ):
        content[name], numbers = to_parts(record, name)
        tensors |= numbers
    content["observation_space"] = space_to_json(policy.observation_space)
    content["action_space"] = space_to_json(policy.action_space)
    return content, tensors


def _youla_policy(content: Mapping[str, Any], stored: dict[str, Tensor], path: Path) -> YoulaPolicy:
    inner = _build(content["policy"])
    own = {name: stored.pop(name) for name in list(stored) if not name.startswith("policy.")}
    _take(inner, {name.removeprefix("policy."): tensor for name, tensor in stored.items()}, path)
    return YoulaPolicy(
        from_parts(LQGDesign, content["design"], own, "design"),
        from_parts(LinearModel, content["model"], own, "model"),
        inner,
        observation_space=space_from_json(content["observation_space"]),
        action_space=space_from_json(content["action_space"]),
        options=from_parts(YoulaOptions, content["options"], own, "options"),
        scope=from_parts(Scope, content["scope"], own, "scope") if "scope" in content else None,
    )


def _pair(path: Path) -> tuple[Path, Path]:
    stem = path if path.suffix in {".json", ".safetensors"} else path / "policy.json"
    return stem.with_suffix(".json"), stem.with_suffix(".safetensors")


def _tensors(policy: DeployedPolicy) -> dict[str, Tensor]:
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in policy.actor.state_dict().items()}
    if policy.log_std is not None:
        tensors["log_std"] = policy.log_std.cpu().contiguous().clone()
    return tensors


def _description(policy: DeployedPolicy) -> dict[str, Any]:
    actor = policy.actor
    return {
        "cell": policy.cell.config(),
        "dtype": str(next(policy.cell.parameters()).dtype).removeprefix("torch."),
        "linear_head": actor.head.linear is not None,
        "action_scale": actor.head.scale is not None,
        "observation_scale": actor.body.scaling.scale is not None,
        "observation_offset": actor.body.scaling.offset is not None,
        "normalizer_clip": None if actor.normalizer is None else actor.normalizer.clip,
        "log_std": policy.log_std is not None,
        "state_dependent_noise": policy.state_dependent_noise,
        "observation_space": space_to_json(policy.observation_space),
        "action_space": space_to_json(policy.action_space),
        **({"squash": True} if actor.head.squash else {}),
    }


def _build(content: Mapping[str, Any]) -> DeployedPolicy:
    if content["dtype"] not in DTYPES:
        raise UnknownNameError.among("dtype", str(content["dtype"]), DTYPES)
    action_space = space_from_json(content["action_space"])
    cell = cell_from_config(content["cell"])
    size = cell.input_size
    scale, offset = (1.0 if content[key] else None for key in ("observation_scale", "observation_offset"))
    numbers = parameter_count(action_space)
    action_scale = 1.0 if content["action_scale"] else None
    squash = bool(content.get("squash", False))
    head = MeanHead(cell.output_size, numbers, bool(content["linear_head"]), action_scale, squash=squash)
    clip = content["normalizer_clip"]
    actor = Actor(ScaledCell(cell, Scaling(size, scale, offset)), head).to(DTYPES[content["dtype"]])
    if clip is not None:
        actor.normalizer = FrozenNormalizer(torch.zeros(size), torch.ones(size), clip)
    return DeployedPolicy(
        actor,
        space_from_json(content["observation_space"]),
        action_space,
        torch.zeros(numbers) if content["log_std"] else None,
        state_dependent_noise=bool(content["state_dependent_noise"]),
    )


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


def _take(policy: DeployedPolicy, stored: dict[str, Tensor], path: Path) -> None:
    """Put stored weights into a policy that was built to hold them."""
    wanted = _tensors(policy)
    if missing := sorted(set(wanted) - set(stored)):
        raise CorruptFileError(f"{path} lacks {', '.join(missing)}; save the policy again.")
    if extra := sorted(set(stored) - set(wanted)):
        raise CorruptFileError(f"{path} holds {', '.join(extra)}, which the policy does not have; save it again.")
    for name, tensor in stored.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            raise ShapeError(
                f"{name} in {path} is {tensor.dtype} {tuple(tensor.shape)}; expected {wanted[name].dtype} "
                f"{tuple(wanted[name].shape)} as the json describes. Save the policy again."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{name} in {path} holds NaN or infinite values; save a policy that has not diverged.")
    if policy.log_std is not None:
        policy.log_std = stored.pop("log_std")
    policy.actor.load_state_dict(stored)


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
