"""A data set's name → arrays: from scikit-learn, DATA_DIR/NAME.npz, torchvision's download, or the user's files."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from ssfl.data.arrays import Arrays
from ssfl.data.errors import DataError
from ssfl.data.image_folder import arrays_from_folder
from ssfl.data.npz import arrays_from_npz, hold_out, to_arrays
from ssfl.data.preprocess import own_name

FOLDER_PREFIX = "imagefolder:"


@final
@dataclass(frozen=True)
class KnownSet:
    """A published data set: its classes, one image (H, W) or (H, W, 3), its class in torchvision if any, its rows."""

    class_names: tuple[str, ...]
    image: tuple[int, ...]
    torchvision: str | None
    train_rows: tuple[int, ...]
    """Of each class."""
    test_rows: tuple[int, ...]


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

_MNIST_TRAIN = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
_MNIST_TEST = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)

KNOWN: dict[str, KnownSet] = {
    "cifar10": KnownSet(_CIFAR10, (32, 32, 3), "CIFAR10", (5000,) * 10, (1000,) * 10),
    "cifar100": KnownSet(_numbers(100), (32, 32, 3), "CIFAR100", (500,) * 100, (100,) * 100),
    "tinyimagenet": KnownSet(_numbers(200), (64, 64, 3), None, (500,) * 200, (50,) * 200),
    "mnist": KnownSet(_numbers(10), (28, 28), "MNIST", _MNIST_TRAIN, _MNIST_TEST),
    "fashion_mnist": KnownSet(_FASHION, (28, 28), "FashionMNIST", (6000,) * 10, (1000,) * 10),
}


def load_arrays(name: str, data_dir: Path = Path("dataset"), whole: bool = False) -> Arrays:
    """The data set `name`, in memory.

    name: "digits", a name of KNOWN, "imagefolder:PATH" or an image folder's path, an .npz file's path, or NAME
    of DATA_DIR/NAME.npz. A known set is read from DATA_DIR/NAME.npz if that exists, else downloaded through
    torchvision (and stored there). Relative .npz paths are looked up from the working directory, then in DATA_DIR.
    whole: a table of integers stays int64. Raises DataError, one line, which says which file to put where.
    """
    data_dir = data_dir.expanduser()
    if name == "digits":
        return _digits()
    if name in KNOWN:
        return _known(name, data_dir)
    if name.startswith(FOLDER_PREFIX):
        return arrays_from_folder(Path(name.removeprefix(FOLDER_PREFIX)).expanduser())
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        inside = data_dir / path
        return _own(inside if inside.is_file() and not path.is_file() else path, whole)
    if (data_dir / f"{name}.npz").is_file():
        return _own(data_dir / f"{name}.npz", whole)
    if name and path.is_dir():
        return arrays_from_folder(path)
    known = ("digits", *KNOWN)
    close = difflib.get_close_matches(name, known, n=1)
    raise DataError(
        f"dataset.name={name}: unknown{f' (did you mean {close[0]}?)' if close else ''}; allowed: "
        f"{', '.join(known)}, {FOLDER_PREFIX}PATH, the path of an .npz or an image folder, or NAME of a file "
        f"{data_dir}/NAME.npz"
    )


def missing_file(name: str, data_dir: Path) -> Path | None:
    """The file of a published set that is not here; None where it is, and for other sets."""
    path = data_dir.expanduser() / f"{name}.npz"
    return path if name in KNOWN and not path.is_file() else None


def without_pixels(name: str) -> Arrays:
    """The published set's rows and labels, in the order of the classes; every pixel is 0 and takes no memory.

    Partitions give every client as many rows of each class as with the real set: they depend on the counts alone. Only
    an IID deal depends on the order of rows, and there the sizes agree.
    """
    known = KNOWN[name]
    height, width, *channels = known.image
    parts: dict[str, Any] = {}
    for part, counts in (("train", known.train_rows), ("test", known.test_rows)):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        pixels = torch.zeros(1, dtype=torch.uint8).expand(len(labels), *(channels or [1]), height, width)
        parts |= {f"{part}_x": pixels, f"{part}_y": labels}
    return Arrays(name, len(known.class_names), known.class_names, **parts)


def _own(path: Path, whole: bool) -> Arrays:
    return arrays_from_npz(path, own_name(path.stem), whole=whole)


def _digits() -> Arrays:
    """scikit-learn's 1,797 handwritten digits (UCI, 8x8 grey, 16 levels) as bytes; 20 % held out, fixed seed."""
    table = _digits_table()
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    columns = hold_out({"train_x": pixels, "train_y": table[:, -1].astype(np.int64)})
    return to_arrays("digits", _numbers(10), columns, "digits")


def _digits_table() -> NDArray[np.float64]:
    """[1797, 65]: 64 pixels of 0..16 and the label, read from scikit-learn's folder without importing it.

    The import takes seconds, more than the rest of the start of a run on digits.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "digits ships with scikit-learn, which is missing: pip install scikit-learn"
        ) from None
    bunch: Any = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def _known(name: str, data_dir: Path) -> Arrays:
    path = data_dir / f"{name}.npz"
    if not path.is_file():
        _download(name, path)
    arrays = arrays_from_npz(path, name, KNOWN[name].class_names)
    height, width, *channels = KNOWN[name].image
    if tuple(arrays.train_x.shape[1:]) != (*(channels or [1]), height, width):
        raise DataError(
            f"{path}: train_x contains images {list(arrays.train_x.shape[1:])} (channels, height, width), not those "
            f"of {name}; write it as {_layout(name)}, or rename your file"
        )
    return arrays


def _layout(name: str) -> str:
    known = KNOWN[name]
    image = ",".join(map(str, known.image))
    return f"train_x uint8 [N,{image}], train_y [N] of 0..{len(known.class_names) - 1}, test_x, test_y in this form"


def _download(name: str, path: Path) -> None:
    """Download through torchvision and write the .npz atomically."""
    wanted = f"put the data set there as an .npz with {_layout(name)}"
    class_name = KNOWN[name].torchvision
    if class_name is None:
        raise DataError(f"{name}: no file {path}, and torchvision does not offer this set; {wanted}")
    try:
        torchvision: Any = importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        reason = f"downloading it needs torchvision ({error})"
        raise DataError(f"{name}: no file {path}, and {reason}; install it, or {wanted}") from None
    fetch = getattr(torchvision, class_name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {
            part: fetch(root=str(path.parent / "download"), train=part == "train", download=True)
            for part in ("train", "test")
        }
        _write(path, parts)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torchvision: URLError is an OSError, a bad checksum a RuntimeError
        raise DataError(f"{name}: no file {path}, and downloading failed ({error}); {wanted}") from None


def _write(path: Path, parts: dict[str, Any]) -> None:
    columns = {f"{part}_x": np.asarray(fetched.data) for part, fetched in parts.items()}
    columns |= {f"{part}_y": np.asarray(fetched.targets) for part, fetched in parts.items()}
    # Write under another name first: a stopped or second process must not leave an incomplete file.
    partial = path.with_name(f".{path.stem}.{os.getpid()}.npz.part")
    try:
        with partial.open("wb") as file:
            np.savez(file, **columns)  # type: ignore[arg-type]
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
