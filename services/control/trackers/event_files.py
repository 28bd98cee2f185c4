"""Event files: what TensorBoard shows. Written with TensorBoard's own messages and without torch.

Every write is remembered with the size that the file then has. What stands behind that size after a crash was never
remembered, so it is cut off and written again: nothing is lost, nothing is there twice.
"""

# protobuf makes the classes of messages at import, where no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import io
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from services.control.trackers.port import Place, Row, load_place, save_place

_PLACE = "place.json"
_VERSION = "brain.Event:2"


class EventFiles:
    """Writes TensorBoard's event files into a directory. clock: Unix time in seconds, for the names of new files."""

    name = "tensorboard"

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock
        self._file = -1
        self._file_name = ""
        self._bytes = 0

    def resume(self) -> Place:
        """Open the newest file where it was left, or a new one."""
        self._directory.mkdir(parents=True, exist_ok=True)
        place = load_place(self._directory / _PLACE)
        self._file_name = str(place.state.get("file", ""))
        path = self._directory / self._file_name
        if self._file_name and path.is_file():
            self._bytes = min(int(place.state.get("bytes", 0)), path.stat().st_size)
            self._file = os.open(path, os.O_WRONLY)
            self._cut()
        else:
            self._begin()
        return place

    def write(self, rows: Sequence[Row], place: Place) -> None:
        """Append rows and save the place behind them: both, or neither if the disk does not take them."""
        data = _records([_event(row) for row in rows])
        if self._bytes == 0:
            data = _records([Event(wall_time=self._clock(), file_version=_VERSION)]) + data
        try:
            _write_all(self._file, data)
            size = self._bytes + len(data)
            state = {"file": self._file_name, "bytes": size}
            save_place(self._directory / _PLACE, replace(place, state=state))
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to be told
                self._cut()
            raise
        self._bytes = size

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _begin(self) -> None:
        self._file_name = f"events.out.tfevents.{int(self._clock()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._bytes = 0
        self._file = os.open(self._directory / self._file_name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def _cut(self) -> None:
        """Cut off what stands behind the last write that was remembered."""
        os.ftruncate(self._file, self._bytes)
        os.lseek(self._file, self._bytes, os.SEEK_SET)


def _event(row: Row) -> Event:
    values = [Summary.Value(tag=name, simple_value=value) for name, value in row.scalars.items()]
    values += [_note(name, text) for name, text in row.notes.items()]
    return Event(wall_time=row.at_s, step=row.step, summary=Summary(value=values))


def _note(name: str, text: str) -> Summary.Value:
    """A text as TensorBoard's text page wants it."""
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    return Summary.Value(
        tag=name,
        metadata=SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR),
        tensor=TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[text.encode("utf-8", "replace")]),
    )


def _records(events: Sequence[Event]) -> bytes:
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def _write_all(file: int, data: bytes) -> None:
    """Write everything: a disk that fills up takes the first part without an error."""
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
