"""The errors of this package; each text is one line: what, where, what is allowed, what to do."""

from __future__ import annotations

from typing import final

from ssfl.errors import UserError


@final
class DataError(UserError):
    """A data set that is missing, unreadable or not in the format of docs/data.md."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@final
class PartitionError(UserError):
    """Partition settings that this data set cannot meet.

    key: the dotted configuration key at fault; value: its value; allowed: what is allowed.
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key}={value}: {' '.join(allowed.split())}")
        self.key = key
        self.value = value
        self.allowed = allowed


def unreadable(error: OSError, path: object) -> DataError:
    """A file or folder that this user may not read."""
    return DataError(f"{error.filename or path}: {error.strerror}; give this user the right to read it")
