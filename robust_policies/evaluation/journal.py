"""What an evaluation has measured so far, on disk, so that one that was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

PARTIAL_SCHEMA = 1


class Journal:
    """A file with one line for each finished job, written to disk before the next job begins.

    The first line holds a hash of everything that decides the results; a file with another one is begun anew. A line
    that a killed process left unfinished is dropped.
    """

    def __init__(self, path: str | Path, settings: Any) -> None:
        self.path = Path(path)
        text = json.dumps(settings, sort_keys=True, default=str)
        header = {"schema": PARTIAL_SCHEMA, "settings": hashlib.sha256(text.encode()).hexdigest()}
        self.finished: dict[str, Any] = {}
        lines = _lines(self.path)
        if lines and lines[0] == header:
            self.finished = {line["job"]: line["result"] for line in lines[1:]}
        # Written whole once, so that what follows never comes after half a line.
        kept = [header, *({"job": job, "result": result} for job, result in self.finished.items())]
        self._file = None
        temporary = self.path.with_name(f".{self.path.name}")
        with temporary.open("w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        self._file = self.path.open("a")

    def add(self, job: str, result: Any) -> None:
        """Keep the result of a finished job."""
        assert self._file is not None
        self.finished[job] = result
        self._file.write(json.dumps({"job": job, "result": result}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, which stays."""
        if self._file is not None:
            self._file.close()

    def delete(self) -> None:
        """Delete the file: the evaluation is complete."""
        self.close()
        self.path.unlink(missing_ok=True)


def _lines(path: Path) -> list[Any]:
    """Return the lines that can be read, up to the first that cannot."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            break
        if not isinstance(content, dict) or (found and not content.keys() >= {"job", "result"}):
            break
        found.append(content)
    return found
