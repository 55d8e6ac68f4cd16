"""The command as a user runs it, on trials of a few seconds, and the processes behind it."""

import csv
import runpy
import time
from pathlib import Path

from forked import Command
from in_process import answer

TINY = runpy.run_path(str(Path(__file__).parents[1] / "train" / "tiny_recipe.py"))["TINY"]


def sweep(*arguments, cwd=None):
    """Return what a sweep says that ends by itself; its trials are processes."""
    return answer("sweep", "pendulum_r2dn_gamma6", "--set", *TINY, *arguments, cwd=cwd)


def begin(*arguments):
    """Return a sweep that runs."""
    return Command("sweep", "pendulum_r2dn_gamma6", "--set", *TINY, *arguments)


def rows(folder, name="trials.csv"):
    """Return {first column: row} of a table."""
    with (folder / name).open() as file:
        return {next(iter(row.values())): row for row in csv.DictReader(file)}


def wait_for(condition, process, seconds=900.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it took too long"
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def trial_process(log):
    """Return the id of the process whose standard error is the file `log`, None without one (Linux)."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "fd" / "2").readlink() == log.resolve():
                return int(folder.name)
        except OSError:
            continue
    return None


def parent(process_id):
    """Return the parent's id (Linux)."""
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[1])
