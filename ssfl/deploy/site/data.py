"""A site's local data: an image folder or an .npz, as the engine reads it. None of it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ssfl.data.arrays import Arrays
from ssfl.data.errors import DataError
from ssfl.data.federation import Federation
from ssfl.data.image_folder import arrays_from_folder
from ssfl.data.npz import MOST_CLASSES, Columns, arrays_of_columns, hold_out, read_columns
from ssfl.data.preprocess import UNCHANGED, Preprocess, default_preprocess
from ssfl.data.sources import FOLDER_PREFIX
from ssfl.deploy.errors import DeployError
from ssfl.deploy.protocol.messages import Scaling

TestRows = Literal["auto", "none"]
"""auto: the file's own test rows, or a fifth held out; none: all rows train."""


@dataclass(frozen=True)
class SiteData:
    """A site's training rows, test rows (possibly none) and class names; a table of whole numbers is int64."""

    arrays: Arrays
    has_test: bool
    """False: the test part of `arrays` is a placeholder that is not used."""

    @property
    def examples(self) -> int:
        """Number of training rows."""
        return len(self.arrays.train_y)

    @property
    def test_examples(self) -> int:
        """Number of test rows."""
        return len(self.arrays.test_y) if self.has_test else 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.arrays.train_x.shape[1:])

    def with_classes(self, names: Sequence[str]) -> SiteData:
        """The same rows with labels in the order of `names`. Raises DeployError for a class that is not in `names`."""
        own = self.arrays.class_names
        if not names or tuple(names) == own:
            return self
        index = {name: number for number, name in enumerate(names)}
        unknown = [name for name in own if name not in index]
        if unknown:
            known = ", ".join(names[:20])
            raise DeployError(
                f"{self.arrays.name}: class {unknown[0]!r} is not among the classes of the run: {known}"
            )
        number = torch.tensor([index[name] for name in own])
        arrays = replace(
            self.arrays,
            num_classes=len(names),
            class_names=tuple(names),
            train_y=number[self.arrays.train_y],
            test_y=number[self.arrays.test_y],
        )
        return replace(self, arrays=arrays)

    def federation(self, client: int, scaling: Scaling | None, unchanged: bool = False) -> Federation:
        """The federation as the engine reads it: client `client` has all rows, the clients below it none.

        unchanged: a table reaches the network as it is stored; otherwise its whole numbers are floats, and scaled.
        """
        nothing = torch.zeros(0, dtype=torch.int64)
        train = (*(nothing,) * client, torch.arange(self.examples))
        test = (*(nothing,) * client, torch.arange(self.test_examples))
        if unchanged:
            if len(self.input_shape) != 1:
                raise DeployError(
                    f"{self.arrays.name}: the run's dataset.features=unchanged is for tables; this data holds images"
                )
            return Federation(self.arrays, UNCHANGED, train, test)
        arrays = self._with_floats()
        if scaling is None:
            preprocess = default_preprocess(arrays, augment=False)
        else:
            self._check_scaling(scaling)
            preprocess = Preprocess(scaling.mean, scaling.std, scaling.crop_padding, scaling.flip)
        return Federation(arrays, preprocess, train, test)

    def _with_floats(self) -> Arrays:
        """A table of whole numbers as floats."""
        arrays = self.arrays
        if arrays.train_x.dtype != torch.int64:
            return arrays
        return replace(arrays, train_x=arrays.train_x.float(), test_x=arrays.test_x.float())

    def _check_scaling(self, scaling: Scaling) -> None:
        entries = self.input_shape[0]
        if len(scaling.mean) not in (1, entries):
            raise DeployError(
                f"{self.arrays.name}: the run scales {len(scaling.mean)} channels or features, this data has {entries}"
            )


def load_site_data(source: str, class_names: Sequence[str] = (), test: TestRows = "auto") -> SiteData:
    """The data at a path: an .npz (docs/data.md), an image folder, or imagefolder:PATH.

    class_names: the common label order, if the site's operator gives it; classes without rows are then allowed.
    Raises DataError or DeployError.
    """
    path = Path(source.removeprefix(FOLDER_PREFIX)).expanduser()
    if path.is_dir():
        data = SiteData(arrays_from_folder(path), has_test=True)
        if test == "none":
            raise DeployError(
                f"{path}: --test none is for .npz files; a folder's test rows are its test/ or val/ part"
            )
    elif path.suffix == ".npz":
        data = _from_npz(path, class_names, test)
    else:
        raise DeployError(
            f"--data {source}: neither a folder nor an .npz; give an image folder or an .npz (docs/data.md)"
        )
    try:
        return data.with_classes(class_names)
    except DeployError as error:
        raise DeployError(f"--class-names {','.join(class_names)}: {error}") from None


def _from_npz(path: Path, class_names: Sequence[str], test: TestRows) -> SiteData:
    columns = read_columns(path)
    # A site may lack a class; its labels then do not cover the whole range, as those of a full data set must.
    named = "class_names" in columns or class_names
    names = None if "class_names" in columns else tuple(class_names) if named else _numbered(path, columns)
    tested = "test_x" in columns or (test == "auto" and _can_hold_out(columns))
    if "test_x" in columns and test == "none":
        raise DeployError(f"{path}: contains test rows; omit --test none, or remove the rows")
    if tested:
        return SiteData(arrays_of_columns(columns, path, path.stem, names, whole=True), has_test=True)
    return SiteData(_without_test(path, columns, names), has_test=False)


def _numbered(path: Path, columns: Columns) -> tuple[str, ...]:
    if columns["train_y"].shape[:1] == (0,):
        raise DataError(f"{path}: has no examples; a site needs at least one training row")
    try:
        labels = [columns[key] for key in ("train_y", "test_y") if key in columns and len(columns[key])]
        most = max(int(y.max()) for y in labels)
    except (TypeError, ValueError):
        raise DataError(f"{path}: train_y must be whole numbers [N] from 0") from None
    if most >= MOST_CLASSES:
        raise DataError(
            f"{path}: has the label {most}; labels must be whole numbers from 0, below {MOST_CLASSES}"
        )
    return tuple(map(str, range(max(most + 1, 2))))


def _can_hold_out(columns: Columns) -> bool:
    try:
        return len(hold_out(columns).get("test_y", ())) > 0
    except (TypeError, ValueError, IndexError):
        return True  # `arrays_of_columns` reports what is wrong


def _without_test(path: Path, columns: Columns, names: tuple[str, ...] | None) -> Arrays:
    """All rows train. `Arrays` needs test rows, so the first row is a placeholder that no client owns."""
    placeholder = {"test_x": columns["train_x"][:1], "test_y": columns["train_y"][:1]}
    return arrays_of_columns(columns | placeholder, path, path.stem, names, whole=True)


def data_of_client(federation: Federation, client: int) -> SiteData:
    """One client's rows of a simulated federation, as the data of a site."""
    arrays = federation.arrays
    train, test = federation.train_parts[client], federation.test_parts[client]
    tested = test if len(test) else torch.zeros(1, dtype=torch.int64)
    own = replace(
        arrays,
        train_x=arrays.train_x[train],
        train_y=arrays.train_y[train],
        test_x=arrays.test_x[tested],
        test_y=arrays.test_y[tested],
        train_site=None,
        test_site=None,
    )
    return SiteData(own, has_test=len(test) > 0)


def save_npz(data: SiteData, path: Path) -> None:
    """Write an .npz that `load_site_data` reads."""
    arrays = data.arrays
    columns = {"train_x": arrays.train_x, "train_y": arrays.train_y}
    if data.has_test:
        columns |= {"test_x": arrays.test_x, "test_y": arrays.test_y}
    stored: dict[str, Any] = {name: _stored(tensor) for name, tensor in columns.items()}
    stored["class_names"] = np.array(arrays.class_names)
    np.savez(path, **stored)


def _stored(tensor: torch.Tensor) -> NDArray[Any]:
    """Images are stored with their channels last."""
    return tensor.permute(0, 2, 3, 1).numpy() if tensor.dim() == 4 else tensor.numpy()
