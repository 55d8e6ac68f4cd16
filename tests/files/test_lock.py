"""One process at a time: the lock of a file or a folder."""

import subprocess
import sys

import pytest

from robust_policies.errors import InvalidValueError
from robust_policies.files.lock import contents, held

KEEPS = """
import sys, time
from robust_policies.files.lock import held
with held(sys.argv[1], "It"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["folder", "file"])
def path(request, tmp_path):
    found = tmp_path / "found"
    found.mkdir() if request.param == "folder" else found.write_text("kept")
    return found


def test_a_second_holder_is_refused_and_nothing_is_left_behind(path, tmp_path):
    with held(path, "It"), pytest.raises(InvalidValueError, match="It is in use by another process; wait for it"):
        with held(path, "It"):
            pass
    with held(path, "It"):
        if path.is_dir():
            assert contents(path) == []
    assert [found.name for found in tmp_path.rglob("*")] == ["found"]
    assert path.is_dir() or path.read_text() == "kept"


def test_a_killed_holder_holds_no_longer_and_one_who_waits_gets_it(path):
    with subprocess.Popen([sys.executable, "-c", KEEPS, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(InvalidValueError, match="in use"), held(path, "It"):
            pass
        process.kill()
        with held(path, "It", patience=60.0):
            assert process.wait() != 0


def test_what_is_not_there_has_no_contents(tmp_path):
    assert contents(tmp_path / "none") == []
