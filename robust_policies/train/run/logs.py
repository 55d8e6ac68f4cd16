"""TensorBoard's files."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

# The module's classes are made from a protocol file when it is loaded.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]


def tensorboard_logger(folder: Path, steps: int) -> Logger:
    """Return a logger into `folder` of a run that has done `steps`.

    What a killed run logged after them is not part of the run that goes on: TensorBoard is told to forget it.
    """
    output = TensorBoardOutputFormat(str(folder))
    if steps:
        files = output.writer.file_writer
        assert files is not None
        files.add_event(Event(step=steps + 1, file_version="brain.Event:2"))
        files.add_event(Event(step=steps + 1, session_log=SessionLog(status=SessionLog.START)))
    return Logger(str(folder), [output])
