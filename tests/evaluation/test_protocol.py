"""The protocol: tables, common random numbers, tuning apart from reporting, what fails, and what is interrupted."""

import csv
import json
import signal
import time

import gymnasium
import numpy as np
import pytest
from forked import begin
from tiny import OURS, SUITE, tiny_folder, tiny_policy, tiny_suite

from robust_policies.cli import main
from robust_policies.envs import incidents
from robust_policies.errors import DivergedError, InvalidValueError
from robust_policies.evaluation import evaluate_run
from robust_policies.evaluation.faults import measure_nominal
from robust_policies.evaluation.journal import Journal
from robust_policies.evaluation.table import COLUMNS, worst_rows
from robust_policies.evaluation.tuning import Choice, bracket, choose
from robust_policies.files.lock import held
from robust_policies.policies import save_policy
from robust_policies.policies.actor import Scaling
from robust_policies.train import RunFolder


class EarlyEnd(gymnasium.Env):
    """Ends after 2 to 4 steps, by the seed; the reward of some seeds is not a number."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,))

    def __init__(self, broken=False):
        self.broken, self.left, self.seed = broken, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed = seed or 0
        self.left = 2 + self.seed % 3
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.left -= 1
        reward = float("nan") if self.broken and self.seed % 3 == 1 else -1.0
        return np.zeros(3, np.float32), reward, self.left == 0, False, {}


for name, options in (("EarlyEnd-v0", {}), ("BrokenEnd-v0", {"broken": True})):
    gymnasium.register(f"protocol/{name}", EarlyEnd, kwargs=options, disable_env_checker=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("runs") / "gamma=4_seed=7")


@pytest.fixture(scope="module")
def content(folder):
    evaluate_run(folder, suite=tiny_suite(), tasks=[OURS])
    return json.loads((folder / "evaluation.json").read_text())


def rows_of(content, **wanted):
    return [row for row in content["rows"] if all(row[key] == value for key, value in wanted.items())]


def test_the_evaluation_names_method_seed_suite_and_everything_measured(content):
    assert (content["schema"], content["method"], content["training_seed"]) == (2, "gamma=4", 7)
    assert content["suite_resolved"]["attacks"][1]["label"] == "ball" and not content["failures"]
    conditions = {"noise": 3, "attack": 6, "fault": 2, "disturbance": 2, "parameter": 4}
    for group, count in conditions.items():
        assert len(rows_of(content, group=group)) == count * 2
    for row in content["rows"]:
        assert len(row["returns"]) == len(row["lengths"]) == row["episodes"] == 3
        assert row["low"] <= row["mean"] <= row["high"] and row["mean"] == pytest.approx(np.mean(row["returns"]))
    for row in rows_of(content, group="noise") + rows_of(content, perturbation="mad_pgd", attack="mad_pgd"):
        assert (row["deviation"] is None) == (row["size"] == 0.0)
        assert row["deviation"] is None or 0 < row["deviation"] <= row["measured_gain"] * (1 + 1e-9)
    assert all(row["deviation"] is None for row in rows_of(content, group="fault"))


def test_the_csv_has_one_line_an_episode(folder, content):
    with (folder / "evaluation.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS and len(lines) == sum(row["episodes"] for row in content["rows"])
    first = content["rows"][0]
    assert [float(line["return"]) for line in lines[:3]] == first["returns"]
    assert {line["method"] for line in lines} == {"gamma=4"} and {line["training_seed"] for line in lines} == {"7"}
    assert any(line["point"] == "mass=0.8 length=1" for line in lines)


def test_episodes_are_the_same_under_every_perturbation(content):
    for seed in (0, 1):
        nominal = rows_of(content, perturbation="l2", size=0.0, seed=seed)[0]["returns"]
        for wanted in (
            {"perturbation": "mad_pgd", "size": 0.0},
            {"perturbation": "ball", "size": 0.0},
            {"perturbation": "ObservationDelay", "size": 0.0},
            {"perturbation": "ForceDisturbance", "size": 0.0},
            {"point": {"mass": 1.0, "length": 1.0}},
        ):
            (row,) = rows_of(content, seed=seed, **wanted)
            assert np.allclose(row["returns"], nominal, rtol=1e-5)


def test_what_went_wrong_in_the_simulation_is_among_the_failures(tmp_path, monkeypatch):
    def wrong(bench):
        incidents.report("no room for contacts")
        return measure_nominal(bench)

    monkeypatch.setattr("robust_policies.evaluation.run.measure_nominal", wrong)
    suite = tiny_suite(noise=[], attacks=[], faults=[], parameters=[], disturbances=[])
    with pytest.warns(UserWarning, match="no room"):
        content = evaluate_run(tiny_folder(tmp_path / "run"), suite=suite, tasks=[OURS])
    assert content["failures"] == [{"task": OURS, "perturbation": "nominal", "reason": "no room for contacts"}]
    assert content["rows"]


def test_attacks_are_tuned_on_other_episodes_and_the_worst_is_reported(content):
    assert {one["size"] for one in content["tuning"]} == {0.1, 0.4}
    for one in content["tuning"]:
        assert one["seeds"] == [1000] and not set(one["seeds"]) & set(content["seeds"])
        assert one["mean"] <= one["nominal"] and 0.0 <= one["chosen"]["size"] <= one["size"]
    assert len(content["worst"]) == 2
    for one in content["worst"]:
        means = {t["perturbation"]: t["mean"] for t in content["tuning"] if t["size"] == one["size"]}
        assert one["attack"] == min(means, key=means.get)
        reported = rows_of(content, perturbation=one["attack"], size=one["size"])
        assert one["returns"] == [value for row in reported for value in row["returns"]]


def test_trajectories_are_kept_of_the_nominal_and_the_worst_episodes(folder, content):
    index = content["trajectories"]
    assert (index[0]["perturbation"], index[0]["size"]) == ("none", 0.0) and len(index) == 3
    with np.load(folder / "trajectories.npz", allow_pickle=False) as arrays:
        for one in index:
            key = one["key"]
            assert arrays[f"{key}_observations"].shape == arrays[f"{key}_perturbed"].shape == (40, 2, 3)
            assert arrays[f"{key}_actions"].shape == (40, 2, 1)
            (row,) = rows_of(content, seed=0, size=one["size"], perturbation=one["perturbation"].replace("none", "l2"))
            assert np.allclose(arrays[f"{key}_rewards"].sum(axis=0), row["returns"][:2], rtol=1e-4)


def test_an_attacker_chooses_by_tuning_means_and_may_do_less_or_nothing():
    nan = float("nan")
    assert choose([[-5.0, -9.0, -7.0]], -1.0) == [Choice(0, 0, -5.0), Choice(0, 1, -9.0), Choice(0, 1, -9.0)]
    assert choose([[-5.0, -6.0], [-4.0, -8.0]], -1.0) == [Choice(0, 0, -5.0), Choice(1, 1, -8.0)]
    assert choose([[0.0, nan]], -1.0) == [Choice(-1, -1, -1.0)] * 2
    assert choose([[-5.0, -5.0]], -1.0)[1].index == 1


def test_the_worst_attack_is_not_chosen_on_what_is_reported():
    labels = {"norm": "n", "size": 1.0, "group": "attack", "unit": ""}
    rows = [{**labels, "perturbation": "a", "returns": [-1.0]}, {**labels, "perturbation": "b", "returns": [-9.0]}]
    tuning = [{**labels, "perturbation": "a", "mean": -5.0}, {**labels, "perturbation": "b", "mean": -4.0}]
    (worst,) = worst_rows("task", rows, tuning)
    assert worst["attack"] == "a" and worst["mean"] == -1.0
    (other,) = worst_rows("task", rows[1:], tuning)
    assert other["attack"] == "b"


@pytest.mark.parametrize("points", [1, 3, 7])
def test_the_critical_size_is_bracketed(points):
    asked = []

    def mean_returns(sizes):
        asked.extend(sizes)
        return [-100.0 * size for size in sizes]

    low, high, evaluations = bracket(mean_returns, -12.3, 0.0, 0.3, 0.01, points)
    assert low <= 0.123 < high and high - low <= 0.01 and evaluations == len(asked)
    assert len(asked) == 5 if points == 1 else len(asked) < 15
    low, high, _ = bracket(lambda sizes: [float("nan")] * len(sizes), -1.0, 0.0, 1.0, 0.1, points)
    assert low == 0.0 and high <= 0.1


def test_the_size_that_leaves_a_share_of_the_return(tmp_path):
    tiny_folder(tmp_path)
    options = {"noise": [], "faults": [], "parameters": [], "disturbances": [], "record": 0, "seeds": [0]}
    attack = {"name": "closed_loop_pgd", "steps": 2, "window": 10, "replan": 10, "restarts": 1}
    critical = {"attacks": ["closed_loop_pgd"], "level": 0.999, "tolerance": 0.1}
    suite = tiny_suite(**options, attacks=[attack], sizes=[0.5, 3.0], critical=critical)
    content = evaluate_run(tmp_path, suite=suite, tasks=[OURS])
    (found,) = content["critical_sizes"]
    assert found["threshold"] == pytest.approx(found["nominal"] - 0.001 * abs(found["nominal"]))
    assert found["size"] is not None and found["low"] < found["size"] < found["high"]
    assert found["high"] - found["low"] <= 0.3 + 1e-9
    beyond = suite.changed(critical={**critical, "level": 0.01})
    (found,) = evaluate_run(tmp_path, suite=beyond, tasks=[OURS])["critical_sizes"]
    assert found["size"] is None and found["low"] == 3.0 and found["high"] is None


def test_episodes_that_end_early_count_with_their_lengths(tmp_path):
    tiny_folder(tmp_path)
    suite = tiny_suite(parameters=[], disturbances=[])
    content = evaluate_run(tmp_path, suite=suite, tasks=["protocol/EarlyEnd-v0"])
    (row,) = rows_of(content, perturbation="l2", size=0.4, seed=0)
    assert row["lengths"] == [2, 3, 4] and row["returns"] == [-2.0, -3.0, -4.0]


def test_broken_episodes_are_named_and_kept_in_the_csv_and_the_rest_is_reported(tmp_path):
    tiny_folder(tmp_path)
    suite = tiny_suite(parameters=[], disturbances=[])
    content = evaluate_run(tmp_path, suite=suite, tasks=[OURS, "protocol/BrokenEnd-v0", "protocol/None-v0"])
    assert {row["task"] for row in content["rows"]} >= {OURS}
    reasons = {(failure["task"], failure["reason"][:31]) for failure in content["failures"]}
    assert ("protocol/BrokenEnd-v0", "2 of 6 episodes gave NaN or inf") in reasons
    assert any(task == "protocol/None-v0" for task, _ in reasons)
    with (tmp_path / "evaluation.csv").open(newline="") as file:
        broken = [line for line in csv.DictReader(file) if line["task"] == "protocol/BrokenEnd-v0"]
    nominal = [line for line in broken if line["perturbation"] == "l2" and line["size"] == "0.0"]
    assert len(nominal) == 6 and sum(line["return"] == "" for line in nominal) == 2
    assert not RunFolder(tmp_path).journal.exists()


def test_a_policy_that_gives_nan_leaves_what_was_there(tmp_path):
    broken = tiny_policy()
    # Finite numbers, whose quotient is not.
    broken.actor.body.scaling = Scaling(3, [1e-3] * 3, [3e38] * 3)
    save_policy(broken, tmp_path)
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(DivergedError, match="NaN"):
        evaluate_run(tmp_path, suite=tiny_suite(), tasks=[OURS])
    assert (tmp_path / "evaluation.json").read_text() == "{}"


def same(first, second):
    timeless = [{key: value for key, value in content.items() if key != "seconds"} for content in (first, second)]
    return timeless[0] == timeless[1]


def evaluated(folder):
    evaluate_run(folder, suite=tiny_suite(), tasks=[OURS])


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path, content):
    folder = tiny_folder(tmp_path / "gamma=4_seed=7")
    process = begin(evaluated, folder)
    partial = RunFolder(folder).journal
    until = time.monotonic() + 900
    while time.monotonic() < until and (not partial.is_file() or len(partial.read_bytes().splitlines()) < 3):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (folder / "evaluation.json").exists()
    before = partial.read_bytes().splitlines()
    # Half a line, as a write that was cut off leaves it.
    with partial.open("ab") as file:
        file.write(b'{"job": "unfin')
    seen = []

    def progress(done, text):
        if done < 1.0:
            seen.append((text, len(partial.read_bytes().splitlines())))

    again = evaluate_run(folder, suite=tiny_suite(), tasks=[OURS], progress=progress)
    whole = [line for line in before if line.endswith(b"}")]
    assert seen[0] == (f"{OURS} nominal", len(whole)) and seen[1][1] == len(whole) and len(whole) >= 3
    assert same(json.loads((folder / "evaluation.json").read_text()), content) and same(
        json.loads(json.dumps(again)), content
    )
    assert not partial.exists()


def test_an_interruption_keeps_what_is_done_and_other_settings_begin_anew(tmp_path):
    tiny_folder(tmp_path)
    suite = tiny_suite(parameters=[], disturbances=[])

    def stop(done, text):
        if "ball" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(tmp_path, suite=suite, tasks=[OURS], progress=stop)
    kept = RunFolder(tmp_path).journal.read_bytes().splitlines()
    assert len(kept) == 4 and not (tmp_path / "evaluation.json").exists()
    counts = []

    def count(done, text):
        if done < 1.0:
            counts.append(len(RunFolder(tmp_path).journal.read_bytes().splitlines()))

    evaluate_run(tmp_path, suite=suite.changed(episodes=2), tasks=[OURS], progress=count)
    assert counts[0] == 1


def test_a_journal_of_other_settings_or_torn_is_begun_anew(tmp_path):
    path = RunFolder(tmp_path).journal
    first = Journal(path, {"a": 1})
    first.add("one", {"x": 0.1})
    first.close()
    with path.open("a") as file:
        file.write('{"job": "two", "resu')
    second = Journal(path, {"a": 1})
    assert second.finished == {"one": {"x": 0.1}}
    second.add("two", {})
    second.close()
    assert Journal(path, {"a": 1}).finished == {"one": {"x": 0.1}, "two": {}}
    assert Journal(path, {"a": 2}).finished == {}


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code, capsys.readouterr()


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_folders_with_missing_files_do_not_stop_the_others(tmp_path, capsys, jobs):
    suite = tmp_path / "tiny.yaml"
    suite.write_text(json.dumps({**SUITE, "attacks": [], "faults": [], "parameters": [], "disturbances": []}))
    for name in ("good", "better"):
        tiny_folder(tmp_path / name)
    (tmp_path / "empty").mkdir()
    folders = [tmp_path / name for name in ("good", "empty", "better")]
    status, said = call(capsys, "evaluate", *folders, "--suite", suite, "--task", OURS, "--jobs", jobs)
    assert status == 2 and "empty" in said.err and "policy.json" in said.err and "Traceback" not in said.err
    assert all((tmp_path / name / "evaluation.json").is_file() for name in ("good", "better"))
    assert said.out.count("mean return") == 2


def test_the_command_line_takes_a_suite_of_ones_own_attacks_and_sizes(tmp_path, capsys):
    suite = tmp_path / "mine.yaml"
    suite.write_text(json.dumps({**SUITE, "noise": [], "faults": [], "parameters": [], "disturbances": []}))
    tiny_folder(tmp_path / "run")
    given = ("--suite", suite, "--task", OURS, "--attack", "ball", "--attack", "mad_pgd", "--sizes", "0.2")
    status, said = call(capsys, "evaluate", tmp_path / "run", *given, "--episodes", 2, "--seeds", "3")
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert status == 0 and "strongest attack found" in said.out
    assert (content["sizes"], content["episodes"], content["seeds"]) == ([0.0, 0.2], 2, [3])
    assert {row["perturbation"] for row in content["rows"]} == {"ball", "mad_pgd"}
    status, said = call(capsys, "evaluate", tmp_path / "run", "--task", OURS, "--attack", "mad_pdg")
    assert status == 2 and "Did you mean 'mad_pgd'" in said.err
    status, said = call(capsys, "list", "suites")
    assert status == 0 and {line.split()[0] for line in said.out.splitlines()} == {"quick", "standard", "paper"}


def test_two_processes_do_not_evaluate_one_folder_at_a_time(tmp_path):
    tiny_folder(tmp_path)
    with held(tmp_path, "It"), pytest.raises(InvalidValueError, match="in use"):
        evaluate_run(tmp_path, suite=tiny_suite(), tasks=[OURS])


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("gamma=4_seed=0", "gamma=4"),
        ("r2dn-seed12", "r2dn"),
        ("r2dn_s3", "r2dn"),
        ("seed=1_gamma=4", "gamma=4"),
        ("gamma_4", "gamma_4"),
        ("r2dn", "r2dn"),
        ("seed3", "parent"),
        ("3", "parent"),
    ],
)
def test_a_method_is_the_folders_name_without_the_seed(tmp_path, name, method):
    assert RunFolder(tmp_path / "parent" / name).method == method
