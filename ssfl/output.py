"""Atomic writing of files, and one-line errors for paths that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ssfl.errors import UserError

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space left: the disk, the user's quota, or the largest file that the shell allows (`ulimit -f`)."""
REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EFBIG: "raise the largest file size allowed (ulimit -f)",
    errno.EROFS: "name a folder on a disk that can be written",
    errno.EACCES: "give this user the right to it, or name another place",
    errno.EPERM: "give this user the right to it, or name another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a file exists where a folder is needed; choose another path",
    errno.EEXIST: "a file exists where a folder is needed; choose another path",
    errno.EISDIR: "a folder exists where a file is needed; choose another path",
    errno.ENOENT: "choose another path",
    errno.EIO: "check the disk",
    errno.ELOOP: "choose another path",
}
"""Error number -> remedy. Other error numbers are not about paths (sockets, processes, bugs) and are not handled."""


class OutputError(UserError):
    """A file or folder that cannot be written; one line with its path, the reason and a remedy."""


def output_error(error: OSError, where: str = "") -> OutputError | None:
    """The error as one line; None if it is not about a path on a disk.

    where: the user's input, such as a configuration key with its value; default: the file in the error.
    """
    if error.errno not in REMEDIES:
        return None
    name = "" if error.filename is None else os.fsdecode(error.filename)
    if len(name) > 200:
        name = f"{name[:200]}..."
    reason = os.strerror(error.errno)
    what = f"{name}: {reason}" if name and where else reason
    return OutputError(what, where=where or name, remedy=REMEDIES[error.errno])


@contextlib.contextmanager
def output(where: str) -> Iterator[None]:
    """Context in which an OSError about a path becomes an OutputError with `where`; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        found = output_error(error, where)
        if found is None:
            raise
        raise found from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` if the block succeeds and is removed if it raises.

    The file and its folder are synchronised, so that after a power failure `path` is either the old or the new file.
    """
    temporary = path.with_name(f".{path.stem[:100]}.{os.getpid()}{path.suffix}")  # savefig reads the suffix
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # the error of a full disk names no file
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, raw: bytes) -> None:
    """Write a file so that `path` is always either the old or the complete new file, even after a power failure."""
    with whole_file(path) as temporary:
        temporary.write_bytes(raw)


def write_or_remove(path: Path, raw: bytes) -> None:
    """Write a file that is not read until another file refers to it; remove it if writing fails."""
    try:
        path.write_bytes(raw)
    except OSError as error:
        error.filename = str(path)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Synchronise a folder's entries to the disk; some network file systems do not support it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
