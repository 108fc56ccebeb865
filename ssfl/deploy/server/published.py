"""The last payload of each client in plans with `publish`, as it was received: decentralised methods send it to peers.

With a folder, payloads are files. Each exchange writes new ones, and the last three of a client are kept, so that the
files that a checkpoint names exist when the server resumes from it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from ssfl.output import write_atomically

KEPT = 3
"""Files kept of each client: the server keeps two checkpoints."""


@final
class Published:
    """Payloads by client. A checkpoint saves `versions`."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[int, bytes] = {}
        self.versions: dict[int, int] = {}
        """Client -> number of the exchange of its last payload."""

    def as_now(self) -> Callable[[int], bytes | None]:
        """Client -> the bytes of its last payload as of this call, read when they are asked for; None for none.

        The function raises OSError when a file is missing.
        """
        versions, memory = dict(self.versions), dict(self._memory)

        def get(client: int) -> bytes | None:
            if client not in versions or self._folder is None:
                return memory.get(client)
            return self._path(client, versions[client]).read_bytes()

        return get

    def put(self, client: int, exchange: int, raw: bytes) -> None:
        """Store a payload. Raises OSError."""
        if self._folder is None:
            self._memory[client] = raw
        else:
            self._folder.mkdir(exist_ok=True)
            write_atomically(self._path(client, exchange), raw)
            self._prune(client)
        self.versions[client] = exchange

    def restore(self, versions: Mapping[int, int]) -> None:
        """Restore the versions that a checkpoint names."""
        self.versions = dict(versions)

    def forget(self) -> None:
        """Delete everything when the run is over."""
        self.versions.clear()
        self._memory.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, client: int, exchange: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{client}-{exchange:08d}.bin"

    def _prune(self, client: int) -> None:
        assert self._folder is not None
        for path in sorted(self._folder.glob(f"{client}-*.bin"))[:-KEPT]:
            with contextlib.suppress(OSError):
                path.unlink()
