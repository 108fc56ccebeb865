"""Reading a data set's .npz file and checking it, one line per error: file, array, problem."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssfl.data.arrays import Arrays
from ssfl.data.errors import DataError
from ssfl.data.npz_members import read_arrays
from ssfl.data.split import stratified_split

Columns = dict[str, NDArray]
HELD_OUT_SHARE = 0.2
HELD_OUT_SEED = 0
"""A set without a test part: 20 % are held out; the seed is fixed, so that all runs are tested on the same rows."""

MOST_CLASSES = 100_000
LOST_SHARE = 0.01
"""Features whose rounding to float32 exceeds this share of their range are named in a warning."""
SITE_NAMES = "site_names"
"""Key in columns: text [sites], the names of the numbers in train_site and test_site."""

LAYOUT = (
    "train_x uint8 [N,H,W,C] or [N,H,W] images, or float [N,F] features; train_y whole numbers [N] from 0; "
    "test_x, test_y alike"
)


def arrays_from_npz(
    path: Path, name: str, class_names: tuple[str, ...] | None = None, whole: bool = False
) -> Arrays:
    """The data set in an .npz file (format: docs/data.md).

    class_names: of a known set; None: `class_names` of the file, else the labels themselves. whole: a table of
    integers stays int64. Raises DataError for a file that is missing, damaged, pickled, or of another format.
    """
    return arrays_of_columns(read_columns(path), path, name, class_names, whole)


def arrays_of_columns(
    columns: Columns,
    path: Path,
    name: str,
    class_names: tuple[str, ...] | None = None,
    whole: bool = False,
) -> Arrays:
    """The same for arrays from `read_columns`; errors name `path`."""
    for part in ("train", "test"):
        if f"{part}_x" in columns:
            columns[f"{part}_x"] = _examples(f"{path}: {part}_x", columns[f"{part}_x"], whole)
            columns[f"{part}_y"] = _labels(f"{path}: {part}_y", columns[f"{part}_y"])
    _code_sites(path, columns)
    _check_rows(path, columns)
    if "test_x" not in columns:
        columns = with_test_part(columns, str(path))
    names = class_names or _names(path, columns)
    return to_arrays(name, names, columns, str(path))


def read_columns(path: Path) -> Columns:
    """The arrays of an .npz that this project reads. Raises DataError if it cannot be read or one is missing."""
    wanted = [f"{part}_{what}" for part in ("train", "test") for what in ("x", "y", "site")]
    columns, found = read_arrays(path, (*wanted, "class_names"))
    missing = [key for key in ("train_x", "train_y") if key not in columns]
    missing += [f"test_{b}" for a, b in ("xy", "yx") if f"test_{a}" in columns and f"test_{b}" not in columns]
    if missing:
        raise DataError(
            f"{path}: {', '.join(missing)} missing (found: {', '.join(found) or 'nothing'}); it must have {LAYOUT}"
        )
    return columns


def hold_out(columns: Mapping[str, NDArray]) -> Columns:
    """The same rows with 20 % of them, stratified by class (and site), as the test part."""
    strata = columns["train_y"]
    if "train_site" in columns:
        strata = strata * (int(columns["train_site"].max()) + 1) + columns["train_site"]
    train, test = stratified_split(strata, HELD_OUT_SHARE, HELD_OUT_SEED)
    divided = {key: values for key, values in columns.items() if not key.startswith("train_")}
    for key in ("x", "y", "site"):
        if f"train_{key}" in columns:
            divided[f"train_{key}"] = columns[f"train_{key}"][train]
            divided[f"test_{key}"] = columns[f"train_{key}"][test]
    return divided


def with_test_part(columns: Mapping[str, NDArray], where: str) -> Columns:
    """`hold_out`. Raises DataError, which names `where`, if no row can be held out."""
    divided = hold_out(columns)
    if not len(divided["test_x"]):
        rows = len(columns["train_x"])
        raise DataError(
            f"{where}: none of its {rows} rows can be held out for testing (every class keeps one to train on); "
            "add rows, or a test part"
        )
    return divided


def to_arrays(name: str, class_names: tuple[str, ...], columns: Mapping[str, NDArray], where: str) -> Arrays:
    """Tensors of checked columns; images become [N, C, H, W], contiguous. Errors name `where`."""
    tensors: dict[str, Tensor | None] = {
        key: _tensor(values) for key, values in columns.items() if key.partition("_")[0] in ("train", "test")
    }
    try:
        sites = tuple(columns[SITE_NAMES].tolist()) if SITE_NAMES in columns else None
        return Arrays(
            name=name,
            num_classes=len(class_names),
            class_names=class_names,
            site_names=sites,
            **tensors,  # type: ignore[arg-type]
        )
    except DataError as error:
        raise DataError(f"{where}: {str(error).removeprefix(f'{name}: ')}") from None


def _check_rows(path: Path, columns: Mapping[str, NDArray]) -> None:
    if "test_site" in columns and "test_x" not in columns:
        raise DataError(f"{path}: test_site without test_x and test_y; add them, or omit test_site")
    for key, values in columns.items():
        part = key.partition("_")[0]
        if part in ("train", "test") and len(values) != len(columns[f"{part}_x"]):
            raise DataError(
                f"{path}: {key} has {len(values)} rows, {part}_x has {len(columns[f'{part}_x'])}; they must agree"
            )


def _tensor(values: NDArray) -> Tensor:
    tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
    return tensor.permute(0, 3, 1, 2).contiguous() if values.ndim == 4 else tensor


def _examples(where: str, x: NDArray, whole: bool = False) -> NDArray:
    """uint8 or float32 [N, H, W, C], or float32 [N, F]; whole: int64 [N, F] for a table of integers."""
    if x.ndim not in (2, 3, 4) or x.dtype.kind not in "fiub" or 0 in x.shape:
        raise DataError(f"{where} is {x.dtype} {list(x.shape)}; it must be {LAYOUT.partition(';')[0][8:]}")
    if whole and x.ndim == 2 and x.dtype.kind in "iu":
        return np.ascontiguousarray(x, dtype=np.int64)
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] > 4:
        raise DataError(
            f"{where} is {list(x.shape)}, channels first; the format needs channels last, "
            f"[N,H,W,C]: save x.transpose(0, 2, 3, 1)"
        )
    if x.ndim == 4 and x.dtype == np.uint8:
        return x
    if x.ndim == 4 and x.dtype.kind != "f":
        raise DataError(f"{where} contains images of type {x.dtype}; they must be uint8 (0..255) or floats")
    with np.errstate(
        over="ignore"
    ):  # values too large for float32 become infinite; Arrays refuses them and names the row
        stored = np.ascontiguousarray(x, dtype=np.float32)
    if x.ndim == 2:
        _warn_of_rounding(where, x, stored)
    return stored


def _warn_of_rounding(where: str, x: NDArray, stored: NDArray[np.float32]) -> None:
    """A UserWarning for features [N, F] whose differences float32 does not keep, such as seconds since 1970."""
    if x.dtype.kind not in "fiu" or x.dtype.itemsize < 4 or x.dtype == np.float32:
        return
    wide = x.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error, span = np.abs(wide - stored).max(axis=0), np.ptp(wide, axis=0)
    # Infinite errors are too large values, which `Arrays` refuses; a constant feature has nothing to keep.
    features = np.flatnonzero(np.isfinite(error) & (span > 0) & (error > LOST_SHARE * span))
    if len(features):
        shown = ", ".join(map(str, features[:5])) + (", …" if len(features) > 5 else "")
        warnings.warn(
            f"{where}: float32 does not keep the differences in features {shown}, whose values are far from 0; "
            "subtract a constant before you save them",
            stacklevel=4,
        )


def _labels(where: str, y: NDArray) -> NDArray[np.int64]:
    flat = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    whole = flat.dtype.kind in "iub"
    if flat.ndim != 1 or not (whole or flat.dtype.kind == "f"):
        raise DataError(f"{where} is {y.dtype} {list(y.shape)}; it must be whole numbers [N] from 0")
    bad = np.zeros(len(flat), dtype=bool) if whole else ~np.equal(np.floor(flat), flat)  # NaN is unequal too
    bad |= (flat < 0) | (flat >= MOST_CLASSES)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{where} has the label {flat[row]} in row {row}; labels must be whole numbers from 0, below {MOST_CLASSES}"
        )
    return flat.astype(np.int64)


def _names(path: Path, columns: Mapping[str, NDArray]) -> tuple[str, ...]:
    if "class_names" in columns:
        return _texts(f"{path}: class_names", columns["class_names"], "one name per class")
    used = np.unique(columns["train_y"])
    classes = 1 + int(max(columns["train_y"].max(), columns["test_y"].max()))
    if len(used) < classes:
        gap = next(number for number in range(classes) if number == len(used) or used[number] != number)
        raise DataError(
            f"{path}: train_y has no row of class {gap} (labels reach {classes - 1}); "
            "number the labels 0..C-1 without gaps, or name all classes in class_names"
        )
    return tuple(map(str, range(classes)))


def _texts(where: str, values: NDArray, meaning: str) -> tuple[str, ...]:
    """An array of text (or of integers, as text) as words that can be printed in one line."""
    try:
        if values.ndim != 1 or values.dtype.kind not in "US":
            raise ValueError
        words = tuple(values.astype(str).tolist())
        if not all(word.isprintable() for word in words):
            raise ValueError
    except (
        ValueError,
        SystemError,
    ):  # bytes that are not ASCII; SystemError: numbers that are not characters
        raise DataError(f"{where} must be a list of printable text, {meaning}") from None
    return words


def _code_sites(path: Path, columns: Columns) -> None:
    """Sites as numbers from 0, in ascending order of their names in the file, the same for train and test."""
    keys = [key for key in ("train_site", "test_site") if key in columns]
    if not keys:
        return
    if "train_site" not in keys:
        raise DataError(f"{path}: test_site without train_site; add train_site, or omit both")
    named = [columns[key] for key in keys]
    for key, values in zip(keys, named):
        if values.ndim != 1 or values.dtype.kind not in "iubUS":
            raise DataError(f"{path}: {key} must be whole numbers or text [N], one site per row")
        if values.dtype.kind in "US":
            _texts(f"{path}: {key}", np.unique(values), "or whole numbers, one site per row")
    if len({values.dtype.kind in "US" for values in named}) > 1:
        raise DataError(f"{path}: train_site and test_site must both be text, or both whole numbers")
    if np.result_type(*named).kind == "f":  # uint64 with int64: numpy would round large numbers
        named = [values.astype(object) for values in named]
    names, codes = np.unique(np.concatenate(named), return_inverse=True)
    rows = len(columns["train_site"])
    for key, part in zip(keys, (codes[:rows], codes[rows:])):
        columns[key] = part.astype(np.int64)
    columns[SITE_NAMES] = names.astype(str)
