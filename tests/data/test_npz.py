"""A user's .npz: what is accepted, and one clear line for what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ssfl.data.errors import DataError
from ssfl.data.preprocess import default_preprocess
from ssfl.data.sources import load_arrays

Columns = dict[str, NDArray]


def _images(rows: int = 12, channels: int = 3) -> Columns:
    rng = np.random.default_rng(rows)
    return {
        "train_x": rng.integers(0, 256, (rows, 5, 4, channels), dtype=np.uint8),
        "train_y": np.arange(rows, dtype=np.uint8) % 3,
        "test_x": rng.integers(0, 256, (6, 5, 4, channels), dtype=np.uint8),
        "test_y": np.arange(6) % 3,
    }


def _table(rows: int = 50) -> Columns:
    x = np.random.default_rng(1).normal(size=(rows, 4))
    return {"train_x": x, "train_y": np.arange(rows) % 2}


def _save(folder: Path, columns: Columns, name: str = "own.npz") -> Path:
    np.savez(folder / name, **columns)  # type: ignore[arg-type]
    return folder / name


def test_images_become_channels_first_bytes(tmp_path: Path) -> None:
    columns = _images()
    arrays = load_arrays(str(_save(tmp_path, columns)), tmp_path)
    assert (arrays.name, arrays.num_classes, arrays.class_names) == ("own", 3, ("0", "1", "2"))
    assert arrays.train_x.dtype == torch.uint8
    assert arrays.train_x.is_contiguous()
    assert arrays.train_x.shape == (12, 3, 5, 4)
    for row, channel, i, j in [(0, 0, 0, 0), (7, 2, 4, 1), (11, 1, 3, 3)]:
        assert arrays.train_x[row, channel, i, j] == columns["train_x"][row, i, j, channel]
    assert arrays.train_y.dtype == torch.int64
    assert arrays.train_y.tolist() == columns["train_y"].tolist()


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_differences_that_float32_does_not_keep_are_said(tmp_path: Path, kind: type) -> None:
    columns = _table()
    x = np.round(100 * columns["train_x"])
    x[:, 2] += 1.7e9  # neighbours in float32 are 128 apart there
    x[:, 3] = 1.7e9 + 1  # constant: nothing to keep
    with pytest.warns(UserWarning, match=r"train_x: float32 .* features 2, whose values") as said:
        load_arrays(str(_save(tmp_path, {**columns, "train_x": x.astype(kind)})), tmp_path)
    assert len(said) == 1


def test_large_values_that_float32_keeps_are_not_said(tmp_path: Path) -> None:
    columns = _table()
    load_arrays(str(_save(tmp_path, {**columns, "train_x": 1.7e9 * columns["train_x"]})), tmp_path)


def test_grey_images_get_one_channel(tmp_path: Path) -> None:
    columns = _images(channels=1)
    flat = {key: value[..., 0] if key.endswith("x") else value for key, value in columns.items()}
    arrays = load_arrays(str(_save(tmp_path, flat)), tmp_path)
    assert arrays.train_x.shape == (12, 1, 5, 4)
    assert np.array_equal(arrays.test_x[:, 0].numpy(), flat["test_x"])


def test_a_table_is_split_and_standardised_by_its_training_rows(tmp_path: Path) -> None:
    columns = _table()
    columns["train_y"] = columns["train_y"].astype(np.float64)[
        :, None
    ]  # 0.0 and 1.0 in a column are labels too
    arrays = load_arrays(str(_save(tmp_path, columns)), tmp_path)
    assert (len(arrays.train_x), len(arrays.test_x)) == (40, 10)
    assert torch.bincount(arrays.test_y).tolist() == [5, 5]
    rows = torch.cat([arrays.train_x, arrays.test_x])
    assert sorted(rows[:, 0].tolist()) == sorted(columns["train_x"][:, 0].astype(np.float32).tolist())
    normalised = default_preprocess(arrays).normalise(arrays.train_x)
    assert normalised.mean(0).tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    assert normalised.std(0, correction=0).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    again = load_arrays(str(tmp_path / "own.npz"), tmp_path)
    assert torch.equal(again.test_x, arrays.test_x)


def test_sites_are_numbered_alike_in_both_parts(tmp_path: Path) -> None:
    columns = _images(4) | {
        "train_site": np.array(["york", "ulm", "york", "bath"]),
        "test_site": np.array(["ulm"] * 5 + ["york"]),
    }
    columns["train_y"][3] = 2
    arrays = load_arrays(str(_save(tmp_path, columns)), tmp_path)
    assert arrays.train_site is not None
    assert arrays.train_site.tolist() == [2, 1, 2, 0]
    assert arrays.test_site is not None
    assert arrays.test_site.tolist() == [1] * 5 + [2]


def test_sites_of_a_test_part_that_is_not_there_are_refused(tmp_path: Path) -> None:
    x, y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "own.npz", train_x=x, train_y=y, train_site=y, test_site=y)
    with pytest.raises(DataError, match=r"own\.npz: test_site without test_x and test_y"):
        load_arrays(str(tmp_path / "own.npz"), tmp_path)


def test_large_site_numbers_of_two_types_stay_apart(tmp_path: Path) -> None:
    """numpy joins uint64 and int64 as float64, in which 2^60 and 2^60 + 1 are equal."""
    columns = _images(4) | {
        "train_site": np.array([2**60, 2**60 + 1, 5, 5], dtype=np.uint64),
        "test_site": np.array([2**60 + 1] * 6, dtype=np.int64),
    }
    columns["train_y"][3] = 2
    arrays = load_arrays(str(_save(tmp_path, columns)), tmp_path)
    assert arrays.site_names == ("5", str(2**60), str(2**60 + 1))
    assert arrays.train_site is not None
    assert arrays.train_site.tolist() == [1, 2, 0, 0]
    assert arrays.test_site is not None
    assert arrays.test_site.tolist() == [2] * 6


def test_held_out_rows_keep_their_sites(tmp_path: Path) -> None:
    columns = _table(60) | {"train_site": np.arange(60) // 20}
    columns["train_x"][:, 0] = columns["train_site"]
    arrays = load_arrays(str(_save(tmp_path, columns)), tmp_path)
    assert arrays.test_site is not None
    assert arrays.test_site.tolist() == arrays.test_x[:, 0].tolist()
    assert torch.bincount(arrays.test_site).tolist() == [4, 4, 4]


def test_class_names_may_name_a_class_without_rows(tmp_path: Path) -> None:
    columns = _images() | {"class_names": np.array(["a", "b", "c", "d"])}
    assert load_arrays(str(_save(tmp_path, columns)), tmp_path).class_names == ("a", "b", "c", "d")


def test_a_file_of_data_dir_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, _images(), "hospital.npz")
    monkeypatch.chdir(tmp_path.parent)
    assert load_arrays("hospital", tmp_path).name == "hospital"
    assert load_arrays("hospital.npz", tmp_path).name == "hospital"


def test_a_user_file_called_mnist_is_not_mnist(tmp_path: Path) -> None:
    """Its normalisation must be computed from its pixels."""
    arrays = load_arrays(str(_save(tmp_path, _images(), "mnist.npz")), tmp_path / "elsewhere")
    assert len(default_preprocess(arrays).mean) == 3


def _with(key: str, value: Any) -> Columns:
    return _images() | {key: np.asarray(value)}


_NAN = _table()["train_x"].copy()
_NAN[7, 2] = np.nan
_HUGE = _table()["train_x"].copy()
_HUGE[3, 0] = 1e300
_X = _images()["train_x"]

BAD: list[tuple[Columns, str]] = [
    ({"x": np.zeros(3), "y": np.zeros(3)}, r"train_x, train_y missing \(found: x, y\)"),
    ({key: value for key, value in _images().items() if key != "test_y"}, "test_y missing"),
    (_with("train_y", [0, 1]), "train_y has 2 rows, train_x has 12"),
    (_with("train_y", [0, 1, 2] * 3 + [0, -1, 1]), "train_y has the label -1 in row 10"),
    (_with("train_y", [0, 1, 2] * 3 + [0, 0.5, 1]), "train_y has the label 0.5 in row 10"),
    (_with("train_y", [0, 1, 3] * 4), "train_y has no row of class 2 .labels reach 3."),
    (_with("test_y", [0, 1, 2, 0, 1, 7]), "train_y has no row of class 3"),
    (_with("train_y", ["a"] * 12), "train_y is <U1"),
    (_with("class_names", ["a", "b"]), r"train_y has labels 0\.\.2; they must be 0\.\.1"),
    (_with("class_names", [1, 2, 3]), "class_names must be a list of printable text"),
    (_with("train_x", _X.transpose(0, 3, 1, 2).repeat(2, axis=3)), "channels first"),
    (_with("train_x", _X.astype(np.int64)), "contains images of type int64"),
    (_with("train_x", _X[:0]), r"train_x is uint8 \[0, 5, 4, 3\]"),
    (_with("test_x", _images(6)["train_x"][:, :4]), r"uint8 \[3, 5, 4\] in train_x but uint8 \[3, 4, 4\] in test_x"),
    (_with("test_site", np.zeros(6, dtype=int)), "test_site without train_site"),
    (_with("train_site", np.zeros(5, dtype=int)), "train_site has 5 rows, train_x has 12"),
    (_with("train_site", np.zeros(12)), "train_site must be whole numbers or text"),
    (_table() | {"train_x": _NAN}, "has NaN or infinite values"),
    (_table() | {"train_x": _HUGE}, "has NaN or infinite values"),
    (_table() | {"train_y": np.zeros(50, dtype=int)}, "1 class; at least 2"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "problem"), BAD, ids=range(len(BAD)))
def test_one_line_names_the_file_and_the_problem(tmp_path: Path, columns: Columns, problem: str) -> None:
    path = _save(tmp_path, columns)
    with pytest.raises(DataError, match=problem) as caught:
        load_arrays(str(path), tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, train_x=np.array([{"an": "object"}], dtype=object), train_y=np.zeros(1))
    with pytest.raises(DataError, match="plain arrays"):
        load_arrays(str(path), tmp_path)


@pytest.mark.parametrize("kind", ["text", "empty", "npy", "truncated", "absent", "folder"])
def test_files_that_are_no_npz(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "own.npz"
    if kind == "text":
        path.write_text("a,b,c")
    elif kind == "empty":
        path.touch()
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "truncated":
        _save(tmp_path, _images())
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(DataError, match=r"own\.npz: "):
        load_arrays(str(path), tmp_path)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = _save(tmp_path, _images())
    raw = bytearray(path.read_bytes())
    raw[400] ^= 1  # inside train_x's pixels, under the zip member's checksum
    path.write_bytes(raw)
    with pytest.raises(DataError, match="cannot be read"):
        load_arrays(str(path), tmp_path)
