"""Files of tensors, written in pieces: the bytes of safetensors' own writer."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ssfl.core.tensor_roles import STORED_TYPES
from ssfl.engine.state.tensor_file import pieces, write_pieces

FLOATS: Mapping[str, Tensor] = {
    "b": torch.randn(3, 5),
    "a": torch.randn(7),
    "half": torch.randn(2, 3).half(),
    "brain": torch.randn(4).bfloat16(),
    "empty": torch.zeros(0),
    "scalar": torch.tensor(2.5),
}


@pytest.mark.parametrize("about", [{}, {"key": 'a "quoted" word'}])
@pytest.mark.parametrize("tensors", [FLOATS, {"t0": torch.arange(4)}, {}])
def test_the_bytes_are_those_of_the_formats_own_writer(
    tensors: dict[str, Tensor], about: dict[str, str]
) -> None:
    assert b"".join(pieces(tensors, about)) == save(dict(tensors), about or None)


def test_every_type_is_read_back_also_from_views(tmp_path: Path) -> None:
    tensors = {name: torch.ones(2, 6).to(dtype).T[1::2] for dtype, name in STORED_TYPES.items()}
    path = tmp_path / "all.safetensors"
    write_pieces(path, pieces(tensors, {}))
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(read[name].equal(tensor) for name, tensor in tensors.items())
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_file_that_cannot_be_completed_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def parts() -> Iterator[bytes]:
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"a\.safetensors"):
        write_pieces(path, parts())
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == b"old"
