"""A finished run's files, evaluated on raw test rows with plain PyTorch, against the accuracy that the run reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ssfl import assemble
from ssfl.assemble.portable import ExportError, export_file
from ssfl.cli import main
from ssfl.models import ModelError, build_model
from ssfl.models.trained import load_trained
from ssfl.output import OutputError
from tests.support.assembled import config

Rows = tuple[NDArray[Any], NDArray[np.int64]]


def write_table(path: Path) -> Rows:
    """Two classes that are separable only after scaling; returns the test rows as stored in the file."""
    draws = np.random.default_rng(3)
    y = draws.integers(0, 2, 240)
    x = draws.normal(size=(240, 3)) + 1.5 * y[:, None]
    x = (x * [1e-3, 1.0, 500.0] + [7.0, 0.0, -2000.0]).astype(np.float32)
    x[:, 1] += 100
    np.savez(
        path, train_x=x[:160], train_y=y[:160], test_x=x[160:], test_y=y[160:], class_names=["sick", "well"]
    )
    return x[160:], y[160:]


def write_images(path: Path) -> Rows:
    """Bytes of three channels with means far apart."""
    draws = np.random.default_rng(4)
    y = draws.integers(0, 3, 150)
    x = draws.integers(0, 60, (150, 8, 8, 3)) + np.array([10, 90, 190])
    for label in range(3):
        x[y == label, label * 2 : label * 2 + 3] += 12  # rows of pixels that are a little brighter
    x = x.astype(np.uint8)
    np.savez(path, train_x=x[:100], train_y=y[:100], test_x=x[100:], test_y=y[100:])
    return x[100:].transpose(0, 3, 1, 2), y[100:]


def finished(folder: Path, data: Path, *words: str) -> tuple[Path, float]:
    """A finished run: its folder, and its reported accuracy."""
    asked = config(
        f"dataset.name={data}",
        f"experiment.output_dir={folder}",
        "wandb.exp_name=r",
        "algorithm=fedavg",
        *words,
    )
    assert assemble.run(asked) == 0
    (run,) = (folder / "r").iterdir()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return run, last["global_accuracy"]


def hits(logits: Tensor, labels: NDArray[np.int64]) -> float:
    return float((logits.argmax(1) == torch.from_numpy(labels)).double().mean())


@pytest.fixture(scope="module", params=["table", "images"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, Rows]:
    folder = tmp_path_factory.mktemp(request.param)
    data = folder / "own.npz"
    table = request.param == "table"
    rows = write_table(data) if table else write_images(data)
    made, accuracy = finished(folder, data, "model.name=mlp", "training.comm_round=6", "optimizer.lr=0.05")
    return made, accuracy, rows


def test_the_line_of_the_readme_applies_the_preprocessing(run: tuple[Path, float, Rows]) -> None:
    """The preprocessing is built from the file's metadata; without it the predictions differ."""
    folder, accuracy, (x, y) = run
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["ssfl"])
    net = build_model(about["model"], about["num_classes"], about["input_shape"], about["norm"]).eval()
    net.load_state_dict(load_file(path))
    inputs, rows = about["inputs"], torch.from_numpy(x)
    mean, std = (torch.tensor(inputs[key]).view(1, -1, *[1] * (rows.dim() - 2)) for key in ("mean", "std"))
    with torch.no_grad():
        assert hits(net((rows.float() / inputs["divisor"] - mean) / std), y) == pytest.approx(accuracy)
        assert hits(net(rows.float()), y) < accuracy - 0.1
        assert hits(load_trained(path)(rows), y) == pytest.approx(accuracy)
    assert len(inputs["class_names"]) == about["num_classes"]


def test_torch_export_takes_raw_rows_in_batches_of_any_size(run: tuple[Path, float, Rows]) -> None:
    folder, accuracy, (x, y) = run
    path = export_file(folder, "pt2")
    net = torch.export.load(path).module()
    rows = torch.from_numpy(x)
    logits = torch.cat([net(piece) for piece in (rows[:1], rows[1:4], rows[4:])])
    assert hits(logits, y) == pytest.approx(accuracy)
    assert torch.allclose(logits, load_trained(folder / "model.safetensors")(rows), atol=1e-5)


def test_onnx_takes_raw_rows(run: tuple[Path, float, Rows]) -> None:
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    folder, accuracy, (x, y) = run
    path = export_file(folder, "onnx")
    evaluator = reference.ReferenceEvaluator(str(path))
    pieces = [evaluator.run(None, {"rows": piece})[0] for piece in (x[:1], x[1:])]
    assert hits(torch.from_numpy(np.concatenate(pieces)), y) == pytest.approx(accuracy)
    about = {p.key: p.value for p in __import__("onnx").load(path).metadata_props}
    assert json.loads(about["ssfl"])["num_classes"] == int(y.max()) + 1


def test_one_clients_network(tmp_path: Path) -> None:
    x, _ = write_table(tmp_path / "own.npz")
    folder, _ = finished(tmp_path, tmp_path / "own.npz", "algorithm=local", "model.name=mlp")
    with pytest.raises(ExportError, match=r"no global model.*--client 0"):
        export_file(folder, "pt2")
    with pytest.raises(ModelError, match=r"client 9; it contains clients 0\.\.3"):
        export_file(folder, "safetensors", client=9)
    out = export_file(folder, "safetensors", tmp_path / "new" / "mine.safetensors", client=2)
    own = load_trained(folder / "client_models.safetensors", client=2)
    other = load_trained(folder / "client_models.safetensors", client=1)
    rows = torch.from_numpy(x)
    assert load_trained(out)(rows).equal(own(rows))
    assert not own(rows).equal(other(rows))
    with pytest.raises(ModelError, match=r"network per client; choose one with client=0\.\.3"):
        load_trained(folder / "client_models.safetensors")


class NotTraceable(torch.nn.Module):
    """Branches on values, which cannot be traced."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def test_a_network_that_cannot_be_traced_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "own.npz")
    name = f"{NotTraceable.__module__}:{NotTraceable.__name__}"
    folder, _ = finished(tmp_path, tmp_path / "own.npz", f"model.name={name}")
    before = sorted(folder.iterdir())
    capsys.readouterr()
    assert main(["export", str(folder)]) == 2
    printed = capsys.readouterr().err
    assert "cannot trace this network" in printed
    assert "--format safetensors" in printed
    assert printed.count("\n") == 1
    assert sorted(folder.iterdir()) == before
    with pytest.raises(ModelError, match=r"custom network .*network=NotTraceable"):
        load_trained(folder / "model.safetensors")
    assert load_trained(folder / "model.safetensors", network=NotTraceable(2))(torch.ones(1, 3)).shape == (
        1,
        2,
    )


class Tokens(torch.nn.Module):
    """Takes token numbers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(20, 8), torch.nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).mean(1))


def test_a_network_of_token_numbers_is_exported(tmp_path: Path) -> None:
    x = np.random.default_rng(5).integers(0, 20, (90, 6))
    y = x[:, 0] % 3
    np.savez(tmp_path / "own.npz", train_x=x[:60], train_y=y[:60], test_x=x[60:], test_y=y[60:])
    name = f"model.name={Tokens.__module__}:{Tokens.__name__}"
    folder, _ = finished(tmp_path, tmp_path / "own.npz", name, "dataset.features=unchanged")
    rows = torch.from_numpy(x)
    expected = load_trained(folder / "model.safetensors", network=Tokens(3))(rows)
    assert torch.allclose(torch.export.load(export_file(folder, "pt2")).module()(rows), expected, atol=1e-6)
    again = load_trained(export_file(folder, "safetensors"), network=Tokens(3))
    assert again(rows).equal(expected)
    pytest.importorskip("onnxscript")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator(str(export_file(folder, "onnx")))
    assert np.allclose(evaluator.run(None, {"rows": x})[0], expected.detach().numpy(), atol=1e-5)


def test_the_format_is_taken_from_the_name_of_the_file(run: tuple[Path, float, Rows], tmp_path: Path) -> None:
    folder, _, _ = run
    path = export_file(folder, None, tmp_path / "net.safetensors")
    assert load_file(path).keys() == load_file(folder / "model.safetensors").keys()
    assert export_file(folder, None, tmp_path / "net").read_bytes()[:2] == b"PK"
    with pytest.raises(
        ExportError, match=r"net\.onnx: ends in \.onnx; use --format onnx, or a name that ends in \.pt2"
    ):
        export_file(folder, "pt2", tmp_path / "net.onnx")


class Projected(torch.nn.Module):
    """Its first layer is a random constant that no file contains."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.projection: Tensor
        self.register_buffer("projection", torch.randn(3, 16), persistent=False)
        self.last = torch.nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x @ self.projection).relu())


def test_random_buffers_that_no_file_contains_are_those_of_the_run(tmp_path: Path) -> None:
    rows, labels = write_table(tmp_path / "table.npz")
    folder, accuracy = finished(
        tmp_path, tmp_path / "table.npz", "model.name=tests.assemble.test_portable:Projected"
    )
    network = torch.export.load(export_file(folder, "pt2")).module()
    assert hits(network(torch.from_numpy(rows)), labels) == pytest.approx(accuracy)
    with pytest.raises(
        ModelError, match=r"not saved \(projection\) differ from those of the run: build it after"
    ):
        load_trained(folder / "model.safetensors", network=Projected())
    torch.manual_seed(550)
    again = load_trained(folder / "model.safetensors", network=Projected())
    torch.testing.assert_close(again(torch.from_numpy(rows)), network(torch.from_numpy(rows)))


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        export_file(tmp_path, "pt2")
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "config.yaml").touch()
    with pytest.raises(ExportError, match=rf"is not finished; ssfl resume '{folder}'"):
        export_file(folder, "pt2")
    (folder / "model.safetensors").write_bytes(b"half")  # a resume writes it again
    with pytest.raises(ExportError, match="is not finished; ssfl resume"):
        export_file(folder, "pt2")
    header = b'{"w": {"dtype": "none", "shape": [1], "data_offsets": [0, 0]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        export_file(folder, "pt2")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    write_table(tmp_path / "t.npz")
    run, _ = finished(tmp_path, tmp_path / "t.npz", "model.name=mlp", "training.comm_round=1")
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "x.safetensors", tmp_path / ("a" * 300 + ".safetensors")):
        with pytest.raises(OutputError, match=f"--out {out}: .*; "):
            export_file(run, "safetensors", out)
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]


def test_a_client_of_a_run_with_a_global_model_is_refused(run: tuple[Path, float, Rows]) -> None:
    with pytest.raises(ExportError, match=r"one global model.*omit --client"):
        export_file(run[0], "safetensors", client=0)
