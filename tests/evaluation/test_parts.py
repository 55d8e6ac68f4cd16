"""An evaluation whose parts others measure has the numbers of one that is measured here, and goes on where it was."""

import importlib.util
import json
import shutil
from functools import partial

import pytest
import torch
import yaml
from in_process import answer, one_line
from tiny import OURS, tiny_folder, tiny_policy, tiny_suite

from robust_policies.errors import InvalidValueError
from robust_policies.evaluation import certify_run, evaluate_run
from robust_policies.evaluation.parts import measure_apart, measured_part
from robust_policies.policies import save_policy
from robust_policies.train import RunFolder

SUITE = tiny_suite(critical={"attacks": ["mad_pgd"], "tolerance": 0.2})


def elsewhere(function, items, fails=()):
    """Call a function with data that has been on a wire, the last item first."""
    for place, data in reversed([*enumerate(items)]):
        if data["job"] not in fails:
            yield place, json.loads(json.dumps(function(json.loads(json.dumps(data)))))


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("here") / "run")
    evaluate_run(folder, suite=SUITE, tasks=[OURS])
    return folder


def numbers(folder):
    found = json.loads((folder / "evaluation.json").read_text())
    return {name: value for name, value in found.items() if name not in ("seconds", "versions")}


def copy_of(here, folder):
    shutil.copytree(here, folder)
    for name in ("evaluation.json", "evaluation.csv", "trajectories.npz"):
        (folder / name).unlink()
    return folder


def test_parts_measured_elsewhere_have_the_numbers_of_those_measured_here(here, tmp_path):
    folder, known, called = copy_of(here, tmp_path / "run"), [], []
    options = {"suite": SUITE, "tasks": [OURS]}

    def spread(function, items):
        called.extend(data["job"] for data in items)
        return elsewhere(function, items, fails=("l2",))

    asked = [(folder, options), (tmp_path / "none", options)]
    spent = measure_apart(asked, spread, lambda done, all_: known.append((done, all_)))
    assert spent.keys() == {folder} and spent[folder] > 0
    assert called[0] == "nominal" and called[-1].startswith("critical size, mad_pgd")
    assert known[-1] == (len(called) - 1, len(called))
    kept = [json.loads(line)["job"] for line in RunFolder(folder).journal.read_text().splitlines()[1:]]
    assert len(kept) == len(called) - 1 and f"{OURS} l2" not in kept
    # Interrupted and begun again, only what is missing is asked for.
    again = []
    measure_apart([(folder, options)], lambda function, items: iter(again.extend(items) or ()), lambda *_: None)
    assert [data["job"] for data in again] == ["l2"]
    found = evaluate_run(folder, **options, spent=1000.0)
    assert found["seconds"] >= 1000.0
    assert numbers(folder) == numbers(here)
    assert (folder / "evaluation.csv").read_bytes() == (here / "evaluation.csv").read_bytes()


def test_a_part_is_not_measured_of_another_policy(here, tmp_path):
    folder, seen = copy_of(here, tmp_path / "run"), []
    measure_apart([(folder, {"suite": SUITE})], lambda function, items: iter(seen.extend(items) or ()), lambda *_: None)
    other = tiny_policy()
    with torch.no_grad():
        next(other.actor.parameters()).add_(0.1)
    save_policy(other, folder)
    with pytest.raises(InvalidValueError, match="holds another policy on this machine; expected a shared folder"):
        measured_part(seen[0])


def test_a_cluster_certifies_as_this_machine_does_and_what_is_certified_can_stay(here, tmp_path, monkeypatch):
    folders = [copy_of(here, tmp_path / name) for name in ("a", "b")]
    monkeypatch.setattr("robust_policies.evaluation.certify_run", partial(certify_run, steps=2))
    monkeypatch.setattr("robust_policies.sweep.ray_parts.RayParts", Cluster)
    done = answer("certify", *folders, "--address", "auto", "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert [line.partition(": ")[0] for line in done.stdout.splitlines() if "PASS" in line] == [*map(str, folders)][
        ::-1
    ]
    alone = answer("certify", folders[1])
    assert f"{folders[1]}: {alone.stdout.splitlines()[0]}" in done.stdout
    texts = [(folder / "certificate.json").read_text() for folder in folders]
    assert texts[0] == texts[1]
    (folders[1] / "certificate.json").unlink()
    assert answer("certify", *folders, "--resume").stdout.count("has its certificate.") == 1
    assert (folders[1] / "certificate.json").read_text() == texts[0]


class Cluster:
    """In the place of Ray: one part is lost with its machine."""

    def __init__(self, address, slots):
        assert (address, slots) == ("auto", 2)

    def __call__(self, function, items):
        for place in range(len(items) - 1, 0, -1):
            yield place, function(items[place])

    def close(self):
        pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--jobs", "2"], "--jobs was given without --address"),
        (["--check", "--address", "auto"], "--address was given with --check, which is done here."),
        (["--return", "--resume"], "--resume was given with --return; it is for certificate.json"),
    ],
)
def test_options_of_certify_that_do_not_go_together_are_one_line(options, said, here):
    assert said in one_line(answer("certify", here, *options))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra sweep)")
def test_a_cluster_of_ray_measures_the_parts(here, tmp_path):
    folder, suite = copy_of(here, tmp_path / "run"), tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump(SUITE.resolved()))
    done = answer("evaluate", folder, "--suite", suite, "--task", OURS, "--address", "local", "--jobs", 2)
    assert done.returncode == 0, done.stderr
    found, expected = numbers(folder), numbers(here)
    assert {**found, "suite": ""} == {**expected, "suite": ""}
