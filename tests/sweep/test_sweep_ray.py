"""Sweeps on a Ray cluster that runs on this machine."""

import importlib.util
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from in_process import one_line
from sweep_command import begin, parent, rows, sweep, trial_process, wait_for

from robust_policies.errors import InvalidValueError
from robust_policies.sweep import ray_pool

# Looked for and not imported: Ray takes a second, of every process that collects the tests.
HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed (extra sweep)")


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the worker in /proc")
@pytest.mark.parametrize("others", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_a_worker_that_dies_fails_its_trial_alone_and_the_sweep_goes_on_without_ray(others, tmp_path):
    folder = tmp_path / "sweep"
    options = ["algorithm.total_steps=2000", "--seeds", f"0-{others}", "--no-evaluate", "-o", folder, "--jobs", 2]
    process = begin(*options, "--address", "local")
    log = folder / "logs" / "seed=0.log"
    wait_for(lambda: (folder / "trials" / "seed=0" / "recipe.yaml").is_file(), process)
    os.kill(parent(trial_process(log)), signal.SIGKILL)
    out, errors = process.communicate(timeout=900)
    assert process.returncode == 1, errors
    table = rows(folder)
    assert [row["status"] for row in table.values()] == ["failed", *["done"] * others], out + errors
    assert "its Ray worker died" in table["seed=0"]["reason"]
    done = sweep(*options, "--resume")
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in rows(folder).values()] == ["done"] * (1 + others)


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", *(pytest.param(other, marks=pytest.mark.soak) for other in ("ray://127.0.0.1:1", "nonsense"))],
)
def test_no_cluster_is_one_line_and_nothing_is_written(address, tmp_path):
    line = one_line(sweep("--address", address, cwd=tmp_path))
    assert f"No Ray cluster answers at --address {address}" in line
    assert "--jobs" in line or "leave --address out" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_it_says_how_to_get_it(tmp_path):
    assert "pip install 'robust-policies[sweep]'" in one_line(sweep("--address", "auto", cwd=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_cluster_that_does_not_begin_here_is_one_line(monkeypatch):
    def init(**_):
        raise Exception("The current node timed out during startup.\nThis could happen")

    monkeypatch.setattr(ray_pool, "import_ray", lambda: SimpleNamespace(init=init))
    with pytest.raises(InvalidValueError, match=r"Ray did not begin on this machine .*timed out") as caught:
        ray_pool.connected("local")
    assert "\n" not in str(caught.value)
