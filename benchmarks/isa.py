"""Limits every library to an instruction set, to measure one machine as another class of processor.

The libraries read their limits from the environment once, so a benchmark with --isa restarts itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import MappingProxyType

CAPS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "avx512": {"SSFL_MAX_ISA": "avx512"},
        "avx2": {
            "SSFL_MAX_ISA": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        },
        "sse2": {
            "SSFL_MAX_ISA": "sse2",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        },
        "neon": {
            "SSFL_MAX_ISA": "neon",
            "ONEDNN_MAX_CPU_ISA": "ADVANCED_SIMD",
            "ATEN_CPU_CAPABILITY": "default",
        },
    }
)
"""--isa -> environment variables that limit our kernels, oneDNN, PyTorch's loops and MKL. sse2: the minimum of each."""
OTHER_NAMES = ("DNNL_MAX_CPU_ISA",)
"""Variables that also limit a library: oneDNN's older name."""
ARM = ("aarch64", "arm64")


def hindrance(isa: str, machine: str) -> str:
    """Why an instruction set cannot be measured on this kind of processor (`platform.machine()`), else empty."""
    on_arm = machine in ARM
    if (isa == "neon") == on_arm:
        return ""
    allowed = "neon" if on_arm else ", ".join(name for name in CAPS if name != "neon")
    return f"this processor is {machine}; allowed here: {allowed}"


def restart_capped(isa: str) -> None:
    """Restart this process with exactly these limits, without inherited ones; returns if they are already set."""
    caps = CAPS[isa]
    if caps_set() != caps:
        sys.stdout.flush()
        others = {name: value for name, value in os.environ.items() if name not in _names()}
        os.execve(sys.executable, sys.orig_argv, {**others, **caps})


def caps_set() -> dict[str, str]:
    """The limits in this process's environment."""
    return {name: os.environ[name] for name in sorted(_names()) if name in os.environ}


def _names() -> set[str]:
    return {name for caps in CAPS.values() for name in caps} | set(OTHER_NAMES)
