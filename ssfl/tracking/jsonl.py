"""metrics.jsonl: the events of a run, one per line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from ssfl.event_fields import event_problem


@final
class JsonlWriter:
    """Appends events to a file, one JSON object per line, each flushed to the operating system at once.

    A killed process leaves complete lines and at most one incomplete last line. Opening the file removes that line
    and, with `keep_bytes`, everything after that byte: the rows after the last checkpoint, which a resumed run writes
    again.

    Args:
        path: the file; created if it does not exist.
        keep_bytes: number of bytes to keep (the `position` in a checkpoint); None: all complete lines.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        if keep_bytes is not None and keep_bytes < 0:
            raise ValueError(f"keep_bytes={keep_bytes}: must be 0 or more bytes, or None to keep all lines")
        path.touch()
        self._path, self._file = path, path.open("r+b", buffering=0)
        content = self._file.read()
        missing = (keep_bytes or 0) - len(content)
        kept = content[:keep_bytes].rfind(b"\n") + 1
        self._file.truncate(kept)
        spoiled = self._mend(content[:kept])
        self._file.seek(kept)
        self._position = kept
        if (
            missing > 0
        ):  # a power failure can lose flushed rows; the run itself is intact, so this is a warning
            self.record({"event": "warning", "message": f"{missing} bytes of earlier rows were lost here"})
        if spoiled:
            self.record(
                {"event": "warning", "message": f"{spoiled} earlier lines could not be read and were blanked"}
            )

    def _mend(self, content: bytes) -> int:
        """Blank out lines without an event, so that positions in checkpoints stay valid. Returns how many."""
        start = spoiled = 0
        for line in content.split(b"\n")[:-1]:
            if not is_event(line):
                self._file.seek(start)
                self._file.write(b" " * len(line))
                spoiled += bool(line.strip())
            start += len(line) + 1
        return spoiled

    @property
    def position(self) -> int:
        """Bytes written so far; a checkpoint saves it for `keep_bytes`."""
        return self._position

    def record(self, event: Mapping[str, Any]) -> None:
        """Append one event. Numbers that are not finite become null: JSON has no NaN."""
        line = json_line(event).encode() + b"\n"
        written = 0
        try:
            while written < len(line):  # an unbuffered write may be partial
                written += self._file.write(line[written:])
        except (
            OSError
        ) as error:  # a full disk: remove the incomplete line, so that the event can be recorded later
            error.filename = str(self._path)
            self._file.truncate(self._position)
            self._file.seek(self._position)
            raise
        self._position += len(line)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


def is_event(line: bytes) -> bool:
    """Whether a line of the file is an event: a JSON object with an "event", whose fields have the right types."""
    try:
        return not event_problem(json.loads(line))
    except (ValueError, RecursionError):
        return False


def json_line(event: Mapping[str, Any]) -> str:
    """An event as one line of strict JSON."""
    return json.dumps(_finite(event), allow_nan=False, separators=(", ", ": "))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
