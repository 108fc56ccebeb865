"""Exported files, read with safetensors only, equal the flat vectors that they were written from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ssfl.algorithms.base import ClientState, Clock
from ssfl.algorithms.local_training import MODEL
from ssfl.assemble.build import RunSetup
from ssfl.assemble.export import client_model, export, write_client_models
from ssfl.core.layout import Layout
from ssfl.core.payloads import SparseValues, dense_values, pack_sparse
from ssfl.engine.accounting.ledger import Ledger
from ssfl.engine.client.memory import ClientMemory
from ssfl.engine.state.progress import Progress
from ssfl.models import build_model
from tests.support.assembled import run_setup


def ended(state: Any, states: Mapping[int, ClientState]) -> Progress:
    return Progress(state, Clock(3, 2), None, Ledger(), {c: ClientMemory(s) for c, s in states.items()})


def drawn(parts_: RunSetup, seed: int) -> Tensor:
    return torch.randn(parts_.theta.shape, generator=torch.Generator().manual_seed(seed))


def flat(module_parts: RunSetup, tensors: Mapping[str, Tensor]) -> Tensor:
    """The flat vector through `load_state_dict` of a new network, not through our layout's views."""
    config, data = module_parts.config, module_parts.federation
    module = build_model(config.model.name, data.arrays.num_classes, data.input_shape, config.model.norm)
    module.load_state_dict(dict(tensors))
    return Layout.of(module).flatten(module)


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["ssfl"])
    return about


def test_a_global_model_loads_into_a_network_built_from_what_the_file_tells(tmp_path: Path) -> None:
    run = run_setup()
    theta = drawn(run, 1)
    state = replace(run.algorithm.initialize(run.theta, run.context), theta=theta)
    path = export(run, ended(state, {}), tmp_path)
    about = metadata_of(path)
    module = build_model(about["model"], about["num_classes"], tuple(about["input_shape"]), about["norm"])
    module.load_state_dict(load_file(path))
    assert Layout.of(module).flatten(module).equal(theta)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert about["num_classes"] == 10


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_every_clients_own_model(norm: str, tmp_path: Path) -> None:
    """With BatchNorm the file contains int64 and float32; clients that never trained get the initial model."""
    run = run_setup("algorithm=local", f"model.norm={norm}")
    models = {1: drawn(run, 1), 3: drawn(run, 3)}
    state = run.algorithm.initialize(run.theta, run.context)
    path = export(run, ended(state, {c: {MODEL: theta} for c, theta in models.items()}), tmp_path)
    assert path.name == "client_models.safetensors"
    found = load_file(path)
    for client in range(4):
        prefix = f"client{client:05d}/"
        own = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
        assert own.keys() == run.module.state_dict().keys()
        assert flat(run, own).equal(models.get(client, run.theta))
    assert metadata_of(path)["norm"] == norm


def test_tensors_of_a_streamed_file_are_aligned_and_leave_no_gap(tmp_path: Path) -> None:
    run = run_setup("algorithm=local", "model.norm=batch")
    path = tmp_path / "m.safetensors"
    write_client_models(run, {}, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8 : 8 + length])
    head.pop("__metadata__")
    assert length % 8 == 0
    spans = sorted(entry["data_offsets"] for entry in head.values())
    assert spans[0][0] == 0
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert spans[-1][1] == len(raw) - 8 - length
    for entry in head.values():
        assert entry["data_offsets"][0] % {"I64": 8, "F32": 4}[entry["dtype"]] == 0


def test_dispfls_models_are_zero_off_their_masks() -> None:
    run = run_setup("algorithm=dispfl")
    theta = drawn(run, 5)
    part: SparseValues = pack_sparse(theta, theta > 0)
    found = client_model(run, {"values": part.values, "bits": part.bits, "mask": part.bits})
    assert found.equal(torch.where(theta > 0, theta, 0.0))
    assert found.equal(dense_values(part))
    assert client_model(run, {}) is run.theta
