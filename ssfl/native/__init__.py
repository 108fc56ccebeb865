"""Kernels in C for what PyTorch does on a CPU in several slower passes; the same results, to rounding or to the bit.

`available()` says whether they were built: where no C compiler was, everything runs without them.
"""

from __future__ import annotations

from ssfl.native.library import available

__all__ = ["available"]
