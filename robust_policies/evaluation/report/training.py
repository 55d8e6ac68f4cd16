"""The curve of a training, from the events that it wrote for TensorBoard."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robust_policies.train.run.folder import RunFolder

TRAINING_TAG = "rollout/ep_rew_mean"


def training_curve(files: RunFolder) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return (environment steps, mean return), each (points,), from the TensorBoard events; None without them."""
    events = sorted(files.tensorboard.rglob("events.out.tfevents.*"))
    points: dict[int, float] = {}
    for path in events:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        # A resumed run repeats steps; the later file is what happened.
        for record in _records(path, TRAINING_TAG.encode()):
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.tag == TRAINING_TAG and value.HasField("simple_value"):
                    points[event.step] = value.simple_value
    array = np.array([pair for pair in sorted(points.items()) if np.isfinite(pair).all()], dtype=np.float64)
    return (array[:, 0], array[:, 1]) if len(array) else None


def _records(path: Path, holding: bytes) -> Iterator[bytes]:
    """Yield the records of a file of events that hold some bytes, up to the first broken one, as TensorBoard does.

    A record is its length in 8 bytes, their checksum in 4, the event, and its checksum in 4. TensorBoard's own reader
    computes the checksum of every event, byte by byte in Python.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    content = path.read_bytes()
    begin = 0
    while begin + 12 <= len(content):
        length, checksum = struct.unpack_from("<QI", content, begin)
        end = begin + 12 + length
        if masked_crc32c(content[begin : begin + 8]) != checksum or end + 4 > len(content):
            return
        event = content[begin + 12 : end]
        if holding in event:
            if masked_crc32c(event) != struct.unpack_from("<I", content, end)[0]:
                return
            yield event
        begin = end + 4
