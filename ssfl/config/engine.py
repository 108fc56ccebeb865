"""The abilities of each executor, and engine settings that exclude each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

from ssfl.config.schema import EngineConfig, ExecutorName


@final
@dataclass(frozen=True)
class Abilities:
    """What an executor supports for every network; `ssfl.assemble.executors` checks what depends on the network."""

    in_blocks: bool = False
    """Computes several clients as one network (`engine.block`)."""
    compiled: bool = False
    """Supports torch.compile, which compiles one network in a process."""
    on_devices: bool = False
    """Runs on an accelerator, which counts as one worker."""


EXECUTORS: Mapping[ExecutorName, Abilities] = {
    "sequential": Abilities(compiled=True, on_devices=True),
    "threads": Abilities(),
    "processes": Abilities(compiled=True, in_blocks=True),
    "batched": Abilities(in_blocks=True, on_devices=True),
}


class Conflict(NamedTuple):
    """A setting that excludes another one."""

    key: str
    value: object
    why: str


def in_blocks(engine: EngineConfig) -> bool:
    """Whether the settings request that several clients are computed as one network."""
    return engine.executor == "batched" or engine.block not in ("auto", 1)


def conflicts(engine: EngineConfig) -> Iterator[Conflict]:
    """Engine settings that exclude each other for every network."""
    yield from _executor_conflicts(engine)
    yield from _compile_conflicts(engine)
    without_kernels = engine.kernels == "torch" or engine.compile
    if engine.memory_format == "mixed" and without_kernels:
        why = "needs engine.kernels=native, which changes the format between layers; or choose channels_last"
        yield Conflict("engine.memory_format", "mixed", why)
    hindrance = winograd_hindrance(engine, native=not without_kernels)
    if engine.convolutions == "winograd" and hindrance:
        yield Conflict("engine.convolutions", "winograd", f"{hindrance}; or choose auto or direct")


def winograd_hindrance(engine: EngineConfig, native: bool) -> str:
    """Why 3x3 convolutions cannot use Winograd, else empty. native: whether the kernels of `ssfl.native` are used."""
    if not native:
        return "needs engine.kernels=native"
    if engine.memory_format not in ("auto", "channels_last"):
        return "needs engine.memory_format=channels_last"
    if in_blocks(engine):
        return "not in blocks of clients, which compute their convolutions together"
    if engine.precision != "fp32":
        return "computes in float32: needs engine.precision=fp32"
    return ""


def _executor_conflicts(engine: EngineConfig) -> Iterator[Conflict]:
    name, block = engine.executor, engine.block
    if name != "auto" and block not in ("auto", 1) and not EXECUTORS[name].in_blocks:
        why = f"engine.executor={name} takes one client at a time; use batched or processes, or block=1"
        yield Conflict("engine.block", block, why)
    if engine.compaction and in_blocks(engine):
        why = (
            "works on one client at a time; use engine.executor=sequential, threads or processes with block=1"
        )
        yield Conflict("engine.compaction", "true", why)


def _compile_conflicts(engine: EngineConfig) -> Iterator[Conflict]:
    """An option without effect is refused; otherwise the run folder would record a false setting."""
    if not engine.compile:
        return
    if engine.executor != "auto" and not EXECUTORS[engine.executor].compiled:
        why = f"not with engine.executor={engine.executor}; use sequential or processes with it"
        yield Conflict("engine.compile", "true", why)
    if in_blocks(engine):
        yield Conflict("engine.compile", "true", "not with blocks of clients; use engine.block=1 with it")
    if engine.compaction:
        yield Conflict(
            "engine.compile", "true", "not with engine.compaction=true, which changes layers during training"
        )
    if engine.kernels == "native":
        yield Conflict("engine.kernels", "native", "not with engine.compile=true; choose auto or torch")
