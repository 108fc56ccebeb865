"""metrics.jsonl: the run's own record, one event a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final


@final
class JsonlWriter:
    """Appends events to a file, one JSON object a line, each flushed to the operating system at once.

    A process that is killed leaves whole lines and at most one half-written last line. On opening, that line is cut
    off, and with `keep_bytes` everything after that byte too: the rows after the last checkpoint, which a resume
    computes again.

    Args:
        path: the file; made when it is not there.
        keep_bytes: how much of it to keep (the `position` that a checkpoint noted); None: all whole lines.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        if keep_bytes is not None and keep_bytes < 0:
            raise ValueError(f"keep_bytes={keep_bytes}: must be 0 or more bytes, or None to keep all lines")
        path.touch()
        self._file = path.open("r+b", buffering=0)
        content = self._file.read()
        missing = (keep_bytes or 0) - len(content)
        kept = content[:keep_bytes].rfind(b"\n") + 1
        self._file.truncate(kept)
        self._file.seek(kept)
        self._position = kept
        if missing > 0:  # a power cut can lose flushed rows; the run itself is whole, so say it and go on
            self.record({"event": "warning", "message": f"{missing} bytes of earlier rows were lost here"})

    @property
    def position(self) -> int:
        """Bytes written so far: what a checkpoint notes, and hands back as `keep_bytes`."""
        return self._position

    def record(self, event: Mapping[str, Any]) -> None:
        """Append one event. Numbers that are not finite become null: JSON has no NaN."""
        line = json_line(event).encode() + b"\n"
        written = 0
        while written < len(line):  # an unbuffered write may be partial
            written += self._file.write(line[written:])
        self._position += len(line)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


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
