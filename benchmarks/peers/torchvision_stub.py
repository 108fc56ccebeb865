"""Makes `import torchvision` work with a torch of another build: some peers import it without using it here.

torchvision's Python part needs operators of its compiled part, which does not load with a CPU-only torch.
"""

from __future__ import annotations

import contextlib

import torch


def allow_import() -> torch.library.Library:
    """Declare the operators that torchvision looks for; keep the result alive."""
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # the real operator exists
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    return library
