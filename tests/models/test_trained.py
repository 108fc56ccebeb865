"""Model files from others: every field of their metadata is checked, and claimed sizes allocate nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ssfl.models import ModelError, build_model
from ssfl.models.trained import load_trained, read_trained
from tests.support.refusals import refusal

INPUTS: Mapping[str, Any] = {
    "input_dtype": "float32",
    "divisor": 2.0,
    "mean": [1.0],
    "std": [0.5, 1, 2, 4],
    "class_names": ["a", "b", "c"],
}
ABOUT: Mapping[str, Any] = {
    "model": "mlp",
    "num_classes": 3,
    "input_shape": [4],
    "norm": "group",
    "inputs": INPUTS,
}


def written(folder: Path, about: object, tensors: Mapping[str, Tensor] | None = None) -> Path:
    text = about if isinstance(about, str) else json.dumps(about)
    state = dict(build_model("mlp", 3, (4,)).state_dict() if tensors is None else tensors)
    save_file(state, folder / "m.safetensors", metadata={"ssfl": text})
    return folder / "m.safetensors"


def test_a_good_file_is_the_network_behind_its_preprocessing(tmp_path: Path) -> None:
    x = torch.rand(5, 4)
    path = written(tmp_path, ABOUT)
    network = build_model("mlp", 3, (4,)).eval()
    network.load_state_dict(dict(read_trained(path).tensors))
    expected = network((x / 2 - 1) / torch.tensor([0.5, 1, 2, 4]))
    assert torch.allclose(load_trained(path)(x), expected)


FIELDS = (*(name for name in ABOUT if name != "inputs"), *(f"inputs.{name}" for name in INPUTS))
BAD: tuple[Any, ...] = ("missing", None, [], {}, "x", -1, float("nan"), [None], 10**400, True)
CASES = [(name, bad) for name in FIELDS for bad in BAD if bad != "x" or name not in ("model", "norm")]


@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda part: repr(part)[:20])
def test_every_field_is_checked(tmp_path: Path, name: str, value: Any) -> None:
    changed: dict[str, Any] = {**ABOUT, "inputs": dict(INPUTS)}
    where, _, field = name.rpartition(".")
    inner = changed["inputs"] if where else changed
    inner[field] = value
    if value == "missing":
        del inner[field]
    path = written(tmp_path, changed)
    text = refusal(lambda: load_trained(path), ModelError)
    assert field in text
    assert "allowed: " in text


@pytest.mark.parametrize(
    "about", ["", "null", "[" * 100_000, "{", "3", {"inputs": INPUTS}, {**ABOUT, "inputs": [1]}]
)
def test_what_describes_no_network_is_one_line(tmp_path: Path, about: object) -> None:
    refusal(lambda: load_trained(written(tmp_path, about)), ModelError)


@pytest.mark.parametrize("claimed", [{"num_classes": 2**31 - 1}, {"input_shape": [2**31 - 1]}])
def test_claimed_sizes_allocate_nothing(tmp_path: Path, claimed: Mapping[str, Any]) -> None:
    path = written(tmp_path, {**ABOUT, **claimed, "inputs": None})
    assert "other names or shapes" in refusal(lambda: load_trained(path), ModelError)


@pytest.mark.parametrize("shape", [[2**31 - 1] * 3, [3, 2**31 - 1, 2**31 - 1], [2] * 8 + [1], [2**16, 2**15]])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_examples_too_large_for_any_network_are_refused(tmp_path: Path, model: str, shape: list[int]) -> None:
    path = written(tmp_path, {**ABOUT, "model": model, "input_shape": shape, "inputs": None})
    assert "input_shape=[" in refusal(lambda: load_trained(path), ModelError)


def test_names_with_a_slash_are_not_clients(tmp_path: Path) -> None:
    """PyTorch allows them in names of modules."""
    path = written(tmp_path, ABOUT, {"block/a.weight": torch.ones(2), "client7/x": torch.zeros(1)})
    assert set(read_trained(path).tensors) == {"block/a.weight", "client7/x"}
    with pytest.raises(ModelError, match="one network for all clients: omit client"):
        read_trained(path, client=7)


def test_clients_networks_are_told_apart(tmp_path: Path) -> None:
    path = written(tmp_path, ABOUT, {"client00007/a/b": torch.ones(2), "client123456/a/b": torch.zeros(1)})
    assert read_trained(path, client=123456).tensors["a/b"].equal(torch.zeros(1))
    with pytest.raises(ModelError, match=r"choose one with client=7\.\.123456"):
        read_trained(path)


def test_wrong_arguments_are_one_line(tmp_path: Path) -> None:
    assert f"is a folder; name the file in it, such as {tmp_path}/model.safetensors" in refusal(
        lambda: load_trained(tmp_path), ModelError
    )
