"""Records from files of every kind, and the faults that are named."""

import numpy as np
import pytest
import scipy.io
from small_data import TIME_STEP, record, write_csv

from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    MissingFileError,
    NonFiniteError,
    UnknownNameError,
)
from robust_policies.identification.reading import Columns, read_data

COLUMNS = Columns(["u"], ["y"])


def test_all_kinds_of_files_hold_the_same(tmp_path):
    u, y = record(0)
    write_csv(tmp_path / "a.csv")
    np.savez(tmp_path / "a.npz", u=u[:, 0], y=y)
    scipy.io.savemat(tmp_path / "a.mat", {"u": u, "y": y.T, "text": "not a signal"})
    for kind in ("csv", "npz", "mat"):
        data = read_data([tmp_path / f"a.{kind}"], Columns(["u"], ["y"], sample_time=TIME_STEP))
        (one,) = data.experiments
        assert one.name == "a" and data.inputs == ("u",) and data.sample_time == TIME_STEP
        assert np.array_equal(one.inputs, u) and np.array_equal(one.outputs, y)


def test_parquet_holds_the_same(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    u, y = record(0)
    table = {"u": u[:, 0], "y": y[:, 0]}
    parquet.write_table(pytest.importorskip("pyarrow").table(table), tmp_path / "a.parquet")
    (one,) = read_data([tmp_path / "a.parquet"], Columns(["u"], ["y"], sample_time=TIME_STEP)).experiments
    assert np.array_equal(one.inputs, u) and np.array_equal(one.outputs, y)


def test_parquet_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InvalidValueError, match="identify"):
        read_data([tmp_path / "a.parquet"], COLUMNS)


def test_a_folder_is_its_files_and_an_array_its_columns(tmp_path):
    for name in ("one", "two"):
        np.savez(tmp_path / f"{name}.npz", u=np.random.default_rng(0).normal(size=(50, 2)), y=np.arange(50.0))
    data = read_data([tmp_path], Columns(["u"], ["y"], sample_time=1.0))
    assert [one.name for one in data.experiments] == ["one", "two"]
    assert data.inputs == ("u.0", "u.1")
    assert read_data([tmp_path], Columns(["u.1"], ["y"], sample_time=1.0)).inputs == ("u.1",)


def test_a_column_tells_experiments_apart_and_the_time_gives_the_sample_time(tmp_path):
    u, y = record(1, 40)
    rows = [f"{k // 20},{(k % 20) * 0.5},{u[k, 0]},{y[k, 0]}" for k in range(40)]
    path = tmp_path / "all.csv"
    path.write_text("run;time;u;y\n".replace(";", ",") + "\n".join(rows))
    data = read_data([path], Columns(["u"], ["y"], experiment="run"))
    assert [one.name for one in data.experiments] == ["0", "1"] and data.sample_time == 0.5
    assert np.array_equal(data.experiments[1].outputs, y[20:])


def test_a_semicolon_separates_too(tmp_path):
    write_csv(tmp_path / "a.csv", header="time,u,y")
    text = (tmp_path / "a.csv").read_text().replace(",", ";")
    (tmp_path / "b.csv").write_text(text)
    first, second = (read_data([tmp_path / name], COLUMNS).experiments[0] for name in ("a.csv", "b.csv"))
    assert np.array_equal(first.inputs, second.inputs)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda lines: [*lines[:7], "0.7,nan,1.0", *lines[8:]], NonFiniteError, "'u' holds 1 NaN .* row 7"),
        (lambda lines: [*lines[:7], "0.7,,1.0", *lines[8:]], NonFiniteError, "row 7"),
        (lambda lines: [*lines[:9], *lines[12:]], InvalidValueError, r"jumps by 0.4 s after row 8 .*1 place"),
        (lambda lines: [*lines[:7], "0.7,high,1.0", *lines[8:]], CorruptFileError, "'u' does not hold numbers"),
        (lambda lines: [*lines[:7], "0.7,1.0", *lines[8:]], CorruptFileError, "line 9 has 2 entries"),
        (lambda lines: [*lines[:7], "nan,1.0,1.0", *lines[8:]], NonFiniteError, "time column 'time' .* row 7"),
    ],
)
def test_a_fault_in_a_column_is_named_with_its_place(tmp_path, change, error, words):
    write_csv(tmp_path / "a.csv", rows=change)
    with pytest.raises(error, match=words):
        read_data([tmp_path / "a.csv"], COLUMNS)


@pytest.mark.parametrize(
    ("columns", "error", "words"),
    [
        (Columns(["v"], ["y"]), UnknownNameError, "Unknown column 'v'"),
        (Columns(["tim"], ["y"]), UnknownNameError, "Did you mean 'time'"),
        (Columns(["u"], ["u"]), InvalidValueError, "an input and an output"),
        (Columns([], ["y"]), InvalidValueError, "--inputs"),
        (Columns(["u"], ["y"], time="clock"), UnknownNameError, "clock"),
        (Columns(["u"], ["y"], time="y"), InvalidValueError, "time"),
        (Columns(["u"], ["y"], experiment="run"), UnknownNameError, "run"),
        (Columns(["u"], ["y"], sample_time=0.2), InvalidValueError, "steps by 0.1 s; expected 0.2"),
    ],
)
def test_wrong_columns_are_refused(tmp_path, columns, error, words):
    write_csv(tmp_path / "a.csv")
    with pytest.raises(error, match=words):
        read_data([tmp_path / "a.csv"], columns)


def test_two_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(CorruptFileError, match="two columns 'u'"):
        read_data([write_csv(tmp_path / "a.csv", header="time,u,u")], COLUMNS)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        read_data([tmp_path / "none.csv"], COLUMNS)
    with pytest.raises(MissingFileError, match="holds no data"):
        read_data([tmp_path], COLUMNS)
    for name in ("a.npz", "a.mat", "a.csv"):
        (tmp_path / name).write_bytes(b"\x00\xff\xfe not that")
        with pytest.raises(CorruptFileError, match=name):
            read_data([tmp_path / name], COLUMNS)
    (tmp_path / "a.txt").write_text("u,y\n")
    with pytest.raises(InvalidValueError, match="kind"):
        read_data([tmp_path / "a.txt"], COLUMNS)
    np.savez(tmp_path / "b.npz", u=np.arange(4.0), y=np.arange(5.0))
    with pytest.raises(InvalidValueError, match=r"(4|5) samples"):
        read_data([tmp_path / "b.npz"], Columns(["u"], ["y"], sample_time=1.0))
    np.savez(tmp_path / "c.npz", u=np.arange(4.0), y=np.arange(4.0))
    with pytest.raises(InvalidValueError, match="--sample-time"):
        read_data([tmp_path / "c.npz"], COLUMNS)
