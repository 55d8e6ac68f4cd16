"""The folder of an exported policy: its files, the certificate of exactly these, and what they are off by."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from robust_policies.certificates.certificate import Certificate, not_certified
from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    NotCertifiableError,
    UnknownNameError,
    UserError,
)
from robust_policies.export import parity
from robust_policies.export.c_files import cost_of, header_text, source_text, test_text, vectors_text
from robust_policies.export.numpy_file import numpy_text
from robust_policies.export.onnx_file import check_onnx, onnx_bytes
from robust_policies.export.program import KINDS, Program
from robust_policies.export.proof import exported_certificate, limits_of, units_of
from robust_policies.export.record import record
from robust_policies.files.atomic import atomic_folder, output_folder, write_json
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.storage import (
    certificate_is_of,
    load_policy,
    running_arrays_agree,
    save_policy,
    stored_task,
)
from robust_policies.policies.youla.policy import YoulaPolicy
from robust_policies.runtime import RuntimePolicy, load

FORMATS = ("safetensors", "onnx", "c", "numpy")
SCHEMA = 1
_VECTORS = 200


def export_policy(
    folder: str | Path,
    format: str,
    output: str | Path,
    *,
    dtype: str = "float32",
    env: Callable[[], gymnasium.Env] | None = None,
) -> Path:
    """Return `output` after writing the policy of a folder there, in a form that runs elsewhere.

    Args:
        folder: with policy.json and policy.safetensors.
        format: one of `FORMATS`.
        output: a folder that does not exist, or is empty; whole or not there afterwards.
        dtype: "float32" or "float64", in which the exported program computes; not of safetensors.
        env: makes the environment in which its episodes are compared too; None: they are not.

    Beside the files: certificate.json of exactly the arrays in them, parity.json.

    Raises:
        UnknownNameError: the format or dtype. InvalidValueError: the output is there already, a package is missing, or
        the policy cannot be written so. CorruptFileError: the folder's files do not belong together.
    """
    folder, target = Path(folder), Path(output)
    if format not in FORMATS:
        raise UnknownNameError.among("format", format, FORMATS)
    if dtype not in KINDS:
        raise UnknownNameError.among("dtype", dtype, KINDS)
    if format == "onnx":
        check_onnx()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InvalidValueError(f"{str(target)!r} exists already; choose another folder with -o, or delete it.")
    policy, running = load_policy(folder), None
    source = _certificate(folder, policy)
    try:
        running = load(folder)
    except (InvalidValueError, UnknownNameError):
        # Saved without the arrays that run, or of a cell without a step in NumPy: only the other formats need them.
        if format != "safetensors":
            raise
    with output_folder(target), atomic_folder(target) as made:
        if format == "safetensors":
            save_policy(policy, made, _task(folder))
            source.to_json(made / "certificate.json")
            _copy_search(folder, made, source)
            try:
                running = load(made) if running is None else running
            except UnknownNameError as error:
                write_json(made / "parity.json", {"schema": SCHEMA, "format": format, "ran": f"not run: {error}"})
            else:
                _compare(made, format, None, policy, running, source.gamma_raw, env)
        else:
            assert running is not None
            program = record(running, dtype)
            certificate = exported_certificate(program, policy, source, limits_of(running, units_of(policy)), format)
            certificate.to_json(made / "certificate.json")
            _write(made, format, program, policy, running, certificate)
            _compare(made, format, program, policy, running, certificate.gamma_raw, env)
    return target


def _task(folder: Path) -> dict[str, Any] | None:
    known = stored_task(folder)
    return None if known is None else {"id": known[0], "kwargs": known[1]}


def _certificate(folder: Path, policy: DeployedPolicy) -> Certificate:
    """Return the certificate of the run's arrays: the one in the folder, or what is proven now."""
    if not running_arrays_agree(folder, policy):
        raise CorruptFileError(f"The arrays that run in {folder} are not those of its parameters; save it again.")
    path = folder / "certificate.json"
    if path.is_file():
        stored = Certificate.from_json(path)
        if certificate_is_of(stored, policy):
            return stored
        if stored.status == "PASS":
            raise CorruptFileError(
                f"{path} is of other arrays than policy.safetensors (sha256 differs); run certify {folder} again."
            )
    try:
        return policy.certificate()
    except NotCertifiableError as error:
        return not_certified(str(error), policy.running_arrays())


def _copy_search(folder: Path, made: Path, certificate: Certificate) -> None:
    """Copy what `certify` left that a searched certificate is checked with; names are of the task in the recipe."""
    peak = None if certificate.peak is None else certificate.peak.get("witness")
    beside = ["tightness.json", "proofs.npz", "recipe.yaml"]
    searched = [] if certificate.witness is None else [certificate.witness, *beside]
    for name in [*searched, *([] if peak is None else [str(peak)])]:
        found = folder / Path(name).name
        if found.is_file():
            shutil.copyfile(found, made / found.name)


def _write(
    made: Path,
    format: str,
    program: Program,
    policy: DeployedPolicy,
    running: RuntimePolicy,
    certificate: Certificate,
) -> None:
    about = f"A policy exported by robust-policies: {type(policy.cell).__name__}, {program.dtype}."
    if format == "numpy":
        (made / "policy.py").write_text(numpy_text(program, about))
        return
    if format == "onnx":
        (made / "policy.onnx").write_bytes(onnx_bytes(program, about))
        return
    observations = parity.random_observations(running, units_of(policy))[: _VECTORS // 2, :2]
    # Two episodes, one after the other.
    actions = parity.of_step(program, lambda o, x: program.run(o, x, np.float64)[:2], observations)
    rounded = parity.of_step(program, lambda o, x: program.run(o, x)[:2], observations)
    size = float(np.abs(actions).max(initial=0.0))
    unit = float(np.finfo(program.kind).eps)
    tolerance = 0.25 if program.whole else 4.0 * float(np.abs(actions - rounded).max(initial=0.0)) + 32 * unit * size
    given, expected = (np.concatenate((array[:, 0], array[:, 1])) for array in (observations, actions))
    texts = {
        "policy.h": header_text(program, about),
        "policy.c": source_text(program, about),
        "policy_test.c": test_text(program, len(given)),
        "policy_test_vectors.h": vectors_text(program, given, expected, tolerance),
    }
    for name, text in texts.items():
        (made / name).write_text(text)


def _compare(
    made: Path,
    format: str,
    program: Program | None,
    policy: DeployedPolicy,
    running: RuntimePolicy,
    gamma: float | None,
    env: Callable[[], gymnasium.Env] | None,
) -> None:
    """Write parity.json; raises RobustPoliciesError where what was written does something else."""
    content: dict[str, Any] = {"schema": SCHEMA, "format": format}
    step: parity.Step = running.step
    content["ran"] = "the runtime"
    if program is not None:
        found, ran = parity.running(format, made, program)
        content["ran"] = f"not run: {ran}; its operations were, with NumPy" if found is None else ran
        step = found or (lambda observation, state: program.run(observation, state)[:2])
        content |= {"dtype": program.dtype, "sha256": program.sha256}
        cost = cost_of(program)
        content["cost"] = {
            "state_bytes": cost.state,
            "stack_bytes": cost.stack,
            "constant_bytes": cost.flash,
            "multiply_adds": cost.multiply_adds,
        }
    whole = running.action_space.kind != "Box"
    observations = parity.random_observations(running, units_of(policy))
    expected = parity.of_policy(policy, observations)
    # That of a Youla policy is of its loop.
    gain = None if whole or policy.kind == YoulaPolicy.kind else gamma
    entry = parity.difference(expected, _all(step, program, running, observations), observations, gain)
    content["random"] = entry
    if program is not None:
        parity.check(entry, whole, "random steps")
    content["episodes"] = _episodes(step, program, policy, running, gain, env)
    write_json(made / "parity.json", content)


def _all(step: parity.Step, program: Program | None, running: RuntimePolicy, observations: np.ndarray) -> np.ndarray:
    if program is not None:
        return parity.of_step(program, step, observations)
    state, found = running.initial_state(observations.shape[1]), []
    for observation in observations:
        kind = running._reads or np.float32
        actions, state = running.step(observation.astype(kind), state)
        found.append(np.asarray(actions, dtype=np.float64).reshape(len(observation), -1))
    return np.stack(found)


def _episodes(
    step: parity.Step,
    program: Program | None,
    policy: DeployedPolicy,
    running: RuntimePolicy,
    gamma: float | None,
    env: Callable[[], gymnasium.Env] | None,
) -> Any:
    if env is None:
        return "the folder names no environment"
    try:
        made = env()
    except UserError as error:
        return f"its environment cannot be made: {error}"
    try:
        played = parity.episodes(running, made)
    except UserError as error:
        return f"its environment does not fit the policy: {error}"
    finally:
        made.close()
    found = []
    for observations, _ in played:
        expected = parity.of_policy(policy, observations)
        found.append(parity.difference(expected, _all(step, program, running, observations), observations, gamma))
    return found
