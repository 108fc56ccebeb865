"""Sites of unequal size, with one example, without a class, with and without test rows; an image folder and an .npz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssfl.data.errors import DataError
from ssfl.deploy.errors import DeployError
from ssfl.deploy.protocol.messages import Scaling
from ssfl.deploy.site.data import data_of_client, load_site_data, save_npz


def write(path: Path, **columns: Any) -> str:
    np.savez(path, **columns)
    return str(path)


def images(count: int) -> np.ndarray:
    return np.arange(count * 16, dtype=np.uint8).reshape(count, 4, 4, 1)


def test_a_site_with_one_example_trains_on_it_and_tests_on_none(tmp_path: Path) -> None:
    data = load_site_data(write(tmp_path / "a.npz", train_x=images(1), train_y=np.array([1])))
    assert (data.examples, data.test_examples) == (1, 0)
    federation = data.federation(3, None)
    assert federation.examples(3) == 1
    assert [len(p) for p in federation.train_parts] == [0, 0, 0, 1]
    assert list(federation.test_batches(3, 8)) == []


def test_a_site_that_lacks_a_class_keeps_the_common_order(tmp_path: Path) -> None:
    data = load_site_data(
        write(tmp_path / "a.npz", train_x=images(4), train_y=np.array([0, 3, 3, 0])), test="none"
    )
    common = data.with_classes(("0", "1", "2", "3", "4"))
    assert common.arrays.num_classes == 5
    assert common.arrays.train_y.tolist() == [0, 3, 3, 0]


def test_named_classes_are_put_into_the_runs_order(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.npz",
        train_x=images(3),
        train_y=np.array([0, 1, 1]),
        class_names=np.array(["cat", "dog"]),
    )
    data = load_site_data(source, test="none").with_classes(("bird", "dog", "cat"))
    assert data.arrays.train_y.tolist() == [2, 1, 1]
    with pytest.raises(DeployError, match="class 'cat' is not among the classes of the run"):
        load_site_data(source, test="none").with_classes(("bird", "dog"))


def test_own_test_rows_are_kept_and_others_held_out(tmp_path: Path) -> None:
    own = load_site_data(
        write(
            tmp_path / "a.npz",
            train_x=images(9),
            train_y=np.arange(9) % 2,
            test_x=images(2),
            test_y=np.array([0, 1]),
        )
    )
    assert (own.examples, own.test_examples) == (9, 2)
    held = load_site_data(write(tmp_path / "b.npz", train_x=images(10), train_y=np.arange(10) % 2))
    assert (held.examples, held.test_examples) == (8, 2)
    none = load_site_data(str(tmp_path / "b.npz"), test="none")
    assert (none.examples, none.test_examples) == (10, 0)


def test_the_servers_scaling_rules(tmp_path: Path) -> None:
    x = np.array([[1.0, 10.0], [3.0, 30.0]], dtype=np.float32)
    data = load_site_data(write(tmp_path / "a.npz", train_x=x, train_y=np.array([0, 1])), test="none")
    federation = data.federation(0, Scaling((1.0, 10.0), (2.0, 20.0)))
    ((batch, _),) = federation.train_batches(0, torch.arange(2), 8, None)
    assert batch.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    own = data.federation(0, None)
    ((batch, _),) = own.train_batches(0, torch.arange(2), 8, None)
    assert batch.tolist() == [[-1.0, -1.0], [1.0, 1.0]]
    with pytest.raises(DeployError, match="scales 3 channels or features, this data has 2"):
        data.federation(0, Scaling((0.0,) * 3, (1.0,) * 3))


def test_whole_numbers_stay_whole_only_where_the_run_asks_for_it(tmp_path: Path) -> None:
    x = np.array([[1, 10], [3, 30]], dtype=np.uint8)
    data = load_site_data(write(tmp_path / "a.npz", train_x=x, train_y=np.array([0, 1])), test="none")
    ((kept, _),) = data.federation(0, None, unchanged=True).train_batches(0, torch.arange(2), 8, None)
    assert (kept.dtype, kept.tolist()) == (torch.int64, x.tolist())
    ((scaled, _),) = data.federation(0, None).train_batches(0, torch.arange(2), 8, None)
    assert (scaled.dtype, scaled.tolist()) == (torch.float32, [[-1.0, -1.0], [1.0, 1.0]])
    pixels = load_site_data(write(tmp_path / "b.npz", train_x=images(4), train_y=np.arange(4) % 2))
    with pytest.raises(DeployError, match="unchanged is for tables; this data holds images"):
        pixels.federation(0, None, unchanged=True)


def test_an_image_folder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for name in ("no", "yes"):
            folder = tmp_path / "site" / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                image.fromarray(np.full((6, 6), 40 * number, np.uint8)).save(folder / f"{number}.png")
    data = load_site_data(str(tmp_path / "site"))
    assert (data.examples, data.test_examples, data.input_shape) == (6, 6, (1, 6, 6))
    assert data.arrays.class_names == ("no", "yes")


@pytest.mark.parametrize(
    ("source", "reason"), [("nowhere", "neither a folder nor an .npz"), ("nowhere.npz", "no such file")]
)
def test_a_path_without_data_is_refused_in_one_line(source: str, reason: str) -> None:
    with pytest.raises((DeployError, DataError), match=reason):
        load_site_data(source)


def test_a_share_of_a_federation_comes_back_from_its_file(tmp_path: Path) -> None:
    from ssfl.data.federation import build_federation
    from ssfl.data.partition import PartitionSpec
    from ssfl.data.preprocess import default_preprocess
    from ssfl.data.sources import load_arrays

    arrays = load_arrays("digits")
    federation = build_federation(arrays, PartitionSpec("dir", 4, 0.3, 1), default_preprocess(arrays))
    for client in range(4):
        share = data_of_client(federation, client)
        save_npz(share, tmp_path / "share.npz")
        back = load_site_data(str(tmp_path / "share.npz"), test="auto" if share.has_test else "none")
        assert back.arrays.train_x.equal(arrays.train_x[federation.train_parts[client]])
        assert back.arrays.train_y.equal(arrays.train_y[federation.train_parts[client]])
        assert back.test_examples == len(federation.test_parts[client])
        assert back.arrays.class_names == arrays.class_names
