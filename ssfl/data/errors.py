"""The two errors of this room; each text is one line: what, where, what is allowed, what to do."""

from __future__ import annotations

from typing import final


@final
class DataError(ValueError):
    """A data set that is missing, unreadable or not shaped as docs/data.md says."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@final
class PartitionError(ValueError):
    """Partition settings that this data set cannot meet.

    `key` is the configuration's dotted key at fault, `value` what it was, `allowed` what it may be.
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key}={value}: {' '.join(allowed.split())}")
        self.key = key
        self.value = value
        self.allowed = allowed
