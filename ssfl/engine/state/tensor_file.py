"""Safetensors files of tensors that lie in memory, written piece by piece, without a second copy of them.

`safetensors.torch.save` has two copies of all tensors at once; `save_file` calls a full disk an error in the tensors,
and gives the file mode 0600 whatever the umask.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ssfl.core.reading import raw_bytes
from ssfl.core.tensor_roles import STORED_TYPES
from ssfl.output import whole_file


def header(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """The header of a file in which these tensors [...] follow in this order; padded to 8 bytes as the format asks.

    Larger types must come first, so that every tensor is aligned to its type. about: the file's metadata.
    """
    fields: dict[str, Any] = {"__metadata__": dict(about)} if about else {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        fields[name] = {
            "dtype": STORED_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    raw = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def pieces(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a file with these tensors [...], in the order of the format's own writer: size of type, name."""
    order = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    yield header(dict(order), about)
    for _, tensor in order:
        yield raw_bytes(tensor)


def write_pieces(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file so that `path` is always either the old or the complete new file."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        for part in parts:
            file.write(part)
