"""Which executor computes, with how many workers and threads."""

from __future__ import annotations

from dataclasses import replace

import torch

from ssfl.assemble.build import Parts
from ssfl.config import Config
from ssfl.engine.executors import Executor, SequentialExecutor
from ssfl.engine.local import Arithmetic, ClientRunner
from ssfl.engine.memory import keep_freed_memory


def resolve_engine(config: Config, parts: Parts) -> Config:
    """The configuration with every `auto` of the engine decided; what a resume or a repeat then keeps."""
    engine = replace(config.engine, executor="sequential", workers=1, threads=1, device="cpu", block=1)
    return replace(config, engine=engine)


def executor_of(parts: Parts) -> Executor:
    """The executor that the resolved configuration names."""
    engine = parts.config.engine
    keep_freed_memory()
    torch.set_num_threads(int(engine.threads))
    return SequentialExecutor(runner_of(parts))


def runner_of(parts: Parts) -> ClientRunner:
    """One client's work, configured."""
    arithmetic = Arithmetic(precision=parts.config.engine.precision)
    return ClientRunner(
        parts.module,
        parts.federation,
        parts.algorithm.tasks,
        parts.config.experiment.seed,
        arithmetic=arithmetic,
    )
