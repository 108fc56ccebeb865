"""How numbers are computed: type, precision, device, memory format, kernels."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssfl.core.net import Batch
from ssfl.engine.device import CPU
from ssfl.engine.native_layers import native_layers


@dataclass(frozen=True)
class Arithmetic:
    """How numbers are computed; part of the resolved configuration, so that a resume computes the same."""

    precision: str = "fp32"
    """fp32, tf32 (CUDA only) or bf16 (autocast over fp32 weights)."""
    channels_last: bool = False
    """Memory format of images."""
    dtype: torch.dtype = torch.float32
    """Type of the flat vectors; float64 where equality is tested."""
    device: torch.device = CPU
    """Where networks, weights and batches lie; payloads are the host's."""
    compiled: bool = False
    """Training steps through torch.compile, where the network sees the weights themselves: other last bits."""
    native: bool = False
    """GroupNorm and what follows it through the kernels of `ssfl.native`, in training and tests: other last bits."""
    mixed: bool = False
    """Small maps with their channels first although images have theirs last (`native_layers.py`)."""
    winograd: bool = False
    """3x3 convolutions of images with channels last by minimal filtering (`ssfl.native.winograd`): other last bits."""

    def layers(self, module: nn.Module) -> contextlib.AbstractContextManager[None]:
        """The context in which a network trains and is tested: its layers computed as said here."""
        return native_layers(module, self.native, self.mixed, self.winograd)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context in which networks run."""
        if self.precision == "bf16":
            # No cache of cast weights: a captured step would replay the cast of one step's weights for ever.
            return torch.autocast(
                self.device.type, dtype=torch.bfloat16, cache_enabled=self.device.type == "cpu"
            )
        return contextlib.nullcontext()

    def batch(self, batch: Batch) -> Batch:
        """A batch in the type and memory format of the computation; itself where it is so already."""
        x, y = batch
        images = self.channels_last and x.dim() == 4
        lies = not images or (x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last))
        if self.device.type == "cpu" and x.dtype == self.dtype and lies:
            return batch
        x = x.to(self.device, self.dtype)
        return channels_last(x) if images else x, y.to(self.device)


def channels_last(x: Tensor) -> Tensor:
    """Images [B, C, H, W] with channels last, and said so: of one channel both formats are one, and PyTorch assumes the
    other for all layers that follow."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    return x.as_strided((batch, 1, height, width), (height * width, 1, width, 1)) if channels == 1 else x
