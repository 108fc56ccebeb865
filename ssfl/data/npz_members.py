"""The arrays of an untrusted .npz file: every declared size is checked before anything is allocated."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple, final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ssfl.data.errors import DataError, unreadable
from ssfl.machine_memory import memory_bytes

MOST_EXPANSION = 1032
"""Maximum number of bytes that one byte of a deflated stream can expand to (the format's limit)."""
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The compression methods of numpy.savez and numpy.savez_compressed."""
MOST_HEADER = 10_000
_ENCRYPTED = 1


@final
class _Declared(NamedTuple):
    """A member's .npy header. header: its size in bytes; size: bytes of the array after it."""

    dtype: np.dtype
    header: int
    size: int


def read_arrays(path: Path, wanted: Sequence[str]) -> tuple[dict[str, NDArray], list[str]]:
    """The `wanted` arrays of the file, and the names of all its members.

    Raises DataError, one line, if the file is missing, damaged, encrypted or not compressed as numpy does, and if an
    array is pickled, or larger than its member or than this machine's memory.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                raise DataError(f"{path}: one array, not an .npz of several; write it with numpy.savez")
            stream.seek(0)
            with zipfile.ZipFile(stream) as archive:
                return _arrays(path, archive, wanted)
    except FileNotFoundError:
        where = "" if path.is_absolute() else f" (relative to {Path.cwd()})"
        raise DataError(f"{path}: no such file{where}") from None
    except PermissionError as error:
        raise unreadable(error, path) from None
    except DataError:
        raise
    except (
        Exception
    ) as error:  # zipfile and zlib raise many kinds of errors on damaged files; all mean the same
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: cannot be read as an .npz of plain arrays ({reason}); write it again"
        ) from None


def _arrays(
    path: Path, archive: zipfile.ZipFile, wanted: Sequence[str]
) -> tuple[dict[str, NDArray], list[str]]:
    names = [member.filename.removesuffix(".npy") for member in archive.infolist()]
    here = {name: member for name, member in zip(names, archive.infolist()) if name in wanted}
    twice = next((name for name in here if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: contains {twice} twice; write the file again")
    sizes = {name: _checked(f"{path}: {name}", archive, member) for name, member in here.items()}
    total, memory = sum(sizes.values()), memory_bytes()
    if total > memory:
        raise DataError(
            f"{path}: its arrays need {total / 1e9:.1f} GB, this machine has {memory / 1e9:.1f} GB of memory; "
            "a data set is held in memory as a whole"
        )
    return {name: _read(archive, member) for name, member in here.items()}, names


def _checked(where: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """The array's size in bytes. Raises DataError if the member does not have this size or has no plain values."""
    if member.flag_bits & _ENCRYPTED:
        raise DataError(f"{where} is encrypted; write the file with numpy.savez")
    if member.compress_type not in COMPRESSIONS:
        raise DataError(
            f"{where} is compressed by method {member.compress_type}; allowed: numpy.savez or savez_compressed"
        )
    most = member.compress_size * (MOST_EXPANSION if member.compress_type == zipfile.ZIP_DEFLATED else 1)
    if member.file_size > most:
        raise DataError(
            f"{where} claims {member.file_size} bytes from {member.compress_size}; the file is damaged"
        )
    with archive.open(member) as stream:
        declared = _declared(where, stream)
    if declared.dtype.hasobject:
        raise DataError(f"{where} contains pickled objects, which are never loaded; store plain arrays")
    if declared.header + declared.size != member.file_size:
        raise DataError(
            f"{where} declares {declared.size} bytes of values, its part of the file has "
            f"{member.file_size - declared.header}; the file is damaged"
        )
    return declared.size


def _declared(where: str, stream: IO[bytes]) -> _Declared:
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream, max_header_size=MOST_HEADER)
        header = stream.tell()
    except (zipfile.BadZipFile, zlib.error, OSError):
        raise
    except Exception as error:  # the header is a Python literal, parsed by numpy, which may raise any error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where} is not an array in numpy's format ({reason[:120]})") from None
    values = math.prod(list(shape))
    if any(side < 0 for side in shape) or (dtype.itemsize == 0 and values):
        raise DataError(f"{where} declares {dtype} {list(shape)}, which no array can have")
    return _Declared(dtype, header, values * dtype.itemsize)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray:
    with archive.open(member) as stream:
        return npy.read_array(stream, allow_pickle=False, max_header_size=MOST_HEADER)
