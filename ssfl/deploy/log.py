"""Event log: JSON lines in a file and short readable lines on a stream, with run and round where they apply."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal, TextIO, final

Level = Literal["info", "warning", "error"]
MOST_CHARACTERS = 500
"""Longest text from another machine in one event."""
MOST_DETAILS = 4000
"""Longest text of one readable line."""


def one_line(text: str, most: int = MOST_CHARACTERS) -> str:
    """Untrusted text as one line of at most `most` printable characters, so that it cannot forge lines of a log."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


@final
class EventLog:
    """One event a line. `file`: JSON lines are appended there; `stream`: readable lines (None: nowhere).

    If the file cannot be written (a full disk), this is reported once on the stream, and the process continues.
    """

    def __init__(
        self, who: str, file: Path | None = None, stream: TextIO | Literal["stderr"] | None = "stderr"
    ) -> None:
        self.who = who
        self._path = file
        self._stream = sys.stderr if stream == "stderr" else stream
        self._lock = threading.Lock()
        self._failed = False

    def info(self, event: str, text: str = "", **fields: Any) -> None:
        """Log a normal event."""
        self._write("info", event, text, fields)

    def warning(self, event: str, text: str = "", **fields: Any) -> None:
        """Log that something is missing or late and the run continues."""
        self._write("warning", event, text, fields)

    def error(self, event: str, text: str = "", **fields: Any) -> None:
        """Log a fault that an operator must correct."""
        self._write("error", event, text, fields)

    def _write(self, level: Level, event: str, text: str, fields: dict[str, Any]) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        record = {"time_utc": stamp, "level": level, "who": self.who, "event": event, **fields}
        if text:
            record["text"] = text
        with self._lock:
            self._append(json.dumps(record, default=str) + "\n")
            if self._stream is not None:
                details = text or " ".join(f"{k}={v}" for k, v in fields.items())
                details = one_line(details, MOST_DETAILS)
                mark = "" if level == "info" else f"{level}: "
                line = f"{self.who}: {mark}{event.replace('_', ' ')}"
                print(f"{line}: {details}" if details else line, file=self._stream, flush=True)

    def _append(self, line: str) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
            self._failed = False
        except OSError as error:
            if not self._failed and self._stream is not None:
                print(
                    f"{self.who}: warning: the log {self._path} cannot be written: {error}", file=self._stream
                )
            self._failed = True
