"""The compiled module, if it was built: the instruction set of its kernels, and addresses of tensors.

The kernels are compiled for several instruction sets. The widest that the processor supports is used, limited by the
environment variable SSFL_MAX_ISA, which worker processes inherit.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ssfl.errors import UserError

__all__ = ["MAX_ISA", "SETS", "IsaError", "address", "available", "isa", "kernels", "usable", "using"]

if TYPE_CHECKING:
    from ssfl.native import kernels as kernels
else:
    # Compiled when the package is installed; without a C compiler the package is installed without it.
    _built = importlib.util.find_spec("ssfl.native.kernels") is not None
    kernels = importlib.import_module("ssfl.native.kernels") if _built else None

MAX_ISA = "SSFL_MAX_ISA"
"""Environment variable that limits the instruction set of these kernels (not of PyTorch)."""
SETS = ("avx512", "avx2", "sse2", "neon")
"""Allowed values, widest registers first: x86-64, then 64-bit ARM."""


class IsaError(UserError):
    """SSFL_MAX_ISA is not an instruction set, or one of another kind of processor."""


def available() -> bool:
    """Whether the kernels were built."""
    return kernels is not None


def usable() -> tuple[str, ...]:
    """Instruction sets of the kernels that the processor supports, widest registers first; empty if not built."""
    return kernels.usable() if available() else ()


def isa() -> str | None:
    """The instruction set that the kernels use; None if they were not built."""
    return kernels.used() if available() else None


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Context in which all threads use the kernels of one set of `usable()`. Raises ValueError for another."""
    before = kernels.used()
    kernels.use(name)
    try:
        yield
    finally:
        kernels.use(before)


def widest(cap: str, sets: Sequence[str]) -> str:
    """The first of `sets` that is not wider than `cap`. Raises IsaError if `cap` is unknown or there is none."""
    if cap not in SETS:
        raise IsaError("unknown instruction set", where=f"{MAX_ISA}={cap!r}", allowed=", ".join(SETS))
    narrower = [name for name in sets if name in SETS[SETS.index(cap) :]]
    if not narrower or (cap == "neon") != (sets[-1] == "neon"):
        raise IsaError(
            f"not of this kind of processor, which has {', '.join(sets)}",
            where=f"{MAX_ISA}={cap}",
            remedy="unset it",
        )
    return narrower[0]


def address(tensor: Tensor | None) -> int:
    """Address of a tensor's memory; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


if available() and os.environ.get(MAX_ISA):
    kernels.use(widest(os.environ[MAX_ISA], kernels.usable()))
