"""A folder of images, one subfolder per class, with Pillow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssfl.data.arrays import Arrays
from ssfl.data.errors import DataError, unreadable
from ssfl.data.npz import to_arrays, with_test_part
from ssfl.data.preprocess import own_name

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
_GREY_MODES = frozenset({"1", "L", "LA"})
_LAYOUTS = "train/CLASS/* with test/CLASS/* or val/CLASS/*, or CLASS/*"


def arrays_from_folder(root: Path) -> Arrays:
    """Images below `root`: {train, test or val}/CLASS/FILE, or CLASS/FILE with 20 % held out (fixed seed).

    Classes are the subfolders' names in alphabetical order; files may be in deeper subfolders. All images get the
    size of the first one, with a UserWarning that says how many were resized (bilinear), and are grey if the first is
    grey, else RGB. A folder without images is a class too, with a UserWarning: another site may have images of it.
    Raises DataError for no images, unknown classes in the test part, unreadable or 16-bit files.
    """
    try:
        return _arrays(root)
    except PermissionError as error:
        raise unreadable(error, root) from None


def _arrays(root: Path) -> Arrays:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; it must contain {_LAYOUTS}")
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if (root / "train").is_dir() and not tests:
        raise DataError(f"{root}: train/ without test/ or val/; the folder must contain {_LAYOUTS}")
    split = (root / "train").is_dir()
    train = root / "train" if split else root
    names = _class_names(train)
    files, labels = _listing(train, names)
    _warn_of_empty(train, names, labels)
    reader = _Reader(files[0])
    columns: dict[str, NDArray] = {"train_x": reader.read(files), "train_y": labels}
    if split:
        strangers = sorted(set(_class_names(tests[0])) - set(names))
        if strangers:
            raise DataError(f"{tests[0]}: class {strangers[0]} is not in {train}; both need the same classes")
        files, labels = _listing(tests[0], names)
        columns |= {"test_x": reader.read(files), "test_y": labels}
    else:
        columns = with_test_part(columns, str(root))
    reader.warn(root)
    return to_arrays(own_name(root.name), names, columns, str(root))


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    )


def _listing(folder: Path, names: tuple[str, ...]) -> tuple[list[Path], NDArray[np.int64]]:
    """All image files of the classes, sorted, and their labels [N]; a test part may lack a class."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = _files(folder / name) if (folder / name).is_dir() else ()
        own = sorted(path for path in found if _is_image(path))
        files += own
        labels += [label] * len(own)
    if not files:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise DataError(f"{folder}: no images in class folders; it must contain {_LAYOUTS}, of {kinds}")
    return files, np.array(labels, dtype=np.int64)


def _warn_of_empty(folder: Path, names: tuple[str, ...], labels: NDArray[np.int64]) -> None:
    empty = [name for label, name in enumerate(names) if label not in labels]
    if empty:
        warnings.warn(
            f"{folder}: no training image of {', '.join(empty)}; such folders are classes too "
            f"({len(names)} classes in all): remove those that are none",
            stacklevel=4,
        )


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder. `rglob` would leave out what cannot be read, and rows would be missing silently."""

    def refuse(error: OSError) -> None:
        raise error

    for above, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(above, name) for name in names)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn every error of Pillow into a DataError: damaged files raise OSError, SyntaxError, ValueError and others."""
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); repair or remove it") from None


class _Reader:
    """Files → uint8 [N, H, W, C], all in the size and mode of a first one; counts the resized images."""

    def __init__(self, first: Path) -> None:
        try:
            from PIL import Image
        except ImportError:
            raise DataError(
                "an image folder needs Pillow, which is not installed: pip install pillow"
            ) from None
        self._image = Image
        with self._open(first) as image:
            self.size: tuple[int, int] = image.size
            self.mode = "L" if image.mode in _GREY_MODES else "RGB"
        self.read_files = self.resized = 0

    def _open(self, path: Path) -> Any:
        with _readable(path):
            image = self._image.open(path)
        if image.mode[0] in "IF":
            image.close()
            raise DataError(f"{path}: more than 8 bits per pixel ({image.mode}); convert it to 8 bits")
        return image

    def read(self, files: list[Path]) -> NDArray[np.uint8]:
        width, height = self.size
        channels = 1 if self.mode == "L" else 3
        pixels = np.empty((len(files), height, width, channels), dtype=np.uint8)
        for row, path in enumerate(files):
            with self._open(path) as image:
                pixels[row] = self._pixels(path, image).reshape(height, width, channels)
        self.read_files += len(files)
        return pixels

    def _pixels(self, path: Path, image: Any) -> NDArray[np.uint8]:
        with _readable(path):  # Pillow reads the pixels here
            converted = image.convert(self.mode)
        if converted.size != self.size:
            self.resized += 1
            converted = converted.resize(self.size, self._image.Resampling.BILINEAR)
        return np.asarray(converted, dtype=np.uint8)

    def warn(self, root: Path) -> None:
        if self.resized:
            width, height = self.size
            warnings.warn(
                f"{root}: {self.resized} of {self.read_files} images were resized to {width}x{height}, "
                "the size of the first",
                stacklevel=3,
            )
