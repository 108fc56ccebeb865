"""The model that a site keeps at the end of a run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from safetensors.torch import load_file

from ssfl.assemble.execution import resolve_engine, runner_of
from ssfl.deploy.site.trainer import write_model
from tests.support.assembled import run_setup


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_sites_model_follows_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    setup = run_setup("engine.executor=sequential", "engine.block=1", "engine.memory_format=contiguous")
    resolve_engine(setup.config, setup)
    before = os.umask(umask)
    try:
        write_model(runner_of(setup), setup.theta, tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == mode
    tensors = load_file(tmp_path / "model.safetensors")
    named = setup.layout.named(setup.theta)
    assert tensors.keys() == named.keys()
    assert all(tensors[name].equal(named[name]) for name in named)
