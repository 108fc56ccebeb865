"""Compiled training steps equal eager ones to rounding; without a compiler there is an error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ssfl.algorithms.fedavg import FedAvg
from ssfl.assemble.build import setup_of
from ssfl.assemble.execution import resolve_engine
from ssfl.config import ConfigError, load_config
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.executors.sequential import SequentialExecutor
from tests.support.rigs import float_data, make_rig, tiny_net

FIT = FitSpec(1, 8, ExponentialDecay(0.1, 0.99), momentum=0.9, clip_norm=10.0)
SIZES = (16, 8, 11, 1)


def weights_after_two_rounds(compiled: bool) -> torch.Tensor:
    method, data = FedAvg(FIT, 3), float_data(SIZES)
    arithmetic = Arithmetic(compiled=compiled)
    runner = ClientRunner(tiny_net("batch"), data, method.tasks, 7, arithmetic=arithmetic)
    rig = make_rig(method, data, tiny_net("batch"), dtype=torch.float32, executor=SequentialExecutor(runner))
    theta = method.weights_to_evaluate(rig.loop.run(rig.loop.start(rig.theta, 2)).state, rig.context)
    assert theta is not None
    return theta


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # warnings of the compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_equal_to_eager_to_rounding() -> None:
    torch.testing.assert_close(
        weights_after_two_rounds(True), weights_after_two_rounds(False), rtol=1e-4, atol=1e-5
    )


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    words = ["preset=digits", "engine.compile=true", f"experiment.output_dir={tmp_path}", "engine.device=cpu"]
    config = load_config(words)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler"):
        resolve_engine(config, setup_of(config))


def test_a_method_with_layers_of_its_own_is_refused(tmp_path: Path) -> None:
    words = [
        "preset=digits",
        "algorithm=sparsyfed",
        "engine.compile=true",
        f"experiment.output_dir={tmp_path}",
    ]
    config = load_config(words)
    with pytest.raises(ConfigError, match="not with algorithm=sparsyfed"):
        resolve_engine(config, setup_of(config))
