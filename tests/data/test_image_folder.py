"""Folders of images, drawn here with Pillow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssfl.data.errors import DataError
from ssfl.data.preprocess import default_preprocess
from ssfl.data.sources import load_arrays

image = pytest.importorskip("PIL.Image", reason="image folders need Pillow (the images extra)")


def _paint(path: Path, value: int, size: tuple[int, int] = (4, 3), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new(mode, size, value if mode != "RGB" else (value, 0, 255 - value)).save(path)


def _train_and(root: Path, test: str) -> None:
    for label, name in enumerate(("cat", "dog")):
        for index in range(3):
            _paint(root / "train" / name / f"{index}.png", 100 * label + index)
        _paint(root / test / name / "deep" / "0.png", 200 + label)
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()


@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("prefix", ["imagefolder:", ""])
def test_train_and_test_folders(tmp_path: Path, test: str, prefix: str) -> None:
    _train_and(tmp_path / "pets", test)
    arrays = load_arrays(f"{prefix}{tmp_path / 'pets'}", tmp_path)
    assert (arrays.name, arrays.class_names) == ("pets", ("cat", "dog"))
    assert arrays.train_x.shape == (6, 3, 3, 4)  # 4 wide, 3 high
    assert arrays.train_y.tolist() == [0, 0, 0, 1, 1, 1]
    assert arrays.train_x[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert arrays.test_x[:, 0, 2, 3].tolist() == [200, 201]
    assert arrays.test_x[:, 2, 0, 0].tolist() == [55, 54]


def test_one_level_of_classes_is_split(tmp_path: Path) -> None:
    for label, name in enumerate(("a", "b")):
        for index in range(10):
            _paint(tmp_path / "set" / name / f"{index}.png", 100 * label + index, mode="L")
    arrays = load_arrays(f"imagefolder:{tmp_path / 'set'}", tmp_path)
    assert (len(arrays.train_x), arrays.train_x.shape[1]) == (16, 1)
    assert arrays.test_y.tolist() == [0, 0, 1, 1]
    values = np.concatenate([arrays.train_x[:, 0, 0, 0], arrays.test_x[:, 0, 0, 0]])
    assert sorted(values.tolist()) == [*range(10), *range(100, 110)]


@pytest.mark.parametrize("name", ["cifar10", "mnist", "mine"])
def test_a_folder_named_like_a_published_set_has_constants_of_its_own(tmp_path: Path, name: str) -> None:
    for label in ("a", "b"):
        for index in range(10):
            _paint(tmp_path / name / label / f"{index}.png", 20 * index, mode="L")
    found = default_preprocess(load_arrays(f"imagefolder:{tmp_path / name}", tmp_path))
    assert len(found.mean) == 1
    assert not found.augments
    assert found.mean[0] == pytest.approx(90 / 255, abs=0.06)
    assert found.mean[0] != pytest.approx(0.1307, abs=1e-3)


def test_other_sizes_are_resized_and_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index in range(5):
            _paint(tmp_path / "set" / name / f"{index}.png", 50, (4, 4) if index else (8, 6))
    with pytest.warns(UserWarning, match="8 of 10 images were resized to 8x6"):
        arrays = load_arrays(f"imagefolder:{tmp_path / 'set'}", tmp_path)
    assert arrays.train_x.shape[1:] == (3, 6, 8)
    assert set(arrays.train_x[:, 0].flatten().tolist()) == {50}


def test_a_folder_without_images_is_a_class_and_said(tmp_path: Path) -> None:
    for name in ("a", "c"):
        for index in range(5):
            _paint(tmp_path / "set" / name / f"{index}.png", 50)
    (tmp_path / "set" / "b").mkdir()
    with pytest.warns(UserWarning, match=r"no training image of b; .* \(3 classes in all\)"):
        arrays = load_arrays(f"imagefolder:{tmp_path / 'set'}", tmp_path)
    assert arrays.class_names == ("a", "b", "c")
    assert set(arrays.train_y.tolist()) == {0, 2}


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_arrays(f"imagefolder:{tmp_path / 'none'}", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in class folders"):
        load_arrays(f"imagefolder:{tmp_path / 'empty'}", tmp_path)
    _train_and(tmp_path / "pets", "test")
    _paint(tmp_path / "pets" / "test" / "eel" / "0.png", 1)
    with pytest.raises(DataError, match="class eel is not in"):
        load_arrays(f"imagefolder:{tmp_path / 'pets'}", tmp_path)
    _paint(tmp_path / "half" / "train" / "a" / "0.png", 1)
    with pytest.raises(DataError, match="train/ without test/ or val/"):
        load_arrays(f"imagefolder:{tmp_path / 'half'}", tmp_path)


@pytest.mark.parametrize("keep", [0, 20, 1000])
def test_a_broken_image_is_named(tmp_path: Path, keep: int) -> None:
    for name in ("a", "b"):
        _paint(tmp_path / "set" / name / "0.png", 3)
        _paint(tmp_path / "set" / name / "1.png", 3)
    broken = tmp_path / "set" / "b" / "1.png"
    noise = np.random.default_rng(0).integers(
        0, 256, (30, 30, 3), dtype=np.uint8
    )  # does not compress: 2,700 bytes
    image.fromarray(noise).save(broken)
    broken.write_bytes(broken.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"b.1\.png: cannot be read"):
        load_arrays(f"imagefolder:{tmp_path / 'set'}", tmp_path)


def test_a_test_part_may_lack_a_class(tmp_path: Path) -> None:
    _train_and(tmp_path / "pets", "test")
    for name in ("bat", "fox"):
        _paint(tmp_path / "pets" / "train" / name / "0.png", 7)
    arrays = load_arrays(str(tmp_path / "pets"), tmp_path)
    assert arrays.class_names == ("bat", "cat", "dog", "fox")
    assert arrays.test_y.tolist() == [1, 2]


def test_one_image_of_each_class_leaves_none_for_testing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _paint(tmp_path / "set" / name / "0.png", 7)
    with pytest.raises(DataError, match="set: none of its 2 rows can be held out for testing"):
        load_arrays(str(tmp_path / "set"), tmp_path)


def test_grey_images_with_transparency_stay_grey(tmp_path: Path) -> None:
    for index in range(10):
        _paint(tmp_path / "set" / "ab"[index % 2] / f"{index}.png", 10 * index, mode="L")
    for path in (tmp_path / "set").glob("*/*.png"):
        with image.open(path) as picture:
            picture.convert("LA").save(path)
    arrays = load_arrays(str(tmp_path / "set"), tmp_path)
    assert arrays.train_x.shape[1] == 1
    found = np.concatenate([arrays.train_x[:, 0, 0, 0], arrays.test_x[:, 0, 0, 0]])
    assert sorted(found.tolist()) == list(range(0, 100, 10))


@pytest.mark.parametrize(
    ("change", "suffix"),
    [
        (
            lambda raw: raw[:18] + b"\xff\xff\xff\x7f" + raw[22:],
            ".bmp",
        ),  # DecompressionBombError: a width of 2^31 pixels
        (lambda raw: raw[:102] + b"\0" + raw[103:], ".tif"),  # ValueError
    ],
)
def test_damaged_sizes_are_one_line(tmp_path: Path, change: Callable[[bytes], bytes], suffix: str) -> None:
    """Pillow raises other errors than OSError for these."""
    for name in ("a", "b"):
        for index in range(3):
            _paint(tmp_path / "set" / name / f"{index}{suffix}", 9)
    broken = tmp_path / "set" / "b" / f"1{suffix}"
    broken.write_bytes(change(broken.read_bytes()))
    with pytest.raises(DataError, match=rf"1\{suffix}: cannot be read as an image"):
        load_arrays(str(tmp_path / "set"), tmp_path)


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _paint(tmp_path / "set" / name / "0.png", 40_000, mode="I;16")
    with pytest.raises(DataError, match="more than 8 bits"):
        load_arrays(f"imagefolder:{tmp_path / 'set'}", tmp_path)
