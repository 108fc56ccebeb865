"""One data set in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ssfl.data.errors import DataError


@final
@dataclass(frozen=True, eq=False)
class Arrays:
    """A whole data set as tensors, checked when it is made.

    name: for messages and run folders.
    num_classes, class_names: labels are 0..num_classes-1, one name each.
    train_x: uint8 [N, C, H, W] images, float32 [N, F] or [N, C, H, W] features, or int64 [N, F] token numbers;
        contiguous.
    train_y: int64 [N]. test_x, test_y: the same for the test set.
    train_site, test_site: int64 [N], the site of each row (natural partition); None if unknown.
    site_names: names of the sites by number; None if sites have no names.

    Raises DataError if shapes, types or labels contradict this, or a feature is not finite.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    train_site: Tensor | None = None
    test_site: Tensor | None = None
    site_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError(f"{self.name}: {self.num_classes} class; at least 2 are needed")
        if len(self.class_names) != self.num_classes:
            raise DataError(
                f"{self.name}: {len(self.class_names)} class_names for {self.num_classes} classes; give one each"
            )
        for part in ("train", "test"):
            self._check_part(part)
        if self.train_x.shape[1:] != self.test_x.shape[1:] or self.train_x.dtype != self.test_x.dtype:
            raise DataError(
                f"{self.name}: an example is {_kind(self.train_x)} in train_x but {_kind(self.test_x)} in test_x; "
                "both must have the same type and shape"
            )

    def _check_part(self, part: str) -> None:
        x, y, site = (getattr(self, f"{part}_{what}") for what in ("x", "y", "site"))
        if not len(x):
            raise DataError(f"{self.name}: {part}_x has no rows; at least 1 is needed")
        _check_examples(f"{self.name}: {part}_x", x)
        _check_vector(f"{self.name}: {part}_y", y, len(x))
        if int(y.min()) < 0 or int(y.max()) >= self.num_classes:
            raise DataError(
                f"{self.name}: {part}_y has labels {int(y.min())}..{int(y.max())}; "
                f"they must be 0..{self.num_classes - 1}"
            )
        if site is not None:
            _check_vector(f"{self.name}: {part}_site", site, len(x))
            if self.site_names is not None and not 0 <= int(site.min()) <= int(site.max()) < len(
                self.site_names
            ):
                raise DataError(
                    f"{self.name}: {part}_site has sites {int(site.min())}..{int(site.max())}, "
                    f"{len(self.site_names)} are named"
                )


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape[1:])}"


def _check_examples(where: str, x: Tensor) -> None:
    image = x.dtype == torch.uint8 and x.dim() == 4
    features = x.dtype == torch.float32 and x.dim() in (2, 4)
    tokens = x.dtype == torch.int64 and x.dim() == 2
    if not (image or features or tokens) or not x.numel():
        raise DataError(
            f"{where} is {str(x.dtype).removeprefix('torch.')} {list(x.shape)}; "
            "it must be uint8 [N, C, H, W], float32 [N, F] or [N, C, H, W], or int64 [N, F], with no side of 0"
        )
    if features and not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
        raise DataError(
            f"{where} has NaN or infinite values, first in row {row}; fill or drop them beforehand"
        )


def _check_vector(where: str, vector: Tensor, rows: int) -> None:
    if vector.dtype != torch.int64 or tuple(vector.shape) != (rows,):
        raise DataError(
            f"{where} is {str(vector.dtype).removeprefix('torch.')} {list(vector.shape)}; it must be int64 [{rows}]"
        )
