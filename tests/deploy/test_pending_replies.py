"""Replies that wait for their turn: the same bytes come back, from memory, from files, and from a full disk."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ssfl.algorithms.base import ClientReport
from ssfl.core.payloads import Payload
from ssfl.deploy.server import pending_replies
from ssfl.deploy.server.pending_replies import PendingReplies

REPLIES = {3: b"three" * 100, 1: b"one" * 100, 2: b""}


class FullDisk(io.BytesIO):
    """A file that accepts everything until its buffer is written."""

    def flush(self) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        if not self.closed:
            super().close()
            self.flush()


def not_full(error: OSError) -> None:
    raise error


def report(client: int) -> ClientReport:
    return ClientReport(examples=client)


@pytest.mark.parametrize("limit", [0, 350, 10_000])
def test_every_reply_comes_back_once(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in files, one in memory, all in memory; a reply that was next is kept decoded."""
    monkeypatch.setattr(pending_replies, "HELD_IN_MEMORY_BYTES", limit)
    files: list[Any] = []
    real = tempfile.TemporaryFile

    def recorded(**options: Any) -> Any:
        files.append(real(**options))
        return files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", recorded)
    pending = PendingReplies(tmp_path, not_full)
    for client, raw in REPLIES.items():
        pending.put(client, report(client), raw)
    decoded = Payload({})
    pending.put(0, report(0), decoded)
    assert len(files) == {0: 2, 350: 1, 10_000: 0}[limit]  # an empty reply always fits
    for client in sorted(REPLIES):
        taken = pending.take(client)
        assert (taken.payload, taken.report) == (REPLIES[client], report(client))
        assert client not in pending
    assert pending.take(0).payload is decoded
    assert all(file.closed for file in files)


def test_memory_is_free_again_after_a_reply_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_replies, "HELD_IN_MEMORY_BYTES", 500)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: pytest.fail("there is room in memory"))
    pending = PendingReplies(tmp_path, not_full)
    for client in range(10):
        pending.put(client, report(client), b"x" * 400)
        pending.take(client)


@pytest.mark.parametrize("kind", ["no folder", "no room"])
def test_on_a_full_disk_a_reply_stays_in_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_replies, "HELD_IN_MEMORY_BYTES", 0)
    if kind == "no room":
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: FullDisk())
    errors: list[OSError] = []
    pending = PendingReplies(tmp_path / "missing", errors.append)
    pending.put(3, report(3), REPLIES[3])
    assert pending.take(3).payload == REPLIES[3]
    assert len(errors) == 1
