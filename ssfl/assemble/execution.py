"""Executor, number of workers, memory format and kernels: as configured, or chosen by a measurement."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

import torch

from ssfl.assemble.build import RunSetup
from ssfl.assemble.executors import ROWS, Estimate, Workload, estimates
from ssfl.assemble.measurement import measured, workload
from ssfl.assemble.network_checks import lone_examples_text
from ssfl.config import Config, EngineConfig, cohort_size
from ssfl.config.engine import EXECUTORS, in_blocks, winograd_hindrance
from ssfl.config.schema import ExecutorName
from ssfl.config.validate import refuse
from ssfl.engine.client.data_source import input_dtype
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.compute.device import NoDeviceError, device_of, resolved_device, set_arithmetic
from ssfl.engine.compute.malloc import give_back_freed_memory, keep_freed_memory
from ssfl.engine.executors.distributed.executor import RankedExecutor
from ssfl.engine.executors.distributed.link import Link
from ssfl.engine.executors.distributed.torchrun import local_ranks, started_by_torchrun
from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.step_times import Form
from ssfl.engine.executors.trial import UntrainableError, check_step
from ssfl.machine_memory import memory_bytes
from ssfl.native import available
from ssfl.native.winograd import serves

LARGEST_BLOCK = 32


@dataclass(frozen=True)
class Choice:
    """How to compute: the engine section without any `auto`."""

    executor: ExecutorName
    workers: int
    block: int
    memory_format: str
    convolutions: str
    kernels: str


def resolve_engine(config: Config, setup: RunSetup, ranks: int = 1) -> Config:
    """The configuration with every `auto` of the engine resolved; a resumed run keeps the result.

    `ranks` processes divide each cohort (torchrun); the choice is for one of them, with its part of the host.
    """
    keep_freed_memory(_cores(config), 4 * setup.layout.size)
    torch.set_num_threads(1)
    if ranks > 1 and config.checkpoint.stop_after_seconds:
        allowed = "one rank's clock cannot stop the others; use 0 under torchrun, and stop with Ctrl-C"
        raise refuse("checkpoint.stop_after_seconds", config.checkpoint.stop_after_seconds, allowed)
    if config.engine.compile:
        _check_compiled(config, setup)
    if note := lone_examples_text(config, setup.federation, setup.module):
        print(note, file=sys.stderr)
    choice = choose(config, setup, ranks)
    threads = 1 if config.engine.threads == "auto" else config.engine.threads
    device = resolved_device(config.engine.device)
    return replace(config, engine=replace(config.engine, device=device, threads=threads, **asdict(choice)))


def possible_kernels(config: Config) -> Literal["native", "torch"]:
    """The kernels to use; `auto`: native if they are available. Raises ConfigError if native is set and impossible."""
    engine = config.engine
    on_device = resolved_device(engine.device) != "cpu"
    if engine.kernels == "native":
        _check_native(engine.kernels)
        if on_device:
            raise refuse(
                "engine.kernels", "native", "they run only on a CPU; choose auto, or engine.device=cpu"
            )
    # The kernel of a block's convolutions computes on one thread.
    served = engine.executor != "batched" or engine.threads in ("auto", 1)
    serve = available() and not on_device and not engine.compile and served
    auto: Literal["native", "torch"] = "native" if serve else "torch"
    chosen = auto if engine.kernels == "auto" else engine.kernels
    if engine.memory_format == "mixed" and chosen == "torch":
        raise refuse(
            "engine.memory_format", "mixed", "needs engine.kernels=native, which is not available here"
        )
    return chosen


def _check_native(kernels: str) -> None:
    if kernels == "native" and not available():
        allowed = (
            "they were not built when ssfl was installed here; install a C compiler and Python's headers, then "
            "`bash setup.sh`, or use engine.kernels=torch (a resumed run must keep the kernels of its start)"
        )
        raise refuse("engine.kernels", "native", allowed)


def choose(config: Config, setup: RunSetup, ranks: int = 1) -> Choice:
    """The configured choice; `auto` values are chosen by a measurement."""
    engine, kernels = config.engine, possible_kernels(config)
    _check_asked(engine, setup, kernels == "native")
    convolutions = _convolutions(config, setup, kernels == "native")
    cohort, workers = -(-cohort_size(config) // ranks), _workers(config)
    if resolved_device(engine.device) != "cpu":
        return choice_on_device(config, setup, cohort)
    block = _block(engine, convolutions)
    if engine.executor != "auto" and "auto" not in (engine.memory_format, block, convolutions):
        return Choice(engine.executor, workers, int(block), engine.memory_format, convolutions, kernels)
    found = _fastest(config, setup, cohort, kernels)
    free = engine.kernels == "auto" and engine.memory_format != "mixed" and engine.convolutions != "winograd"
    if free and not found.kernels_pay:  # possible on processors for which they were not tuned
        found = min(_fastest(config, setup, cohort, "torch"), found, key=lambda one: one.seconds)
    return found.choice


class _Estimated(NamedTuple):
    """A choice, the estimated seconds of the run, and whether kernels speed up one client's step."""

    choice: Choice
    seconds: float
    kernels_pay: bool


def _fastest(config: Config, setup: RunSetup, cohort: int, kernels: Literal["native", "torch"]) -> _Estimated:
    """The fastest way to compute with these kernels, by a measurement."""
    convolutions, workers = _convolutions(config, setup, kernels == "native"), _workers(config)
    engine = replace(config.engine, block=_block(config.engine, convolutions))
    block = int(engine.block) if engine.block != "auto" else min(cohort, LARGEST_BLOCK)
    # No step has more examples than the largest client: a batch size above that means all of them.
    examples = min(config.training.batch_size, max(setup.context.example_counts.values()))
    worker_block = block if engine.block != "auto" else min(block, -(-cohort // workers))
    times = measured(setup, examples, block, workers, kernels == "native", worker_block)
    form = times.form(engine.memory_format, convolutions)
    best = _quickest(engine, setup, workload(config, setup, times, form, workers, cohort))
    if best.executor == "processes":
        block = worker_block
    if best.in_blocks:
        # vmap changes the memory format of a block, so another one would have no effect.
        usual = "contiguous" if engine.memory_format == "auto" else engine.memory_format
        choice = Choice(best.executor, workers, block, usual, "direct", kernels)
    else:
        choice = Choice(best.executor, workers, 1, *form, kernels)
    return _Estimated(choice, best.seconds, times.kernels_pay(form))


def _workers(config: Config) -> int:
    return int(config.engine.workers) if config.engine.workers != "auto" else _cores(config)


def _block(engine: EngineConfig, convolutions: str) -> int | Literal["auto"]:
    """The configured block; 1 if clients are not computed in blocks, which do not support Winograd convolutions."""
    alone = (engine.executor == "sequential" and engine.block == "auto") or convolutions == "winograd"
    return 1 if alone else engine.block


def _check_asked(engine: EngineConfig, setup: RunSetup, native: bool) -> None:
    """Raises ConfigError for a configured executor or memory format that the network does not support."""
    name = engine.executor
    if name != "auto" and (why := ROWS[name].unsupported(setup, in_blocks(engine))):
        raise refuse("engine.executor", name, why)
    if engine.memory_format not in ("auto", "contiguous"):
        form = Form(engine.memory_format, "direct")
        shape, dtype = setup.federation.input_shape, input_dtype(setup.federation)
        try:
            check_step(setup.module, shape, dtype, last=True, kernels=form.kernels(native))
        except UntrainableError as error:
            why = f"not for this network: {error}; choose auto or contiguous"
            raise refuse("engine.memory_format", engine.memory_format, why) from error


def _quickest(engine: EngineConfig, setup: RunSetup, load: Workload) -> Estimate:
    """The fastest executor that supports the network, and whether it computes clients in blocks.

    A configured executor is not compared with others; one that was not timed is estimated as one thread. The
    estimate is in seconds of the run. Raises ConfigError if no executor supports the configured block.
    """
    possible = sorted(estimates(load, engine), key=lambda one: one.seconds)
    if engine.executor != "auto":
        together = in_blocks(engine)
        timed = [one.seconds for one in possible if one.in_blocks == together]
        return Estimate(engine.executor, together, min(timed, default=load.one_thread_seconds))
    for one in possible:
        why = ROWS[one.executor].unsupported(setup, one.in_blocks)
        if not why:
            return one
        print(f"engine.executor=auto excludes {one.executor}: {why}", file=sys.stderr)
    why = "this network does not train in blocks; choose auto or 1"
    raise refuse("engine.block", engine.block, why)


def _convolutions(config: Config, setup: RunSetup, native: bool) -> Literal["auto", "direct", "winograd"]:
    """The configured value; direct if winograd is impossible. Raises ConfigError if winograd is set and impossible."""
    hindrance = winograd_hindrance(config.engine, native)
    if not hindrance and not any(map(serves, setup.module.modules())):
        hindrance = "needs 3x3 convolutions with stride 1 or 2 and multiples of 16 channels"
    if config.engine.convolutions == "winograd" and hindrance:
        raise refuse("engine.convolutions", "winograd", f"{hindrance}; choose auto or direct")
    return "direct" if hindrance else config.engine.convolutions


def choice_on_device(config: Config, setup: RunSetup, cohort: int) -> Choice:
    """A device is one worker: blocks of clients if the network supports them, else one client with channels last.

    Chosen without a measurement: on a device the launches of small operations dominate, and blocks share launches.
    """
    engine = config.engine
    executor = engine.executor
    if executor == "auto":
        whole = not engine.compaction and not engine.compile
        together = cohort > 1 and whole and not ROWS["batched"].unsupported(setup, True)
        executor = "batched" if together else "sequential"
    if not EXECUTORS[executor].on_devices:
        raise refuse("engine.executor", executor, "a CUDA device is one worker; use batched or sequential")
    block = min(cohort, LARGEST_BLOCK) if executor == "batched" else 1
    # vmap changes the memory format of blocks; for single clients, convolutions are faster with channels last.
    usual = "channels_last" if block == 1 and len(setup.federation.input_shape) == 3 else "contiguous"
    return Choice(
        executor,
        1,
        block if engine.block == "auto" else int(engine.block),
        usual if engine.memory_format == "auto" else engine.memory_format,
        "direct",
        possible_kernels(config),
    )


def device_here(config: Config) -> torch.device:
    """This process's device: experiment.gpu, or the local rank's under torchrun. Raises ConfigError in one line."""
    number = config.experiment.gpu
    if started_by_torchrun():
        number = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        return device_of(resolved_device(config.engine.device), number)
    except NoDeviceError as error:
        raise refuse("experiment.gpu", number, str(error)) from error


def executor_of(setup: RunSetup, link: Link | None = None) -> Executor:
    """The executor of the resolved configuration; with several ranks, for this rank's share of the cohort."""
    runner = runner_of(setup)
    inner = _local_executor(setup, runner)
    if link is None or link.size == 1:
        return inner
    engine = setup.config.engine
    alone = engine.executor not in ("processes", "threads")
    return RankedExecutor(inner, runner, link, alone, engine.rank_exchange == "mean")


def _local_executor(setup: RunSetup, runner: ClientRunner) -> Executor:
    engine = setup.config.engine
    keep_freed_memory(int(engine.workers) if engine.executor == "threads" else 1, 4 * setup.layout.size)
    give_back_freed_memory()  # freed after reading the data and measuring steps
    torch.set_num_threads(int(engine.threads))
    assert engine.executor != "auto", "resolve_engine comes first"
    return ROWS[engine.executor].build(runner, engine)


def runner_of(setup: RunSetup) -> ClientRunner:
    """The configured runner of clients' work."""
    engine = setup.config.engine
    device = device_here(setup.config)
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
    seed = setup.config.experiment.seed
    return ClientRunner(
        setup.module,
        setup.federation.to(device).laid_out(last),
        setup.algorithm.tasks,
        seed,
        arithmetic=arithmetic,
        compaction=engine.compaction,
        wire=setup.wire,
        lone_example=setup.config.training.lone_example,
    )


def state_memory_bytes(config: Config) -> int:
    """Maximum memory of client states in bytes: as configured, or a quarter of the memory that it may use."""
    asked = config.engine.state_memory_mb
    if asked == "auto":
        return memory_bytes() // 4
    return int(asked) * 1_000_000


def _cores(config: Config) -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available // local_ranks(), config.training.max_workers))


def _check_compiled(config: Config, setup: RunSetup) -> None:
    """Raises ConfigError if torch.compile would have no effect, or lacks a C++ compiler on a CPU."""
    if any(task.has_own_loss for task in setup.algorithm.tasks.values()):
        allowed = (
            f"not with algorithm={config.algorithm.name}, which replaces weights or layers of the network"
        )
        raise refuse("engine.compile", "true", allowed)
    compiler = os.environ.get("CXX", "g++")
    if resolved_device(config.engine.device) == "cpu" and shutil.which(compiler) is None:
        allowed = (
            f"needs a C++ compiler, and there is no {compiler}; install one, name it in CXX, or choose false"
        )
        raise refuse("engine.compile", "true", allowed)
