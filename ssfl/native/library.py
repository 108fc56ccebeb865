"""The compiled module, if there is one, and what its functions are told of tensors."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from torch import Tensor

__all__ = ["address", "available", "kernels"]

if TYPE_CHECKING:
    from ssfl.native import kernels as kernels
else:
    # Compiled when the package is installed; a machine without a C compiler installs the package without it.
    _built = importlib.util.find_spec("ssfl.native.kernels") is not None
    kernels = importlib.import_module("ssfl.native.kernels") if _built else None


def available() -> bool:
    """Whether the kernels were built."""
    return kernels is not None


def address(tensor: Tensor | None) -> int:
    """Where a tensor's memory begins; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
