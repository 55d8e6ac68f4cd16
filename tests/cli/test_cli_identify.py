"""`identify` as a user meets it: what it prints, what it writes, and what it refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from robust_policies.cli.app import main
from robust_policies.identification import load_model

sys.path.insert(0, str(Path(__file__).parents[1] / "identification"))
from small_data import write_csv

QUICK = ["algorithm.total_steps=6", "algorithm.batch=4", "algorithm.window=40", "algorithm.burn_in=10",
         "cell.state_size=4", "cell.features=4", "cell.hidden_sizes=[6]", "keep.evaluate_every=3"]  # fmt: skip
CHANNELS = ("--inputs", "u", "--outputs", "y")


@pytest.fixture
def command(capsys, tmp_path):
    """Return a function that runs the command in this process and gives status, output and error lines."""

    def ask(*arguments, quick=QUICK):
        with pytest.raises(SystemExit) as caught:
            main(["identify", *map(str, arguments), "-o", str(tmp_path / "run"), *(["--set", *quick] if quick else [])])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err.strip().splitlines()

    return ask


def test_it_says_how_well_it_simulates_and_what_is_proven(command, tmp_path):
    data = write_csv(tmp_path / "plant.csv", count=600)
    status, out, lines = command(data, *CHANNELS)
    assert status == 0, lines
    run = tmp_path / "run"
    assert "test plant[510:600], model: NRMSE" in out and "PASS: Proven" in out
    result = json.loads((run / "identification.json").read_text())
    assert [entry["part"] for entry in result["records"]] == ["train", "validation", "test"]
    test = result["records"][2]
    assert set(test["residuals"][0]) == {"output", "whiteness", "cross"}
    certificate = json.loads((run / "certificate.json").read_text())
    assert certificate["gains"][0][0] == certificate["gamma_raw"] and certificate["rate"] <= 1
    arrays = np.load(run / "simulation.npz")
    model, rows = load_model(run), np.loadtxt(data, delimiter=",", skiprows=1)[510:]
    assert np.allclose(arrays["2.model"], model.simulate(rows[:, 1])[0], rtol=1e-5, atol=1e-6)
    error = np.sqrt(((arrays["2.model"] - rows[:, 2:])[10:] ** 2).mean())
    assert test["scores"]["model"]["rmse"][0] == pytest.approx(error, rel=1e-5)
    for name in ("identification.yaml", "provenance.json", "tensorboard", "figures/record2-simulation.png"):
        assert (run / name).exists()
    page = (run / "report.html").read_text()
    assert "Simulation against measurement" in page and "What is left in the residual" in page and "gain from" in page


def test_the_defaults_take_a_short_record(command, tmp_path):
    data = write_csv(tmp_path / "plant.csv", count=300)
    quick = ("algorithm.total_steps=2", "algorithm.batch=2")
    status, out, lines = command(data, *CHANNELS, "--no-report", quick=quick)
    assert status == 0, lines
    assert "test plant[255:300], model: NRMSE" in out


def test_several_files_are_experiments_and_a_repeated_input_is_flagged(command, tmp_path):
    for name, seed in (("a", 0), ("b", 1), ("c", 2), ("d", 0)):
        write_csv(tmp_path / f"{name}.csv", seed=seed, count=120)
    files = [tmp_path / f"{name}.csv" for name in "abcd"]
    status, out, lines = command(*files, *CHANNELS, "--no-report", "--train", "a,b", "--validation", "c", "--test", "d")
    assert status == 0, lines
    assert "Warning: d[0:120] of the test repeats the input of a[0:120]" in out
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_finished_run_can_be_asked_again_without_its_data_being_named(command, tmp_path):
    data = write_csv(tmp_path / "plant.csv", count=300)
    assert command(data, *CHANNELS, "--no-report")[0] == 0
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    status, out, lines = command("--resume", "--no-report", quick=())
    assert status == 0, lines
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before and "Identified" in out


@pytest.mark.parametrize("option", [("--set", "algorithm.total_steps=9"), ("--cell", "r2dn"), ("--inputs", "u")])
def test_an_option_that_a_run_of_its_own_settings_would_not_follow_is_refused(command, tmp_path, option):
    status, _, lines = command("--resume", *option, quick=())
    assert status == 2 and len(lines) == 1 and lines[0].startswith(f"error: {option[0]} was given with --resume"), lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*CHANNELS], "No data was given"),
        (["DATA", "--outputs", "y"], "--inputs names no column"),
        (["DATA", "--inputs", "v", "--outputs", "y"], "Unknown column 'v'"),
        (["none.csv", *CHANNELS], "does not exist"),
        (["DATA", *CHANNELS, "--cell", "r2d"], "Did you mean 'r2dn'"),
        (["DATA", *CHANNELS, "--set", "cell.state_sise=3"], "state_size"),
        (["DATA", *CHANNELS, "--set", "algorithm.windw=3"], "algorithm.window"),
        (["DATA", *CHANNELS, "--set", "data.washout=39"], "expected at least"),
        (["DATA", *CHANNELS, "--sample-time", "0.3"], "steps by 0.1 s"),
        (["DATA", *CHANNELS, "--train", "other"], "Unknown experiment 'other'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(command, tmp_path, arguments, words):
    data = write_csv(tmp_path / "plant.csv", count=300)
    status, _, lines = command(*(data if argument == "DATA" else argument for argument in arguments))
    assert status == 2 and len(lines) == 1 and words in lines[0], lines
    assert not (tmp_path / "run").exists()
