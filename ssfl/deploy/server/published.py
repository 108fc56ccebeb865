"""The last payload of each client in plans with `publish`, as it was received: decentralised methods send it to peers.

With a folder, payloads are files. Each exchange writes new ones; a client's last two are kept, and those that a
checkpoint names, so that they exist when the server resumes from it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from ssfl.engine.state.serialization import KEPT_CHECKPOINTS
from ssfl.output import write_atomically


@final
class Published:
    """Payloads by client. A checkpoint saves `versions`."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[int, bytes] = {}
        self.versions: dict[int, int] = {}
        """Client -> number of the exchange of its last payload."""
        self._saved: deque[dict[int, int]] = deque(maxlen=KEPT_CHECKPOINTS)
        """The versions in the checkpoints that are kept."""

    def as_now(self) -> Callable[[int], bytes | None]:
        """A function client -> bytes of its last payload as of this call, read on demand; None if there is none.

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
            self._prune(client, exchange)
        self.versions[client] = exchange

    def saved(self) -> None:
        """Record that a checkpoint with the current versions has been saved."""
        self._saved.append(dict(self.versions))

    def restore(self, versions: Mapping[int, int]) -> None:
        """Restore the versions that a checkpoint names."""
        self.versions = dict(versions)
        self.saved()

    def forget(self) -> None:
        """Delete all payloads; called when the run has finished."""
        self.versions.clear()
        self._memory.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, client: int, exchange: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{client}-{exchange:08d}.bin"

    def _prune(self, client: int, newest: int) -> None:
        """Delete files that no checkpoint names; the exchange in progress still sends the last one before `newest`."""
        assert self._folder is not None
        named = (versions.get(client) for versions in (*self._saved, self.versions))
        kept = {self._path(client, number) for number in (newest, *named) if number is not None}
        for path in self._folder.glob(f"{client}-*.bin"):
            if path not in kept:
                with contextlib.suppress(OSError):
                    path.unlink()
