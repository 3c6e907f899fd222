"""TensorBoard events, written by TensorBoard's record writer, without TensorFlow."""

import os
import pathlib
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from patchnets.errors import first_line


class TensorBoard:
    """Writer of scalars to an event file in `directory`, created by the first write. The first failure is printed and
    disables it."""

    def __init__(self, directory: pathlib.Path, enabled: bool):
        self._directory, self._enabled = directory, enabled
        self._resumed_at = 0
        self._records: Any = None

    def resume_from(self, step: int) -> None:
        """Continue after `step`: readers drop what an interrupted process wrote of later steps."""
        self._resumed_at = step

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write and flush one event with all `scalars` of a step."""
        if not self._enabled:
            return
        try:
            # Imported here because it takes half a second. EventFileWriter would also import TensorFlow if installed.
            from tensorboard.compat.proto import event_pb2, summary_pb2

            if self._records is None:
                self._records = self._open()
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                for event in (
                    event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"),
                    event_pb2.Event(wall_time=time.time(), step=self._resumed_at + 1, session_log=start),
                ):
                    self._records.write(event.SerializeToString())
            values = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
            event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=values))
            self._records.write(event.SerializeToString())
            self._records.flush()
        except ImportError:
            self._stop("TensorBoard events are not written: tensorboard is not installed")
        except Exception as error:
            self._stop(f"TensorBoard events are no longer written: {first_line(error)}")

    def close(self) -> None:
        if self._records is not None:
            self._records.close()
            self._records = None

    def _open(self) -> Any:
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        return RecordWriter((self._directory / name).open("ab"))

    def _stop(self, reason: str) -> None:
        self._enabled = False
        print(reason, file=sys.stderr)
