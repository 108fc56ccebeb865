"""Flower's own simulation runtime (Ray) runs the same ServerApp, and the ClientApp over partitions: the same bits."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.processes.process_group import flower_environment
from ssfl.deploy.processes.reaper import MARK, end_marked
from tests.deploy.oracle import BITS, simulated_model
from tests.support.paths import ROOT

WORDS = ("preset=digits", "training.comm_round=2", "training.frac=1.0", "training.epochs=1", *BITS)
CONNECTION = """\
[superlink]
default = "local"

[superlink.local]
address = ":local:"
"""


@pytest.mark.slow
def test_flowers_simulation_gives_the_same_bits(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Flower's simulation needs Ray: pip install 'flwr[simulation]'")
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text(CONNECTION)
    mark = f"simulation-{os.getpid()}"
    environment = {**os.environ, **flower_environment(tmp_path), MARK: mark, "RAY_USAGE_STATS_ENABLED": "0"}
    words = (*WORDS, "deploy.sites=2", "deploy.server_data=true", f"experiment.output_dir={tmp_path / 'out'}")
    flwr = [str(Path(sys.executable).parent / "flwr"), "run", str(ROOT), "local", "--stream"]
    try:
        done = subprocess.run(
            [*flwr, "--run-config", f'words="{" ".join(words)}"'],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    finally:
        end_marked(mark)  # the SuperLink that `flwr run` starts stays otherwise
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = tmp_path.glob("out/*/*/model.safetensors")
    tensors = load_file(path)
    model = torch.cat([tensors[name].reshape(-1) for name in sorted(tensors)])
    assert model.equal(simulated_model(WORDS, 2, {}))
