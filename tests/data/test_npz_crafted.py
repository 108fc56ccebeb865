"""Crafted .npz files: each gives a one-line error that names the file, and allocates no memory for false sizes."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssfl.data.errors import DataError
from ssfl.data.npz_members import read_arrays
from ssfl.data.sources import load_arrays

ROWS = 20


def good() -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0)
    return {"train_x": draws.normal(size=(ROWS, 3)).astype(np.float32), "train_y": np.arange(ROWS) % 2}


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy header with `text`, padded as the format requires."""
    size = "<H" if version == (1, 0) else "<I"
    raw = text.encode("latin1") + b" " * (-(len(text) + 7 + struct.calcsize(size)) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack(size, len(raw)) + raw


def declared(descr: object, shape: object, order: object = False) -> bytes:
    return header(f"{{'descr': {descr!r}, 'fortran_order': {order!r}, 'shape': {shape!r}, }}")


def pack(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, raw in members.items():
            archive.writestr(f"{name}.npy", raw)
    return path


def replaced(path: Path, name: str, raw: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A valid file except for one member."""
    return pack(path, {key: npy(value) for key, value in good().items()} | {name: raw}, compression)


def patched(path: Path, offset_in_directory: int, value: bytes) -> Path:
    """A valid file, with bytes of the first entry of the zip's directory (and of its local header) changed."""
    replaced(path, "train_x", npy(good()["train_x"]))
    raw = bytearray(path.read_bytes())
    place = raw.index(b"PK\x01\x02") + offset_in_directory
    raw[place : place + len(value)] = value
    local = offset_in_directory - 2  # the local header lacks "version made by"
    raw[local : local + len(value)] = value
    path.write_bytes(raw)
    return path


TB = 10**12
NAMES = "class_names must be a list of printable text"
MEMBERS: dict[str, tuple[str, bytes, str]] = {
    "a shape beyond memory": ("train_x", declared("<f4", (TB, 3)), "declares 12000000000000 bytes"),
    "a shape beyond 64 bits": ("train_x", declared("<f4", (2**63, 2**63)), "declares"),
    "a negative shape": ("train_x", declared("<f4", (-2, -6)), "no array can have"),
    "a shape that is no tuple": ("train_x", declared("<f4", "(3,)"), "not an array"),
    "a shape of text": ("train_x", declared("<f4", ("3",)), "not an array"),
    "text as wide as memory": ("class_names", declared("<U100000000", (20,)), "declares 8000000000 bytes"),
    "values of no bytes": ("class_names", declared("|V0", (TB,)), "no array can have"),
    "text of no width": ("class_names", declared("<U0", (TB,)), "no array can have"),
    "a type that is none": ("train_x", declared("<f99", (3,)), "not an array"),
    "a type of brackets": ("train_x", declared([[[]]], (3,)), "not an array"),
    "a header of brackets": ("train_x", header("(" * 9_000), "not an array"),
    "a long header of brackets": ("train_x", header("[" * 200_000, (2, 0)), "not an array"),
    "a header of code": ("train_x", header("__import__('os').abort()"), "not an array"),
    "a header that is cut": ("train_x", declared("<f4", (20, 3))[:30], "not an array"),
    "a header of another version": ("train_x", b"\x93NUMPY\x09\x00" + b"\0" * 100, "not an array"),
    "not an array": ("train_x", b"a,b,c\n1,2,3\n", "not an array"),
    "nothing": ("train_x", b"", "not an array"),
    "a pickle": ("train_x", npy(np.array([{}], dtype=object)), "pickled"),
    "a pickle by its name": ("train_x", declared("|O", (3,)) + b"\x80\x04.", "pickled"),
    "a pickle in a record": ("train_x", declared([("a", "|O")], (3,)) + b"\x80\x04.", "pickled"),
    "fewer values than declared": ("train_x", npy(good()["train_x"])[:-1], "declares 240 bytes"),
    "more values than declared": ("train_x", npy(good()["train_x"]) + b"\0", "declares 240 bytes"),
    "a record": ("train_x", npy(np.zeros(ROWS, dtype=[("a", "f4")])), r"train_x is \[\('a', '<f4'\)\]"),
    "complex numbers": ("train_x", npy(np.zeros((ROWS, 3), dtype=complex)), "train_x is complex128"),
    "dates": ("train_y", npy(np.zeros(ROWS, dtype="M8[s]")), "train_y is datetime64"),
    "one number": ("train_x", npy(np.array(3, dtype=np.float32)), r"train_x is float32 \[\]"),
    "one label": ("train_y", npy(np.array(3)), r"train_y is int64 \[\]"),
    "a label beyond 63 bits": ("train_y", npy(np.full(ROWS, 2**63, dtype=np.uint64)), "the label 9223372036854775808"),
    "a class of its own number": ("train_y", npy(np.full(ROWS, 10**9)), "the label 1000000000 in row 0"),
    "infinite labels": ("train_y", npy(np.full(ROWS, np.inf)), "the label inf"),
    "class names of bytes": ("class_names", npy(np.array([b"\xff\xfe", b"b"])), NAMES),
    "class names that are no characters": (
        "class_names",
        declared("<U1", (2,)) + struct.pack("<II", 0x7FFFFFFF, 98),
        NAMES,
    ),
    "class names of surrogates": (
        "class_names",
        declared("<U1", (2,)) + struct.pack("<II", 0xD800, 98),
        NAMES,
    ),
    "class names of several lines": ("class_names", npy(np.array(["a\nb", "c"])), NAMES),
    "class names in a table": ("class_names", npy(np.array([["a", "b"]])), NAMES),
    "sites of several lines": ("train_site", npy(np.array(["a\x1b[2J"] * ROWS)), "train_site must be a list of pri"),
    "sites of floats": ("train_site", npy(np.zeros(ROWS)), "train_site must be whole numbers"),
    "sites by the table": ("train_site", npy(np.zeros((ROWS, 2), dtype=int)), "train_site must be whole numbers"),
}  # fmt: skip


def refusal(path: Path) -> str:
    """The one-line error; fails on any other error, and if memory is allocated."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            load_arrays(str(path))
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    assert len(line) < 600
    return line


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", MEMBERS)
def test_a_member_that_is_not_what_it_says(case: str, compression: int, tmp_path: Path) -> None:
    name, raw, expected = MEMBERS[case]
    refused = refusal(replaced(tmp_path / "own.npz", name, raw, compression))
    assert re.search(expected, refused), refused


def _empty_archive(path: Path) -> None:
    pack(path, {})


def _twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_x.npy", npy(good()["train_x"]))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("train_x.npy", npy(good()["train_x"]))


def _rows(*labels: int) -> Callable[[Path], Any]:
    x = np.arange(3.0 * len(labels)).reshape(-1, 3)
    return lambda path: np.savez(path, train_x=x, train_y=np.array(labels))


ARCHIVES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (_empty_archive, "train_x, train_y missing .found: nothing."),
    "a member twice": (_twice, "contains train_x twice"),
    "encrypted": (lambda path: patched(path, 8, b"\x01\x00"), "train_x is encrypted"),
    "an unknown compression": (lambda path: patched(path, 10, struct.pack("<H", 97)), "method 97"),
    "lzma": (
        lambda path: replaced(path, "train_x", npy(good()["train_x"]), zipfile.ZIP_LZMA),
        "compressed by method 14",
    ),
    "bzip2": (
        lambda path: replaced(path, "train_x", npy(good()["train_x"]), zipfile.ZIP_BZIP2),
        "compressed by method 12",
    ),
    "a member that claims gigabytes": (
        lambda path: patched(path, 24, struct.pack("<I", 2**32 - 2)),
        "train_x claims 4294967294 bytes",
    ),
    "a member that lies elsewhere": (lambda path: patched(path, 42, b"\xff\xff\xff\x7f"), "cannot be read"),
    "a wrong checksum": (lambda path: patched(path, 16, b"\0\0\0\0"), "cannot be read"),
    "one row": (_rows(0), "none of its 1 rows can be held out"),
    "one row of each class": (_rows(0, 1, 2), "none of its 3 rows can be held out"),
    "a folder": (Path.mkdir, "cannot be read"),
    "only a magic number": (lambda path: path.write_bytes(b"PK\x03\x04"), "cannot be read"),
    "an .npy": (lambda path: path.write_bytes(npy(good()["train_x"])), "one array, not an .npz"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_numpy_does_not_write(case: str, tmp_path: Path) -> None:
    make, expected = ARCHIVES[case]
    path = tmp_path / "own.npz"
    make(path)
    refused = refusal(path)
    assert re.search(expected, refused), refused


def test_arrays_larger_than_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = replaced(tmp_path / "own.npz", "train_x", npy(good()["train_x"]))
    monkeypatch.setattr("ssfl.data.npz_members.memory_bytes", lambda: 4 * ROWS * 3 + 8 * ROWS - 1)
    assert "of memory" in refusal(path)
    monkeypatch.setattr("ssfl.data.npz_members.memory_bytes", lambda: 4 * ROWS * 3 + 8 * ROWS)
    assert len(load_arrays(str(path)).train_x) + len(load_arrays(str(path)).test_x) == ROWS


def test_every_byte_of_a_small_file_may_be_damaged(tmp_path: Path) -> None:
    """Flips each byte separately: the file is refused, or read unchanged (unused bytes, dates)."""
    path = replaced(tmp_path / "own.npz", "train_x", npy(good()["train_x"]), zipfile.ZIP_DEFLATED)
    whole, (first, _) = path.read_bytes(), read_arrays(path, ("train_x", "train_y"))
    refused = 0
    for place in range(len(whole)):
        raw = bytearray(whole)
        raw[place] ^= 0x55
        path.write_bytes(raw)
        try:
            found, _ = read_arrays(path, ("train_x", "train_y"))
        except DataError:
            refused += 1
        else:
            assert all(np.array_equal(found[name], first[name]) for name in found)
    assert refused > len(whole) / 2


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(save: Callable[..., None], tmp_path: Path) -> None:
    """Fortran order, other byte orders, half precision, and a megabyte of zeros, which compresses a thousandfold."""
    x = np.zeros((1000, 250), dtype=">f4", order="F")
    x[:, 0] = np.arange(1000)
    save(tmp_path / "own.npz", train_x=x, train_y=(np.arange(1000) % 2).astype(">u2"), class_names=["a", "b"])
    arrays = load_arrays(str(tmp_path / "own.npz"))
    both = np.concatenate([arrays.train_x.numpy()[:, 0], arrays.test_x.numpy()[:, 0]])
    assert sorted(both.tolist()) == list(range(1000))
    assert arrays.class_names == ("a", "b")
