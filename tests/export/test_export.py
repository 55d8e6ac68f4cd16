"""Exported policies do what their policies do: as C, as one NumPy file, as ONNX and as safetensors."""

import ctypes
import hashlib
import json
import runpy
import shutil
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import safetensors.numpy
from export_policies import CELLS, KINDS, saved, small_policy

from robust_policies.certificates import Certificate
from robust_policies.certificates.certificate import array_hashes, not_certified
from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    NotCertifiableError,
    RobustPoliciesError,
    UnknownNameError,
)
from robust_policies.evaluation.certify import certify_run, check_run
from robust_policies.export import export_policy, parity, window
from robust_policies.export import write as writing
from robust_policies.export.onnx_file import TANH_ERROR, onnx_bytes
from robust_policies.export.program import Op, Program
from robust_policies.export.record import record
from robust_policies.policies import load_policy, save_policy
from robust_policies.policies.peak import action_peaks
from robust_policies.runtime import load
from robust_policies.runtime.activations import ACTIVATIONS

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wdouble-promotion", "-Werror", "-ffp-contract=off", "-O2"]
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def compiled(folder, *files, flags=STRICT, compiler="gcc"):
    done = subprocess.run([compiler, *flags, *files, "-lm"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("policies")
    return {kind: saved(kind, base / kind.replace(" ", "_")) for kind in KINDS}


@pytest.fixture
def quick(monkeypatch):
    """Fewer random steps, and nothing is proven: what is looked at are the files."""
    monkeypatch.setattr(parity, "STEPS", 1000)
    monkeypatch.setattr(writing, "exported_certificate", lambda *_: not_certified("this is a test"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_recorded_program_is_what_the_runtime_runs(kind, dtype, folders):
    running = load(folders[kind])
    program = record(running, dtype)
    random, state, own = np.random.default_rng(0), running.initial_state(3), np.zeros((3, record(running).states))
    for _ in range(15):
        seen = random.standard_normal((3, program.observations)).astype(np.float32)
        given = seen if running._reads is None else seen.astype(running._reads)
        action, state = running.step(given, state)
        found, own, _ = program.run(seen, own)
        near = 1e-6 if dtype == "float32" and kind not in ("youla", "normalizer") else 2e-5
        np.testing.assert_allclose(found, action.reshape(3, -1), rtol=0, atol=near)
        np.testing.assert_allclose(own, state, rtol=1e-6, atol=near)


@needs_gcc
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("quick")
def test_c_compiles_without_a_warning_and_passes_its_own_test(kind, folders, tmp_path):
    dtype = "float64" if kind in ("ren", "window") else "float32"
    export_policy(folders[kind], "c", tmp_path / "out", dtype=dtype)
    flags = [flag for flag in STRICT if dtype == "float32" or flag != "-Wdouble-promotion"]
    compiled(tmp_path / "out", "policy.c", "policy_test.c", "-o", "test", flags=flags)
    done = subprocess.run([tmp_path / "out" / "test"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "wrong 0" in done.stdout
    text = (tmp_path / "out" / "policy.c").read_text()
    assert not any(word in text for word in ("malloc", "stdlib", "stdio"))
    content = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert content["sha256"] in text
    assert not content["ran"].startswith("not run")
    if kind != "r2dn":
        return
    # A test that cannot fail is none.
    vectors = tmp_path / "out" / "policy_test_vectors.h"
    small = vectors.read_text()
    wrong = small[: small.rindex("{\n") + 2] + "    9.0" + ("f" if dtype == "float32" else "") + ",\n"
    rest = small[small.rindex("{\n") + 2 :]
    vectors.write_text(wrong + rest[rest.index(",") + 1 :])
    compiled(tmp_path / "out", "policy.c", "policy_test.c", "-o", "test", flags=flags)
    assert subprocess.run([tmp_path / "out" / "test"], capture_output=True).returncode == 1


@pytest.mark.parametrize("kind", ["ren", "mlp", "gru", "window masked", "youla", "choices"])
@pytest.mark.usefixtures("quick")
def test_one_file_of_numpy_alone_acts_as_the_policy(kind, folders, tmp_path):
    export_policy(folders[kind], "numpy", tmp_path / "out")
    script = (
        "import sys, numpy as np, policy; p = policy.Policy(); a, s = p.predict(np.full(policy.OBSERVATIONS, 0.5)); "
        "a, s = p.predict(np.full(policy.OBSERVATIONS, 0.25), s); b, _ = p.predict(np.full((2, policy.OBSERVATIONS), "
        "0.25), np.repeat(s, 2, 0), [True, False]); print(a.shape, b.shape, 'robust_policies' in sys.modules); "
        "np.save('a.npy', a)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "out", capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr
    policy = load_policy(folders[kind])
    if kind in ("choices", "bits"):
        count = policy.action_space.shape[0]
    else:
        _, state = policy.predict(np.full(policy.cell.input_size, 0.5, np.float32))
        expected, _ = policy.predict(np.full(policy.cell.input_size, 0.25, np.float32), state)
        np.testing.assert_allclose(np.load(tmp_path / "out" / "a.npy"), expected, rtol=1e-5, atol=1e-6)
        count = len(expected)
    assert done.stdout.split() == f"({count},) (2, {count}) False".split()


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runs_batches_of_any_size(kind, folders):
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    program = record(load(folders[kind]), "float64" if kind == "gru" else "float32")
    session = runtime.InferenceSession(onnx_bytes(program, "a test"), providers=["CPUExecutionProvider"])
    shapes = {one.name: one.shape for one in (*session.get_inputs(), *session.get_outputs())}
    assert shapes["observation"] == ["batch", program.observations]
    assert (shapes["next_state"], shapes["action"]) == (["batch", program.states], ["batch", program.actions])
    assert session.get_modelmeta().custom_metadata_map["arrays_sha256"] == program.sha256
    random = np.random.default_rng(0)
    for batch in (1, 2, 7):
        state = np.zeros((batch, program.states), program.kind)
        for _ in range(8):
            seen = random.standard_normal((batch, program.observations)).astype(program.kind)
            expected, following, _ = program.run(seen, state)
            action, state = session.run(["action", "next_state"], {"observation": seen, "state": state})
            np.testing.assert_allclose(action, expected, rtol=0, atol=5e-6)
            np.testing.assert_allclose(state, following, rtol=0, atol=2e-5)


def test_the_tanh_of_onnx_stays_within_one_and_near_the_exact_one():
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    program = Program(
        (Op("act", ("observation",), "y", 1, name="tanh"),), {}, 1, 0, "y", "state", "y", 1, False, "float32"
    )
    session = runtime.InferenceSession(onnx_bytes(program, "tanh"), providers=["CPUExecutionProvider"])
    x = np.linspace(-12, 12, 200_001, dtype=np.float32)[:, None]
    found = session.run(["action"], {"observation": x, "state": np.zeros((len(x), 0), np.float32)})[0]
    assert np.abs(found).max() <= 1.0
    assert np.abs(found - np.tanh(x.astype(np.float64))).max() <= TANH_ERROR


@pytest.mark.parametrize("kind", CELLS)
def test_the_certificate_is_of_exactly_the_exported_arrays(kind, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "STEPS", 1000)
    export_policy(folders[kind], "numpy", tmp_path / "out")
    found = Certificate.from_json(tmp_path / "out" / "certificate.json")
    program = record(load(folders[kind]))
    assert found.arrays_sha256 == array_hashes(program.constants)
    if kind in ("lstm", "gru"):
        assert (found.status, found.gamma_raw, found.rounding["bound"]) == ("NOT_CERTIFIED", None, None)
        assert "products of two signals" in found.rounding["reason"]
        return
    source = load_policy(folders[kind]).certificate()
    assert found.status == "PASS"
    if source.gamma_raw is not None:
        # One inequality with a multiplier for each neuron proves no more than the product of factors does.
        near = 1.01 if kind == "nemon" else 1.001  # both searches begin elsewhere
        assert found.gamma_raw is not None and found.gamma_raw <= near * source.gamma_raw
    # No pair of sequences moves the exported program by more.
    random, gain = np.random.default_rng(0), 0.0
    for _ in range(20):
        pair = random.standard_normal((2, 30, 8, 3))
        pair[1] = pair[0] + 0.1 * random.standard_normal((30, 8, 3))
        states, total = [np.zeros((8, program.states))] * 2, 0.0
        for t in range(30):
            ends = [program.run(pair[k, t], states[k], np.float64) for k in (0, 1)]
            states = [end[1] for end in ends]
            total = total + np.square(ends[0][0] - ends[1][0]).sum(1)
        gain = max(gain, float(np.sqrt(total / np.square(pair[0] - pair[1]).sum((0, 2))).max()))
    assert found.gamma_raw is None or 0 < gain <= found.gamma_raw


@pytest.mark.parametrize("kind", ["nemon", "nemon implicit", "convex"])
def test_the_bound_of_every_step_is_of_the_exported_arrays_too(kind, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "STEPS", 100)
    folder, units = tmp_path / "run", np.array([0.5, 1.0, 4.0])
    shutil.copytree(folders[kind], folder)
    bounds, method = action_peaks(load_policy(folder).actor, units)
    peak = {"units": units.tolist(), "gamma": bounds.tolist(), "method": method}
    load_policy(folder).certificate().with_peak(peak).to_json(folder / "certificate.json")
    export_policy(folder, "numpy", tmp_path / "out")
    found, program = Certificate.from_json(tmp_path / "out" / "certificate.json"), record(load(folder))
    assert found.peak["units"] == peak["units"] and "Every step, for ever" in found.claim
    random, states, most = np.random.default_rng(0), [np.zeros((50, program.states))] * 2, 0.0
    for _ in range(60):
        seen = random.standard_normal((50, 3))
        moved = seen + units * np.sign(random.standard_normal((50, 3)))
        ends = [program.run(one, state, np.float64) for one, state in zip((seen, moved), states, strict=True)]
        states, most = [end[1] for end in ends], max(most, float(np.abs(ends[0][0] - ends[1][0]).max()))
    assert 0 < most <= found.peak["gamma"][0]


@pytest.mark.parametrize("kind", ["window", "window masked"])
def test_a_windows_gain_is_proven_of_the_exported_arrays(kind, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "STEPS", 1000)
    export_policy(folders[kind], "numpy", tmp_path / "out")
    found, policy = Certificate.from_json(tmp_path / "out" / "certificate.json"), load_policy(folders[kind])
    program = record(load(folders[kind]))
    assert (found.status, found.arrays_sha256) == ("PASS", array_hashes(program.constants))
    # All steps of a window together know more than the product of factors does.
    assert 0 < found.gamma_raw < policy.certificate().gamma_raw
    assert found.gamma_raw == pytest.approx(found.factors[0].gain * 2.0)
    # The largest change of an action that one window can make, by its singular values: near the bound, not above it.
    random, largest = np.random.default_rng(0), 0.0
    for _ in range(40):
        window = random.uniform(-1, 1, (4, 3)) * [1.0, 1.0, 8.0]
        rows = window[None] + 1e-4 * np.vstack((np.zeros((1, 12)), np.eye(12))).reshape(13, 4, 3)
        state = np.zeros((13, program.states))
        for seen in rows.swapaxes(0, 1):
            action, state, _ = program.run(seen, state, np.float64)
        largest = max(largest, float(np.linalg.norm((action[1:] - action[0]) / 1e-4)))
    assert 0.2 * found.factors[0].gain < largest <= found.factors[0].gain


def test_what_is_not_proven_of_exported_arrays_is_not_said_of_them(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "STEPS", 1000)
    monkeypatch.setattr(window, "MOST_NEURONS", 10)
    export_policy(folders["window"], "numpy", tmp_path / "out")
    found = Certificate.from_json(tmp_path / "out" / "certificate.json")
    assert (found.status, found.gamma_raw) == ("NOT_CERTIFIED", None)
    assert "of at most 10 that are proven together" in found.reason


def test_the_loop_of_an_exported_youla_policy_is_proven_of_the_exported_arrays(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "STEPS", 1000)
    export_policy(folders["youla"], "numpy", tmp_path / "out")
    found, source = Certificate.from_json(tmp_path / "out" / "certificate.json"), load_policy(folders["youla"])
    program = record(load(folders["youla"]))
    assert found.arrays_sha256 == array_hashes(program.constants)
    gain = source.certificate().gamma_raw
    assert found.status == "PASS" and found.gamma_raw is not None and gain is not None
    # Nearly the same loop: rounding of the constants and another search change little.
    assert gain / 1.5 < found.gamma_raw < 1.1 * gain
    assert found.rate is not None and found.rate < 1
    # Two noises, the same start: no difference of performances is larger than the bound.
    model, design = source.model, source.design
    random, steps = np.random.default_rng(0), 200
    scale = [np.linalg.cholesky(part + 1e-15 * np.eye(len(part))) for part in (design.W, design.V)]
    weight = [np.linalg.cholesky(part + 1e-15 * np.eye(len(part))).T for part in (design.Q, design.R)]
    noise = 1e-3 * random.standard_normal((2, steps, model.n + model.p))
    performances = []
    for drawn in noise:
        x, state, waiting, z = np.zeros(model.n), np.zeros((1, program.states)), [np.zeros(model.m)] * 2, []
        for d in drawn:
            y = model.C @ x + scale[1] @ d[model.n :]
            action, state, _ = program.run(y[None], state, np.float64)
            z.append(np.concatenate((weight[0] @ x, weight[1] @ waiting[0])))
            x = model.A @ x + model.B @ waiting[0] + scale[0] @ d[: model.n]
            waiting = [*waiting[1:], action[0]]
        performances.append(np.array(z))
    assert (
        0 < np.linalg.norm(performances[0] - performances[1]) <= found.gamma_raw * np.linalg.norm(noise[0] - noise[1])
    )


@needs_gcc
def test_c_and_numpy_equal_torch_over_ten_thousand_steps(folders, tmp_path):
    for format in ("c", "numpy"):
        export_policy(folders["r2dn"], format, tmp_path / format, env=lambda: gymnasium.make("Pendulum-v1"))
        content = json.loads((tmp_path / format / "parity.json").read_text())
        for entry in (content["random"], *content["episodes"]):
            assert 0 <= entry["largest_difference"] <= entry["two_ulp_by_gain"]
        assert content["random"]["steps"] == 10_000
        assert [entry["steps"] for entry in content["episodes"]] == [200, 200]


@needs_gcc
@pytest.mark.usefixtures("quick")
def test_c_in_the_loop_of_gymnasiums_pendulum_gives_the_same_return(folders, tmp_path):
    export_policy(folders["r2dn"], "c", tmp_path / "out")
    library = parity.shared_library(tmp_path / "out", tmp_path / "policy.so")
    program, policy = record(load(folders["r2dn"])), load_policy(folders["r2dn"])
    number = ctypes.c_float
    struct, action = (number * program.states)(), (number * program.actions)()
    returns = []
    for by_c in (True, False):
        env = gymnasium.make("Pendulum-v1")
        (observation, _), state, total, done = env.reset(seed=3), None, 0.0, False
        library.policy_reset(struct)
        while not done:
            if by_c:
                library.policy_step(struct, (number * 3)(*observation), action)
                sent = np.array(action, np.float32)
            else:
                sent, state = policy.predict(observation, state)
            observation, reward, terminated, truncated, _ = env.step(sent)
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    assert returns[0] == pytest.approx(returns[1], abs=1e-2)


@needs_gcc
@pytest.mark.usefixtures("quick")
def test_a_youla_policy_in_c_gives_its_own_tasks_return(folders, tmp_path):
    export_policy(folders["youla"], "c", tmp_path / "out")
    step = parity.library_step(
        parity.shared_library(tmp_path / "out", tmp_path / "policy.so"), record(load(folders["youla"]))
    )
    program, policy = record(load(folders["youla"])), load_policy(folders["youla"])
    returns = []
    for by_c in (True, False):
        env = gymnasium.make("robust_policies/MassSpringDamper-v0")
        (observation, _), total, done = env.reset(seed=3), 0.0, False
        state = np.zeros((1, program.states), np.float32) if by_c else None
        while not done:
            if by_c:
                action, state = step(np.asarray(observation, np.float32)[None], state)
                action = action[0]
            else:
                action, state = policy.predict(observation, state)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    assert returns[0] < 0
    assert returns[0] == pytest.approx(returns[1], rel=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None or shutil.which("gcc") is None, reason="gcc and g++ are not installed")
@pytest.mark.usefixtures("quick")
def test_a_main_in_cpp_calls_the_files_in_c(folders, tmp_path):
    export_policy(folders["r2dn tanh"], "c", tmp_path / "out")
    (tmp_path / "out" / "main.cpp").write_text(
        '#include "policy.h"\n#include <cstdio>\n#include <vector>\n'
        "int main() {\n    policy_state state;\n    policy_reset(&state);\n"
        "    std::vector<float> seen(POLICY_OBSERVATIONS, 0.5f), action(POLICY_ACTIONS);\n"
        '    policy_step(&state, seen.data(), action.data());\n    std::printf("%.9g\\n", action[0]);\n}\n'
    )
    compiled(tmp_path / "out", "-c", "policy.c", "-o", "policy.o")
    compiled(tmp_path / "out", "-std=c++11", "-Wall", "main.cpp", "policy.o", "-o", "main", flags=[], compiler="g++")
    done = subprocess.run([tmp_path / "out" / "main"], capture_output=True, text=True, check=True)
    expected, _ = load_policy(folders["r2dn tanh"]).predict(np.full(3, 0.5, np.float32))
    assert float(done.stdout) == pytest.approx(float(expected[0]), abs=1e-6)


def test_a_certificate_in_the_folder_is_used(folders, tmp_path):
    run = shutil.copytree(folders["r2dn"], tmp_path / "run")
    source = load_policy(run).certificate()
    source.with_search(0.01, None).to_json(run / "certificate.json")
    export_policy(run, "safetensors", tmp_path / "out")
    assert Certificate.from_json(tmp_path / "out" / "certificate.json").empirical_lower == 0.01


def test_safetensors_is_the_policy_itself(folders, tmp_path):
    export_policy(folders["gru"], "safetensors", tmp_path / "out")
    policy, found = load_policy(folders["gru"]), load_policy(tmp_path / "out")
    seen = np.full(3, 0.3, np.float32)
    assert np.array_equal(policy.predict(seen)[0], found.predict(seen)[0])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "policy.json", "policy.safetensors", "certificate.json", "parity.json",
    }  # fmt: skip


def test_safetensors_of_a_certified_folder_can_be_checked(folders, tmp_path):
    run = shutil.copytree(folders["r2dn"], tmp_path / "run")
    recipe = {"task": {"id": "robust_policies/Pendulum-v0"}, "algorithm": {"total_steps": 1}}
    recipe["policy"] = {"cell": "r2dn", **CELLS["r2dn"][1]}
    (run / "recipe.yaml").write_text(json.dumps({"schema": 1, **recipe}))
    export_policy(run, "safetensors", tmp_path / "before")
    certified = certify_run(run, steps=5)
    export_policy(run, "safetensors", tmp_path / "after")
    assert check_run(tmp_path / "before") == check_run(tmp_path / "after") == []
    assert Certificate.from_json(tmp_path / "after" / "certificate.json") == certified
    assert certified.witness is not None and (tmp_path / "after" / certified.witness).is_file()


@pytest.mark.usefixtures("quick")
def test_the_numpy_file_says_what_is_wrong_with_an_observation(folders, tmp_path):
    export_policy(folders["mlp"], "numpy", tmp_path / "out")
    policy = runpy.run_path(str(tmp_path / "out" / "policy.py"))["Policy"]()
    with pytest.raises(ValueError, match=r"observation has shape \(4,\); expected \(3,\) or \(n, 3\)"):
        policy.predict(np.zeros(4))
    with pytest.raises(ValueError, match="numbers that are not finite"):
        policy.predict(np.array([0.0, np.nan, 0.0]))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["r2dn", "youla", "gru"])
def test_a_folder_that_certify_has_judged_is_exported(kind, folders, tmp_path):
    run = shutil.copytree(folders[kind], tmp_path / "run")
    policy = load_policy(run)
    try:
        certificate = policy.certificate()
    except NotCertifiableError as error:
        certificate = not_certified(str(error), policy.running_arrays())
    certificate.to_json(run / "certificate.json")
    export_policy(run, "numpy", tmp_path / "out")
    assert (tmp_path / "out" / "certificate.json").is_file()


def test_wrong_input_is_one_line_and_leaves_nothing(folders, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(UnknownNameError, match=r"Unknown format 'onx'. Did you mean 'onnx'\?"):
        export_policy(folders["r2dn"], "onx", out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(InvalidValueError, match="exists already; choose another folder with -o"):
        export_policy(folders["r2dn"], "c", tmp_path / "full")
    edited = shutil.copytree(folders["r2dn"], tmp_path / "edited")
    content = json.loads((edited / "policy.json").read_text())
    weights = bytearray((edited / "policy.safetensors").read_bytes())
    # More than the rounding of another processor.
    weights[-2] ^= 0x20
    (edited / "policy.safetensors").write_bytes(weights)
    with pytest.raises(CorruptFileError, match="sha256 differs"):
        export_policy(edited, "c", out)
    # With the hash made to fit it is still another policy than the one that was certified.
    tensors = safetensors.numpy.load_file(folders["r2dn"] / "policy.safetensors")
    tensors["head.linear.weight"] = 2.0 * tensors["head.linear.weight"]
    written = safetensors.numpy.save(tensors)
    (edited / "policy.safetensors").write_bytes(written)
    content["weights"]["sha256"] = hashlib.sha256(written).hexdigest()
    (edited / "policy.json").write_text(json.dumps(content))
    load_policy(folders["r2dn"]).certificate().to_json(edited / "certificate.json")
    with pytest.raises(CorruptFileError, match=r"is of other arrays than policy\.safetensors"):
        export_policy(edited, "c", out)
    # And with arrays that do not follow from its parameters.
    tensors["runtime.A"] = tensors["runtime.A"] + 0.1
    written = safetensors.numpy.save(tensors)
    (edited / "policy.safetensors").write_bytes(written)
    content["weights"]["sha256"] = hashlib.sha256(written).hexdigest()
    (edited / "policy.json").write_text(json.dumps(content))
    with pytest.raises(CorruptFileError, match="are not those of its parameters"):
        export_policy(edited, "c", out)
    monkeypatch.setattr(writing, "source_text", lambda program, about: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_policy(folders["r2dn"], "c", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited", "full"]


@pytest.mark.usefixtures("quick")
def test_an_export_that_does_something_else_is_not_written(folders, tmp_path, monkeypatch):
    true = writing.numpy_text

    def wrong(program, about):
        return true(program, about).replace(f"return {program.action},", f"return {program.action} + 0.1,")

    monkeypatch.setattr(writing, "numpy_text", wrong)
    with pytest.raises(RobustPoliciesError, match=r"is off by 0\.1"):
        export_policy(folders["r2dn"], "numpy", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@needs_gcc
def test_every_activation_in_c_is_the_one_that_is_certified(tmp_path):
    x = np.linspace(-25, 25, 2001, dtype=np.float32)
    for name in ACTIVATIONS:
        width = 2 if name == "maxmin" else 1
        ops = (Op("act", ("observation",), "y", width, name=name),)
        if name == "identity":
            continue
        program = Program(ops, {}, width, 0, "y", "state", "y", width, False, "float32")
        folder = tmp_path / name
        folder.mkdir()
        (folder / "policy.h").write_text(writing.header_text(program, name))
        (folder / "policy.c").write_text(writing.source_text(program, name))
        step = parity.library_step(parity.shared_library(folder, folder / "policy.so"), program)
        seen = np.stack([x, x[::-1]], 1)[:, :width]
        found, _ = step(seen, np.zeros((len(x), 0), np.float32))
        exact = ACTIVATIONS[name](seen.astype(np.float64))
        assert np.abs(found - exact).max() <= 4 * 2.0**-23 * max(1.0, np.abs(exact).max())


def test_images_are_refused():
    class Camera:
        kind, shape, dtype, size = "Box", (64, 64, 3), np.dtype(np.uint8), 12288

    class Seen:
        observation_space = type("Space", (), {"parts": {"camera": Camera()}})()

    with pytest.raises(
        InvalidValueError, match=r"Entry 'camera' of the observation is an image of shape \(64, 64, 3\)"
    ):
        record(Seen())


@pytest.mark.usefixtures("quick")
def test_the_policy_saved_again_is_exported(tmp_path):
    save_policy(small_policy("mlp softplus"), tmp_path / "run")
    (tmp_path / "out").mkdir()
    assert export_policy(tmp_path / "run", "numpy", tmp_path / "out") == tmp_path / "out"
