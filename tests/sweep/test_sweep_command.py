"""Real sweeps: processes, exit statuses, files."""

import json
import os
import signal
from pathlib import Path

import pytest
from in_process import answer, one_line
from sweep_command import begin, rows, sweep, trial_process, wait_for

from robust_policies.policies import load_policy
from robust_policies.train import load_recipe

SHORT = "algorithm.total_steps=400"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two settings, one of which diverges, with two seeds each."""
    folder = tmp_path_factory.mktemp("sweeps") / "first"
    done = sweep(
        SHORT, "algorithm.learning_rate=1e-3,1e30", "--seeds", "0-1", "--jobs", 2, "--no-evaluate", "-o", folder
    )
    return folder, done


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def refused(*arguments):
    """Return the line that a wrong sweep gets."""
    return one_line(sweep(*arguments))


def test_a_failed_trial_is_reported_and_the_rest_goes_on(swept):
    folder, done = swept
    assert done.returncode == 1, done.stderr
    assert "2 of 4 trials failed:" in done.stderr
    table = rows(folder)
    assert list(table) == [f"learning_rate={rate}_seed={seed}" for rate in ("1e-3", "1e30") for seed in (0, 1)]
    for name, row in table.items():
        assert name in done.stdout
        if "1e30" in name:
            assert row["status"] == "failed"
            assert row["reason"] and row["reason"] in done.stderr
            assert not (folder / "trials" / name / "policy.json").exists()
            assert "Traceback" in (folder / "logs" / f"{name}.log").read_text() or "iverged" in row["reason"]
        else:
            assert (row["status"], row["reason"]) == ("done", "")
            load_policy(folder / "trials" / name)


def test_algorithms_with_a_replay_buffer_are_swept_too(tmp_path):
    common = "total_steps: 64, learning_starts: 20, buffer_size: 80, batch_size: 4"
    done = answer(
        *("sweep", "pendulum_sac_r2dn", "--seeds", "3", "--jobs", 2, "--no-evaluate", "-o", tmp_path / "s", "--set"),
        f"algorithm={{name: sac, {common}}},{{name: td3, {common}}},"
        f"{{name: recurrent_sac, {common}, sequence_length: 3, burn_in: 2}}",
        *("task.num_envs=2", "policy.critic=own", "policy.window=null", "policy.critic_kwargs={}"),
        *("task.kwargs.max_episode_steps=9", "checkpoints.evaluate_episodes=1", "checkpoints.certify_every=0"),
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for trial, row in rows(tmp_path / "s").items():
        run = tmp_path / "s" / "trials" / trial
        assert (row["status"], float(row["steps"])) == ("done", 64.0)
        name = load_recipe(str(run / "recipe.yaml")).algorithm.name
        # A window of 16 around the cell, or the cell itself.
        assert load_policy(run).cell.name == ("r2dn" if name == "recurrent_sac" else "window")
        found[name] = float(row["best"])
    assert set(found) == {"sac", "td3", "recurrent_sac"}
    # Nine steps of the pendulum earn between -147 and 0.
    assert all(-147.0 < value < 0.0 for value in found.values())


def test_the_tables_hold_what_the_run_folders_say(swept):
    folder, done = swept
    found = {}
    for row in rows(folder).values():
        if row["status"] == "done":
            said = json.loads((folder / "trials" / row["name"] / "provenance.json").read_text())
            assert (said["seed"], said["num_timesteps"]) == (int(row["seed"]), 400)
            assert float(row["best"]) == said["best_mean_reward"]
            found[said["seed"]] = said["best_mean_reward"]
    setting = rows(folder, "settings.csv")["0.001"]
    assert (setting["trials"], setting["done"], setting["failed"]) == ("2", "2", "0")
    assert float(setting["best_mean"]) == pytest.approx((found[0] + found[1]) / 2, rel=1e-12)
    # Of two seeds the least and the largest; Student's t of five and more: test_sweep_table.py.
    assert (float(setting["best_low"]), float(setting["best_high"])) == (min(found.values()), max(found.values()))
    table = json.loads((folder / "table.json").read_text())
    assert table["interval"].endswith("below 5 seeds the least and the largest of them")
    assert "95% t interval" in done.stdout
    assert [row["name"] for row in table["trials"]] == list(rows(folder))


def test_resume_runs_only_what_is_not_done(swept):
    folder, _ = swept
    finished = {
        name: (folder / "trials" / name / "provenance.json").stat().st_mtime_ns
        for name, row in rows(folder).items()
        if row["status"] == "done"
    }
    options = [SHORT, "algorithm.learning_rate=1e-3", "--seeds", "0-1", "--jobs", 2, "--no-evaluate", "-o", folder]
    assert "other keys" in refused(*options, "--resume")
    options[1] = "algorithm.learning_rate=1e-3,2e-3"
    assert "add --resume" in refused(*options)
    assert "algorithm.n_epochs was 2 and is now 3" in refused(*options, "--set", "algorithm.n_epochs=3", "--resume")
    done = sweep(*options, "--resume")
    assert done.returncode == 1, "the failed trials of earlier are still in the table"
    table = rows(folder)
    assert [name for name, row in table.items() if row["status"] == "done"] == [
        f"learning_rate={rate}_seed={seed}" for rate in ("1e-3", "2e-3") for seed in (0, 1)
    ]
    for name, written in finished.items():
        assert (folder / "trials" / name / "provenance.json").stat().st_mtime_ns == written
        assert f"done {name}" not in done.stdout


def checkpoints(folder):
    return sorted(folder.glob("trials/*/checkpoints/step_*/state.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "jobs", "trials"),
    [
        (signal.SIGINT, 1, 1),
        pytest.param(signal.SIGINT, 1, 2, marks=pytest.mark.soak),
        pytest.param(signal.SIGKILL, 1, 2, marks=pytest.mark.soak),
        *(pytest.param(number, 2, 3, marks=pytest.mark.soak) for number in STOPS),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_sweep_that_was_stopped_goes_on(number, jobs, trials, tmp_path):
    # In the long forms one trial more than run at once; long enough that none ends before all of those have begun.
    folder, steps = tmp_path / "sweep", 2000 * jobs**2
    options = [
        f"algorithm.total_steps={steps}", f"checkpoints.evaluate_every={steps}", "--seeds", f"0-{trials - 1}",
        "--jobs", jobs, "--no-evaluate", "-o", folder,
    ]  # fmt: skip
    process = begin(*options)
    wait_for(lambda: len({path.parts[-4] for path in checkpoints(folder)}) == jobs, process)
    assert "in use by another process" in refused(*options, "--resume")
    process.send_signal(number)
    _, errors = process.communicate(timeout=900)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 1
        assert f"Stopped with 0 of {trials} trials done" in errors
        assert "--resume" in errors
        assert {row["status"] for row in rows(folder).values()} == {"stopped"}
    done = sweep(*options, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["status"] for row in rows(folder).values()] == ["done"] * trials
    for seed in range(jobs):
        log = (folder / "logs" / f"seed={seed}.log").read_text()
        assert log.count("the checkpoint is in") == 1, "it ended with a checkpoint when the sweep did"
    assert {row["steps"] for row in rows(folder).values()} == {f"{steps}.0"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the trial's process in /proc")
@pytest.mark.parametrize("others", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_a_trial_whose_process_is_killed_is_reported_and_resumed(others, tmp_path):
    folder = tmp_path / "sweep"
    options = ["algorithm.total_steps=2000", "--seeds", f"0-{others}", "--jobs", 2, "--no-evaluate", "-o", folder]
    process = begin(*options)
    log = folder / "logs" / "seed=0.log"
    wait_for(lambda: (folder / "trials" / "seed=0" / "recipe.yaml").is_file(), process)
    os.kill(trial_process(log), signal.SIGKILL)
    out, errors = process.communicate(timeout=900)
    assert process.returncode == 1
    assert "seed=0: its process was ended by SIGKILL" in errors
    assert [row["status"] for row in rows(folder).values()] == ["failed", *["done"] * others], out
    done = sweep(*options, "--resume")
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in rows(folder).values()] == ["done"] * (1 + others)


@pytest.mark.soak
def test_evaluated_trials_are_run_folders_for_every_other_command(tmp_path):
    folder = tmp_path / "sweep"
    done = sweep(SHORT, "policy.gamma=4,8", "--jobs", 2, "-o", folder)
    assert done.returncode == 0, done.stderr
    for gamma in (4, 8):
        run = folder / "trials" / f"gamma={gamma}_seed=0"
        row = rows(folder)[run.name]
        assert float(row["gamma"]) == json.loads((run / "certificate.json").read_text())["gamma_raw"]
        evaluation = json.loads((run / "evaluation.json").read_text())
        returns = [found["returns"] for found in evaluation["rows"] if found["size"] == 0.0]
        assert float(row["return"]) == pytest.approx(sum(returns[0]) / len(returns[0]), rel=1e-12)
        worst = min(sum(found["returns"]) / 3 for found in evaluation["rows"] if found["size"] == 0.2)
        assert float(row["worst"]) == pytest.approx(worst, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_search_finds_resumes_and_names_its_best(count, tmp_path):
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    folder = tmp_path / "sweep"
    options = [
        SHORT, "--search", "policy.gamma=3..12", "policy.state_size=2..6", "--objective", "best", "--no-evaluate",
        "--jobs", 2, "-o", folder,
    ]  # fmt: skip
    done = sweep(*options, "--trials", count)
    assert done.returncode == 0, done.stderr
    first = rows(folder)
    assert [row["status"] for row in first.values()] == ["done"] * count
    done = sweep(*options, "--trials", count + 1, "--resume")
    assert done.returncode == 0, done.stderr
    table = rows(folder)
    assert {name: table[name] for name in first} == first
    best = max(table.values(), key=lambda row: float(row["best"]))
    assert f"Best setting: best {float(best['best']):.4g} in {best['name'].removesuffix('_seed=0')}" in done.stdout
    assert f"policy.gamma={best['policy.gamma']}" in done.stdout
    recipe = (folder / "trials" / best["name"] / "recipe.yaml").read_text()
    assert f"gamma: {best['policy.gamma']}" in recipe


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "policy.gama=3,4"], "Did you mean 'policy.gamma'"),
        (["--set", "policy.gamma=4,-1"], "policy.gamma is -1"),
        (["--set", "task.id=Pendulum-v1,Pendulmu-v1"], "Pendulmu-v1"),
        (["--seeds", "0,0"], "--seeds names 0 twice"),
        (["--seeds", "one"], "--seeds is 'one'"),
        (["--jobs", "0"], "--jobs"),
        (["--device", "cuda:99"], "use 'cpu'"),
        (["--trials", "3"], "--trials is for a search"),
        (["--prune"], "--prune is for a search"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(*arguments)
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--search", "policy.gamma=9..3"], "expected LOW < HIGH"),
        (["--search", "policy.gamma=3..9", "--objective", "retrun"], "Did you mean 'return'"),
        (["--search", "policy.gamma=3..9", "--no-evaluate"], "use --objective best"),
        (["--search", "policy.gamma=3..9", "--set", "algorithm.ent_coef=0,0.1"], "--search algorithm.ent_coef=A,B,C"),
        (["--search", "policy.gamma=3..9", "--objective", "gamma", "--prune"], "--prune"),
    ],
)
def test_a_mistake_in_a_search_is_one_line_and_exit_status_2(arguments, words, tmp_path, monkeypatch):
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    monkeypatch.chdir(tmp_path)
    assert words in refused(*arguments)
    assert not list(tmp_path.iterdir()), "something was written"
