"""Runs a module of the benchmarks as if ssfl had been installed without a C compiler.

    python -m benchmarks.without_kernels MODULE ARGUMENT...

Worker processes that ssfl spawns import the kernels again, for copies and sums only: their layers are PyTorch's.
"""

from __future__ import annotations

import runpy
import sys

KERNELS = "ssfl.native.kernels"


def main() -> None:
    """Hide the compiled module and run MODULE as a program."""
    sys.modules[KERNELS] = None  # type: ignore[assignment]
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
