"""How numbers are computed: type, precision, device, memory format, kernels."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssfl.core.net import Batch
from ssfl.engine.compute.device import CPU
from ssfl.engine.compute.fused_layers import Places, native_layers


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
    """Device of networks, weights and batches; payloads are in host memory."""
    compiled: bool = False
    """torch.compile for training steps, if the network's weights are theta itself; the last bits differ."""
    native: bool = False
    """Use the kernels of `ssfl.native` for GroupNorm and the operations after it; the last bits differ."""
    mixed: bool = False
    """Small maps with channels first although images have channels last (`fused_layers.py`)."""
    winograd: bool = False
    """3x3 Winograd convolutions (`ssfl.native.winograd`) of images with channels last; the last bits differ."""

    def layers(
        self, module: nn.Module, places: Places | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """The context in which a network trains and is tested: its layers are computed as configured here.

        places: where kernels may write the gradients of parameters.
        """
        return native_layers(module, self.native, self.mixed, self.winograd, places)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context in which networks run."""
        if self.precision == "bf16":
            # No cache of cast weights: a captured step would replay those of its capture; and all threads share it, so
            # that gradients of a layer that is used twice would be added in float32 or in bfloat16, by chance.
            return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False)
        return contextlib.nullcontext()

    def batch(self, batch: Batch) -> Batch:
        """A batch in the type and memory format of the computation; the batch itself if it has them already.

        Integers (tokens) keep their type.
        """
        x, y = batch
        if not x.is_floating_point() and x.dtype != torch.uint8:
            return x.to(self.device), y.to(self.device)
        images = self.channels_last and x.dim() == 4
        lies = not images or (x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last))
        if self.device.type == "cpu" and x.dtype == self.dtype and lies:
            return batch
        x = x.to(self.device, self.dtype)
        return channels_last(x) if images else x, y.to(self.device)


def channels_last(x: Tensor) -> Tensor:
    """Images [B, C, H, W] with channels last, also in their strides: with one channel both formats have the same
    order, and PyTorch would choose channels first for all later layers."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    return x.as_strided((batch, 1, height, width), (height * width, 1, width, 1)) if channels == 1 else x
