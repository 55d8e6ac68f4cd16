"""benchmarks/gpu.py runs through, at sizes that measure nothing."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("envs", "mujoco", "cells", "training", "attacks")


def ran(*arguments):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)


def numbers(value):
    """Return all numbers of JSON data."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [number for one in inner for number in numbers(one)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_part_runs_and_is_written(tmp_path):
    done = ran("--device", "cpu", "--tiny", "--output", str(tmp_path / "gpu.json"), "--parts", *PARTS)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["tiny"] and found["device"] == "cpu"
    for name in PARTS:
        assert found[name]["rows"] and found[name]["seconds"] >= 0
        assert all(number > 0 for row in found[name]["rows"] for number in numbers(row) if number is not None)
    # Of all that could not run the reason is that there is no GPU.
    said = [value["skipped"] for part in PARTS for row in found[part]["rows"] for value in row.values()
            if isinstance(value, dict) and "skipped" in value]  # fmt: skip
    assert set(said) == {"a CUDA graph needs a CUDA device", "MuJoCo-Warp runs on a CUDA device"}


def beside_jax(path):
    """Return what stands in the file of the part that compares cells with JAX's."""
    done = ran("--device", "cpu", "--tiny", "--output", str(path / "gpu.json"), "--parts", "jax_cells")
    assert done.returncode == 0, done.stderr
    return json.loads((path / "gpu.json").read_text())["jax_cells"]


JAX_MISSING = importlib.util.find_spec("jax") is None


@pytest.mark.skipif(JAX_MISSING, reason="jax is not installed (the extra `peers`)")
def test_cells_are_timed_beside_jax(tmp_path):
    (row,) = beside_jax(tmp_path)["rows"]
    assert all(row[key] > 0 for key in ("r2dn_ms", "jax_ms", "jax_ratio_to_r2dn", "jax_compile_seconds"))
    assert (row["name"], row["time"], row["batch"], row["platform"]) == ("tiny", 4, 2, "cpu")


@pytest.mark.skipif(not JAX_MISSING, reason="jax is installed")
def test_without_jax_the_part_says_so(tmp_path):
    found = beside_jax(tmp_path)
    assert found["skipped"] == "jax is not installed (the extra `peers`)" and "rows" not in found


LATE = """
import json, time, torch, gpu
gpu.LIMITS["attacks"], began = 1, time.monotonic()
gpu.PARTS["attacks"] = lambda device, tiny: [gpu.tried(lambda: 1), *(gpu.tried(lambda: time.sleep(60)) for _ in "ab")]
found = gpu.part("attacks", torch.device("cpu"), True), gpu.tried(lambda: 2), time.monotonic() - began
print(json.dumps(found))
"""


def test_a_part_ends_with_its_time_and_keeps_what_it_has():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))}
    done = subprocess.run([sys.executable, "-c", LATE], env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    found, after, seconds = json.loads(done.stdout)
    late = {"skipped": "its time was over"}
    assert found["rows"] == [1, late, late] and after == 2 and seconds < 30
