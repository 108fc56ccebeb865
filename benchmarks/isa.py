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
    }
)
"""--isa -> environment variables that limit our kernels, oneDNN, PyTorch's loops and MKL. sse2: the minimum of each."""


def restart_capped(isa: str) -> None:
    """Restart this process with the limits; returns if they are already set."""
    caps = CAPS[isa]
    if any(os.environ.get(name) != value for name, value in caps.items()):
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **caps})


def caps_set() -> dict[str, str]:
    """The limits in this process's environment."""
    names = {name for caps in CAPS.values() for name in caps}
    return {name: os.environ[name] for name in sorted(names) if name in os.environ}
