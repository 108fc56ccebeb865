"""What `ssfl run` chooses on this machine with `engine.*=auto`, for a workload of the benchmarks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from benchmarks.workload import BATCH_SIZE, SEED, Workload
from ssfl.algorithms.base import Algorithm, ServerContext
from ssfl.assemble.build import RunSetup
from ssfl.assemble.communication import wire_of
from ssfl.assemble.execution import Choice, choose
from ssfl.config import load_config
from ssfl.core.layout import Layout
from ssfl.data.federation import Federation


def auto_choice(
    work: Workload, module: nn.Module, data: Federation, algorithm: Algorithm[Any], cores: int
) -> Choice:
    """Measured now, as at the first start of a run of 500 rounds on at most `cores` cores."""
    config = load_config(
        [
            "algorithm=fedavg",
            f"training.client_num_in_total={work.clients}",
            f"training.client_num_per_round={work.cohort}",
            f"training.batch_size={BATCH_SIZE}",
            "training.epochs=1",
            f"training.max_workers={cores}",
            f"experiment.seed={SEED}",
        ]
    )
    layout = Layout.of(module)
    context = ServerContext(layout, {k: data.examples(k) for k in range(data.num_clients)}, SEED)
    theta = layout.flatten(module)
    setup = RunSetup(config, data, module, layout, theta, algorithm, context, wire_of(config, layout))
    with _empty_cache():
        return choose(config, setup)


def choice_text(choice: Choice) -> str:
    """The choice in a few words, for the name of a row."""
    words: list[str] = [choice.executor]
    if choice.executor in ("threads", "processes"):
        words.append(f"{choice.workers} workers")
    if choice.block > 1:
        words.append(f"blocks of {choice.block}")
    kernels = "kernels in C" if choice.kernels == "native" else "no kernels"
    return ", ".join([*words, choice.memory_format, choice.convolutions, kernels])


@contextmanager
def _empty_cache() -> Iterator[None]:
    """Measurements are cached in a temporary folder."""
    name, before = "XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
