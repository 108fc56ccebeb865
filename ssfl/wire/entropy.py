"""Entropy coding: zstd frames of a known size, byte planes and zigzag numbers.

Symbols of quantised values have hardly any repeated strings, so the encoder does not search for them; the remaining
Huffman coding of blocks is within 1 to 5 % of the symbols' entropy, at twice the speed of zstd's level 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from ssfl.core.reading import WireError

MAX_WINDOW_BYTES = 8 << 20
SYMBOL_WINDOW_LOG = 16
"""log2 of the bytes that share one Huffman table; large, because symbols come from one distribution."""
Array = NDArray[Any]


def squeezed(raw: bytes | Array, window_log: int = SYMBOL_WINDOW_LOG) -> bytes:
    """A zstd frame of symbols; empty for no bytes. 2 ** window_log bytes share one Huffman table."""
    if not len(raw):
        return b""
    parameters = zstandard.ZstdCompressionParameters(
        window_log=window_log,
        hash_log=6,
        chain_log=6,
        search_log=1,
        min_match=7,
        strategy=zstandard.STRATEGY_FAST,
        write_content_size=True,
        write_checksum=False,
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(_buffer(raw))


def squeezed_strings(raw: bytes | Array) -> bytes:
    """A zstd frame (level 1) of bytes with repeated strings; empty for no bytes."""
    return zstandard.ZstdCompressor(level=1).compress(_buffer(raw)) if len(raw) else b""


def inflated(raw: bytes | memoryview, nbytes: int) -> bytearray:
    """Decompress a frame that fills `raw`. Returns `nbytes` bytes.

    Raises WireError if the frame states another size or a window above 8 MiB, before memory is allocated.
    """
    if not nbytes:
        if len(raw):
            raise WireError(f"{len(raw)} bytes where nothing was coded")
        return bytearray()
    try:
        frame = zstandard.get_frame_parameters(raw)
        if frame.content_size != nbytes:
            raise WireError(f"a frame of {_size(frame.content_size)} bytes where {nbytes} are expected")
        if frame.window_size > MAX_WINDOW_BYTES:
            raise WireError(f"a frame needs a window of {frame.window_size} bytes")
        if frame.dict_id:
            raise WireError("a frame needs a dictionary")
        reader = zstandard.ZstdDecompressor()
        found = reader.decompress(raw, max_output_size=nbytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"a frame is damaged ({' '.join(str(error).split())})") from None
    if len(found) != nbytes:
        raise WireError(f"a frame holds {len(found)} bytes where {nbytes} are expected")
    return bytearray(found)


def _size(content_size: int) -> str:
    return "unknown" if content_size == zstandard.CONTENTSIZE_UNKNOWN else str(content_size)


def _buffer(raw: bytes | Array) -> bytes | memoryview:
    return raw if isinstance(raw, bytes) else np.ascontiguousarray(raw).data.cast("B")


def planes_of(items: Array) -> NDArray[np.uint8]:
    """Items [n] of b bytes as n * b bytes: the lowest byte of every item first."""
    wide = np.ascontiguousarray(items, items.dtype.newbyteorder("<")).view(np.uint8)
    return np.ascontiguousarray(wide.reshape(len(items), items.itemsize).T).reshape(-1)


def from_planes(raw: bytearray, count: int, size: int) -> NDArray[np.uint64]:
    """Items [count] of `size` bytes (1, 2, 4 or 8; 3 in 4) from their planes, unsigned, little endian."""
    planes = np.frombuffer(raw, np.uint8).reshape(size, count)
    whole = 4 if size == 3 else size
    wide = np.zeros((count, whole), np.uint8)
    wide[:, :size] = planes.T
    found: NDArray[np.uint64] = wide.view(f"<u{whole}").reshape(count)
    return found


def zigzag(numbers: Array) -> Array:
    """Signed integers [n] to unsigned ones of the same size: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    bits = 8 * numbers.itemsize - 1
    folded = np.left_shift(numbers, 1)
    np.bitwise_xor(folded, np.right_shift(numbers, bits), out=folded)
    return folded.view(f"u{numbers.itemsize}")


def unzigzag(numbers: Array) -> Array:
    """The signed integers of `zigzag`."""
    sign = np.bitwise_and(numbers, 1).view(f"i{numbers.itemsize}")
    np.negative(sign, out=sign)
    half = np.right_shift(numbers, 1).view(f"i{numbers.itemsize}")
    return np.bitwise_xor(half, sign)
