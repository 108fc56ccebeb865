"""Which executor computes, with how many workers, in which memory format: asked for, or chosen by measurement."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, replace

import torch

from ssfl.algorithms.base import sees_theta
from ssfl.assemble.build import Parts
from ssfl.assemble.estimates import estimated_seconds, measured
from ssfl.config import Config, cohort_size
from ssfl.config.validate import refuse
from ssfl.engine.arithmetic import Arithmetic
from ssfl.engine.batched import BatchedExecutor, UnbatchableError, check_batchable
from ssfl.engine.calibrate import Form
from ssfl.engine.device import NoDeviceError, device_of, resolved_device, set_arithmetic
from ssfl.engine.executors import Executor, SequentialExecutor
from ssfl.engine.local import ClientRunner
from ssfl.engine.memory import give_back_freed_memory, keep_freed_memory
from ssfl.engine.processes import ProcessExecutor
from ssfl.engine.ranks import Link, RankedExecutor
from ssfl.engine.threads import ThreadExecutor, UnthreadableError, check_threadable
from ssfl.engine.torchrun import local_ranks, started_by_torchrun
from ssfl.native import available
from ssfl.native.winograd import serves

LARGEST_BLOCK = 32


@dataclass(frozen=True)
class Choice:
    """How to compute: the engine section without any `auto`."""

    executor: str
    workers: int
    block: int
    memory_format: str
    convolutions: str


def resolve_engine(config: Config, parts: Parts, ranks: int = 1) -> Config:
    """The configuration with every `auto` of the engine decided; a resume keeps it, and so does a repeat.

    `ranks` processes share out each cohort (torchrun); the choice is for one of them, with its part of the host.
    """
    keep_freed_memory(_cores(config), 4 * parts.layout.size)
    torch.set_num_threads(1)
    if ranks > 1 and config.checkpoint.stop_after_seconds:
        allowed = (
            "one rank's clock cannot stop the others; leave it 0 under torchrun, stop by Ctrl-C and resume"
        )
        raise refuse("checkpoint.stop_after_seconds", config.checkpoint.stop_after_seconds, allowed)
    if config.engine.compile:
        _check_compiled(config, parts)
    choice = choose(config, parts, ranks)
    threads = 1 if config.engine.threads == "auto" else config.engine.threads
    device = resolved_device(config.engine.device)
    engine = replace(config.engine, device=device, threads=threads, **asdict(choice))
    return replace(config, engine=replace(engine, kernels=chosen_kernels(config)))


def chosen_kernels(config: Config) -> str:
    """`auto` decided: native where they were built and can serve. Raises ConfigError for native where they cannot."""
    engine = config.engine
    on_device = resolved_device(engine.device) != "cpu"
    if engine.kernels == "native":
        _check_native(engine.kernels)
        if on_device:
            raise refuse(
                "engine.kernels", "native", "they compute on a CPU; leave it auto, or engine.device=cpu"
            )
    # The kernel of a block's convolutions computes on one thread.
    served = engine.executor != "batched" or engine.threads in ("auto", 1)
    serve = available() and not on_device and not engine.compile and served
    chosen = ("native" if serve else "torch") if engine.kernels == "auto" else engine.kernels
    if engine.memory_format == "mixed" and chosen == "torch":
        raise refuse(
            "engine.memory_format", "mixed", "needs engine.kernels=native, which does not serve here"
        )
    return chosen


def _check_native(kernels: str) -> None:
    if kernels == "native" and not available():
        allowed = (
            "they were not built when ssfl was installed here; install a C compiler and Python's headers, then "
            "`bash setup.sh`, or take engine.kernels=torch (a run that began with one goes on with the same)"
        )
        raise refuse("engine.kernels", "native", allowed)


def choose(config: Config, parts: Parts, ranks: int = 1) -> Choice:
    """What was asked for, completed by a measurement where something is `auto`."""
    engine = config.engine
    cohort = -(-cohort_size(config) // ranks)
    workers = int(engine.workers) if engine.workers != "auto" else _cores(config)
    if engine.executor == "batched":
        _refuse_unbatchable(parts)
    if engine.executor == "threads":
        _refuse_unthreadable(parts)
    native = chosen_kernels(config) == "native"
    convolutions = _convolutions(config, parts, native)
    if resolved_device(engine.device) != "cpu":
        return _choice_on_device(config, parts, cohort)
    if engine.executor == "sequential" and engine.block == "auto":
        engine = replace(engine, block=1)
    if convolutions == "winograd":
        engine = replace(engine, block=1)  # blocks do not offer it
    if "auto" not in (engine.executor, engine.memory_format, engine.block, convolutions):
        return Choice(engine.executor, workers, int(engine.block), engine.memory_format, convolutions)
    block = int(engine.block) if engine.block != "auto" else min(cohort, LARGEST_BLOCK)
    times = measured(parts, config.training.batch_size, block, workers, native)
    asked = engine.executor
    form = times.form(engine.memory_format, convolutions)
    estimates = estimated_seconds(config, parts, times, form, workers, cohort)
    if engine.block != "auto" and block > 1:  # who asks for blocks gets them
        estimates = {name: s for name, s in estimates.items() if name in ("batched", "blocks in processes")}
        if asked == "auto" and not estimates:
            raise refuse("engine.block", block, "this network does not train in blocks; leave it auto or 1")
    executor = asked if asked != "auto" else min(estimates, key=lambda name: estimates[name])
    if executor == "blocks in processes":
        executor = "processes"
        block = min(block, -(-cohort // workers)) if engine.block == "auto" else block
    elif executor != "batched" and engine.block == "auto":
        block = 1
    if block > 1:
        # A block runs in the layout that vmap makes of it; another memory format would only be undone.
        usual = "contiguous" if engine.memory_format == "auto" else engine.memory_format
        form = Form(usual, "direct")
    return Choice(executor, workers, block, *form)


def _convolutions(config: Config, parts: Parts, native: bool) -> str:
    """What was asked for; direct where there is no choice. Raises ConfigError for winograd where it cannot serve."""
    engine = config.engine
    could = native and engine.precision == "fp32" and engine.memory_format in ("auto", "channels_last")
    could = could and engine.executor != "batched" and engine.block in ("auto", 1)
    could = could and any(map(serves, parts.module.modules()))
    if engine.convolutions == "winograd" and not could:
        allowed = (
            "needs native kernels on a CPU and 3x3 convolutions with stride 1 of channels in multiples of 16"
        )
        raise refuse("engine.convolutions", "winograd", f"{allowed}; leave it auto, or direct")
    return engine.convolutions if could else "direct"


def _choice_on_device(config: Config, parts: Parts, cohort: int) -> Choice:
    """A device is one worker: blocks of clients where the network can, in the memory format of its convolutions.

    Not measured but ruled, because on a device small operations wait for their launches, which blocks share.
    """
    engine = config.engine
    if engine.executor in ("processes", "threads"):
        raise refuse(
            "engine.executor", engine.executor, "a CUDA device is one worker; use batched or sequential"
        )
    executor = engine.executor
    if executor == "auto":
        whole = not engine.compaction and not engine.compile
        executor = "batched" if cohort > 1 and whole and _batchable(parts) else "sequential"
    block = min(cohort, LARGEST_BLOCK) if executor == "batched" else 1
    # Blocks run in the layout that vmap makes of them; alone, convolutions are faster with channels last.
    usual = "channels_last" if block == 1 and len(parts.federation.input_shape) == 3 else "contiguous"
    return Choice(
        executor,
        1,
        block if engine.block == "auto" else int(engine.block),
        usual if engine.memory_format == "auto" else engine.memory_format,
        "direct",
    )


def device_here(config: Config) -> torch.device:
    """This process's device: experiment.gpu, or under torchrun the local rank's. Raises ConfigError in one line."""
    number = config.experiment.gpu
    if started_by_torchrun():
        number = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        return device_of(resolved_device(config.engine.device), number)
    except NoDeviceError as error:
        raise refuse("experiment.gpu", number, str(error)) from error


def executor_of(parts: Parts, link: Link | None = None) -> Executor:
    """The executor that the resolved configuration names, and its share of the cohort where there are ranks."""
    runner = runner_of(parts)
    inner = _local_executor(parts, runner)
    if link is None or link.size == 1:
        return inner
    engine = parts.config.engine
    alone = engine.executor not in ("processes", "threads")
    return RankedExecutor(inner, runner, link, alone, engine.rank_exchange == "mean")


def _local_executor(parts: Parts, runner: ClientRunner) -> Executor:
    engine = parts.config.engine
    keep_freed_memory(int(engine.workers) if engine.executor == "threads" else 1, 4 * parts.layout.size)
    give_back_freed_memory()  # of reading the data and of measuring steps
    torch.set_num_threads(int(engine.threads))
    if engine.executor == "processes":
        return ProcessExecutor(runner, int(engine.workers), block=int(engine.block))
    if engine.executor == "threads":
        return ThreadExecutor(runner, int(engine.workers))
    if engine.executor == "batched":
        return BatchedExecutor(runner, int(engine.block))
    return SequentialExecutor(runner)


def runner_of(parts: Parts) -> ClientRunner:
    """One client's work, configured."""
    engine = parts.config.engine
    device = device_here(parts.config)
    set_arithmetic(device, engine.precision)
    last = engine.memory_format in ("channels_last", "mixed")
    _check_native(engine.kernels)
    arithmetic = Arithmetic(
        engine.precision,
        channels_last=last,
        device=device,
        compiled=engine.compile,
        native=engine.kernels == "native",
        mixed=engine.memory_format == "mixed",
        winograd=engine.convolutions == "winograd",
    )
    seed = parts.config.experiment.seed
    return ClientRunner(
        parts.module,
        parts.federation.to(device).laid_out(last),
        parts.algorithm.tasks,
        seed,
        arithmetic=arithmetic,
        compaction=engine.compaction,
    )


def state_memory_bytes(config: Config) -> int:
    """What the clients' memories may take of this process's: as configured, or a quarter of the machine's."""
    asked = config.engine.state_memory_mb
    if asked == "auto":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return int(asked) * 1_000_000


def _cores(config: Config) -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available // local_ranks(), config.training.max_workers))


def _refuse_unbatchable(parts: Parts) -> None:
    try:
        check_batchable(parts.module)
    except UnbatchableError as error:
        raise refuse("engine.executor", "batched", str(error)) from error


def _check_compiled(config: Config, parts: Parts) -> None:
    """That compiling would change something, and can: torch.compile writes C++ for a CPU."""
    if any(task.fit is not None and not sees_theta(task) for task in parts.algorithm.tasks.values()):
        allowed = (
            f"not with algorithm={config.algorithm.name}, which trains through weights or layers of its own"
        )
        raise refuse("engine.compile", "true", allowed)
    compiler = os.environ.get("CXX", "g++")
    if resolved_device(config.engine.device) == "cpu" and shutil.which(compiler) is None:
        allowed = f"needs a C++ compiler, and there is no {compiler}; install one, name it in CXX, or leave it false"
        raise refuse("engine.compile", "true", allowed)


def _refuse_unthreadable(parts: Parts) -> None:
    try:
        check_threadable(parts.module, parts.federation.input_shape)
    except UnthreadableError as error:
        raise refuse("engine.executor", "threads", str(error)) from error


def _batchable(parts: Parts) -> bool:
    try:
        check_batchable(parts.module)
    except UnbatchableError:
        return False
    return True
