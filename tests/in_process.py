"""The command line within this process: the imports of a new one take five seconds of a processor."""

import contextlib
import io
import subprocess

from robust_policies.cli.app import main


def answer(*arguments, cwd=None):
    """Return what a process of `robust-policies ARGUMENTS` would leave: status, standard output and error."""
    out, err = io.StringIO(), io.StringIO()
    code = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd or "."):
        try:
            main([*map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
    assert code is not None, "a command ends with a status"
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def one_line(done, status=2):
    """Return the only line of a wrong input."""
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
