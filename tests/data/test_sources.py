"""Names → data sets: digits against scikit-learn, lookups, a fake torchvision, and real files if they exist."""

from __future__ import annotations

import os
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssfl.data.arrays import Arrays
from ssfl.data.errors import DataError
from ssfl.data.federation import build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import NORMALISATION, default_preprocess
from ssfl.data.sources import KNOWN, load_arrays, without_pixels


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    """Every image once, 0..16 scaled to 0..255, a stratified fifth held out, always the same split."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    arrays = load_arrays("digits", tmp_path)
    assert arrays.train_x.shape == (1438, 1, 8, 8)
    assert arrays.test_x.shape == (359, 1, 8, 8)
    labels = torch.cat([arrays.train_y, arrays.test_y]).tolist()
    pixels = torch.cat([arrays.train_x, arrays.test_x]).flatten(1).tolist()
    stretched = [[int(value * 255 / 16 + 0.5) for value in row] for row in bunch.data.tolist()]
    assert sorted(zip(labels, pixels)) == sorted(zip(bunch.target.tolist(), stretched))
    shares = torch.bincount(arrays.test_y) / torch.bincount(torch.tensor(labels))
    assert ((shares - 0.2).abs() < 0.01).all()
    assert torch.equal(arrays.test_x, load_arrays("digits", tmp_path).test_x)


def _write_known(path: Path, name: str, shape: tuple[int, ...], rows: int = 6) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (rows, *shape), dtype=np.uint8)
    np.savez(path / f"{name}.npz", train_x=x, train_y=np.arange(rows), test_x=x[:2], test_y=np.arange(2))


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_known_set_is_read_from_its_file(tmp_path: Path, name: str) -> None:
    known = KNOWN[name]
    _write_known(tmp_path, name, known.image)
    arrays = load_arrays(name, tmp_path)
    assert arrays.name == name
    assert arrays.num_classes == {"cifar100": 100, "tinyimagenet": 200}.get(name, 10)
    assert arrays.train_x.shape[1:] == (len(NORMALISATION[name][0]), *known.image[:2])


def test_a_wrong_image_under_a_known_name_is_refused(tmp_path: Path) -> None:
    _write_known(tmp_path, "cifar10", (28, 28, 1))
    with pytest.raises(DataError, match=r"cifar10\.npz: train_x contains images \[1, 28, 28\]") as caught:
        load_arrays("cifar10", tmp_path)
    assert "[N,32,32,3]" in str(caught.value)


def _pretend_torchvision(
    monkeypatch: pytest.MonkeyPatch, failure: Exception | None = None
) -> list[tuple[str, bool]]:
    """A torchvision.datasets with one set, CIFAR10, in torchvision's form: uint8 array, list of labels."""
    calls: list[tuple[str, bool]] = []

    class CIFAR10:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            if failure is not None:
                raise failure
            assert download
            calls.append((root, train))
            rows = 20 if train else 10
            self.data = np.full((rows, 32, 32, 3), 7 if train else 9, dtype=np.uint8)
            self.targets = [row % 10 for row in range(rows)]

    module = types.ModuleType("torchvision.datasets")
    module.CIFAR10 = CIFAR10  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    return calls


def test_a_download_is_kept_as_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _pretend_torchvision(monkeypatch)
    folder = tmp_path / "new" / "data"
    first = load_arrays("cifar10", folder)
    assert (len(first.train_x), len(first.test_x)) == (20, 10)
    assert set(first.train_x.flatten().tolist()) == {7}
    assert [train for _, train in calls] == [True, False]
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["cifar10.npz"]
    second = load_arrays("cifar10", folder)
    assert len(calls) == 2  # not downloaded again
    assert torch.equal(first.train_y, second.train_y)


@pytest.mark.parametrize(
    "failure", [OSError("no route to host"), RuntimeError("File not found or corrupted.")]
)
def test_a_failed_download_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    _pretend_torchvision(monkeypatch, failure)
    with pytest.raises(DataError) as caught:
        load_arrays("cifar10", tmp_path)
    text = str(caught.value)
    assert str(failure) in text
    assert str(tmp_path / "cifar10.npz") in text
    assert "train_x uint8 [N,32,32,3], train_y [N] of 0..9, test_x, test_y" in text
    assert not list(tmp_path.glob("*.npz*"))


def test_without_torchvision_the_message_offers_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match=r"no file .*mnist\.npz.* needs torchvision .*\[N,28,28\]"):
        load_arrays("mnist", tmp_path)
    with pytest.raises(DataError, match=r"tinyimagenet\.npz.* does not offer this set.*0\.\.199"):
        load_arrays("tinyimagenet", tmp_path)


def test_an_empty_name_is_not_the_working_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.name=: unknown"):
        load_arrays("", tmp_path)


def test_an_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"dataset\.name=cifar-10: unknown \(did you mean cifar10\?\); allowed: digits, "
    ):
        load_arrays("cifar-10", tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"train_y": torch.zeros(4)}, "train_y is float32"),
        ({"train_y": torch.tensor([0, 1, 0, 2])}, r"labels 0\.\.2; they must be 0\.\.1"),
        ({"train_x": torch.zeros(4, 3, dtype=torch.uint8)}, r"train_x is uint8 \[4, 3\]"),
        ({"train_x": torch.full((4, 3), torch.inf)}, "first in row 0"),
        ({"test_x": torch.zeros(0, 3)}, "test_x has no rows"),
        ({"test_x": torch.zeros(2, 2)}, "both must have the same type and shape"),
        ({"class_names": ("a",)}, "1 class_names for 2 classes"),
        (
            {"train_site": torch.zeros(3, dtype=torch.int64)},
            r"train_site is int64 \[3\]; it must be int64 \[4\]",
        ),
    ],
)
def test_arrays_made_by_hand_are_checked_too(change: dict[str, Any], problem: str) -> None:
    x, y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])
    good: dict[str, Any] = {
        "name": "own", "num_classes": 2, "class_names": ("a", "b"),
        "train_x": x, "train_y": y, "test_x": x[:2], "test_y": y[:2],
    }  # fmt: skip
    Arrays(**good)
    with pytest.raises(DataError, match=problem):
        Arrays(**good | change)


@pytest.mark.parametrize("method", ["dir", "patho", "dir_unbalanced"])
def test_who_owns_how_many_of_each_class_depends_on_the_counts_alone(method: str) -> None:
    """MNIST without its pixels is divided like the same labels in a random order, test and held-out rows too."""
    plain = without_pixels("mnist")
    mixed = {y: getattr(plain, y)[torch.randperm(len(getattr(plain, y)))] for y in ("train_y", "test_y")}
    spec = PartitionSpec(method, clients=40, alpha=2, seed=3)

    def counts(arrays: Arrays) -> list[list[list[int]]]:
        federation = build_federation(arrays, spec, default_preprocess(arrays), validation_portion=0.1)
        rows = [(arrays.train_y, federation.train_parts), (arrays.test_y, federation.test_parts)]
        rows.append((arrays.train_y, federation.held_out))
        return [[torch.bincount(y[own], minlength=10).tolist() for own in parts] for y, parts in rows]

    assert counts(plain) == counts(replace(plain, **mixed))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("cifar10", (50_000, 10_000)),
        ("cifar100", (50_000, 10_000)),
        ("tinyimagenet", (100_000, 10_000)),
        ("mnist", (60_000, 10_000)),
        ("fashion_mnist", (60_000, 10_000)),
    ],
)
def test_a_published_set_without_its_pixels_has_the_published_rows(name: str, rows: tuple[int, int]) -> None:
    arrays = without_pixels(name)
    assert (len(arrays.train_y), len(arrays.test_y)) == rows
    assert arrays.train_x.shape[1:] == (len(NORMALISATION[name][0]), *KNOWN[name].image[:2])
    assert len(torch.bincount(arrays.train_y)) == arrays.num_classes


@pytest.mark.data
def test_the_real_cifar10_has_the_published_statistics() -> None:
    """50,000 + 10,000 images, 5,000 + 1,000 per class, and the authors' normalisation constants."""
    folder = os.environ.get("SSFL_DATA_DIR")
    if not folder or not Path(folder, "cifar10.npz").is_file():
        pytest.skip("needs the real CIFAR-10: SSFL_DATA_DIR/cifar10.npz (docs/data.md)")
    arrays = load_arrays("cifar10", Path(folder))
    assert torch.bincount(arrays.train_y).tolist() == [5000] * 10
    assert torch.bincount(arrays.test_y).tolist() == [1000] * 10
    mean, std = NORMALISATION["cifar10"]
    for channel in range(3):
        counts = np.bincount(arrays.train_x[:, channel].numpy().ravel(), minlength=256)
        values = np.arange(256) / 255
        average = np.average(values, weights=counts)
        assert average == pytest.approx(mean[channel], abs=1e-6)
        # the published deviations were accumulated in float32; they agree to 5 digits
        assert np.sqrt(np.average((values - average) ** 2, weights=counts)) == pytest.approx(
            std[channel], abs=1e-5
        )
