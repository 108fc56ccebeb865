"""C kernels for operations that need several passes in PyTorch on a CPU; same results, to rounding or to the bit.

`available()` returns whether they were built. Without them everything works, but slower.
"""

from __future__ import annotations

from ssfl.native.library import available

__all__ = ["available"]
