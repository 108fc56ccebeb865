"""Accepted replies that wait for lower client numbers: bytes in memory up to a limit, beyond it unlinked files."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, final

from ssfl.algorithms.base import ClientReport
from ssfl.core.payloads import Payload

HELD_IN_MEMORY_BYTES = 32_000_000


@final
@dataclass(frozen=True)
class PendingReply:
    """A reply that is processed next."""

    report: ClientReport
    payload: Payload | bytes
    """Decoded if it was the next one when it arrived; otherwise the bytes that were received."""


@final
class PendingReplies:
    """The replies of one exchange, by client.

    folder: for files; None: the system's temporary folder. on_error: called if a file cannot be written; the reply then
    stays in memory.
    """

    def __init__(self, folder: Path | None, on_error: Callable[[OSError], None]) -> None:
        self._folder, self._on_error = folder, on_error
        self._replies: dict[int, tuple[ClientReport, Payload | bytes | IO[bytes]]] = {}
        self._held_bytes = 0

    def __contains__(self, client: int) -> bool:
        return client in self._replies

    def put(self, client: int, report: ClientReport, payload: Payload | bytes) -> None:
        """Keep a reply until `take`; bytes beyond `HELD_IN_MEMORY_BYTES` go to a file."""
        kept: Payload | bytes | IO[bytes] = payload
        if isinstance(payload, bytes):
            if self._held_bytes + len(payload) > HELD_IN_MEMORY_BYTES:
                kept = self._in_file(payload)
            self._held_bytes += len(kept) if isinstance(kept, bytes) else 0
        self._replies[client] = (report, kept)

    def take(self, client: int) -> PendingReply:
        """Remove and return a reply."""
        report, kept = self._replies.pop(client)
        if isinstance(kept, Payload):
            return PendingReply(report, kept)
        if isinstance(kept, bytes):
            self._held_bytes -= len(kept)
            return PendingReply(report, kept)
        kept.seek(0)
        with kept as file:
            return PendingReply(report, file.read())

    def _in_file(self, raw: bytes) -> bytes | IO[bytes]:
        """A file with the bytes; the bytes themselves if the file cannot be written."""
        file: IO[bytes] | None = None
        try:
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed when it is read)
            file.write(raw)
            file.flush()
            return file
        except OSError as error:
            self._on_error(error)
            if file is not None:
                with contextlib.suppress(OSError):  # closing writes the rest again
                    file.close()
            return raw
