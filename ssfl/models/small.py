"""Small networks for studies on a CPU: convolutional ones and a perceptron; PyTorch's default init."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from ssfl.models.norms import Norm, conv_norm_relu


@final
class SmallCNN(nn.Module):
    """Images [B, C, H, W] → logits [B, num_classes]: 3×3 convolutions (bias, norm, pool, ReLU), then a head.

    `pools` says after which convolutions the resolution is halved. `hidden` is the width of the head's hidden
    layer; 0: no hidden layer.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        widths: Sequence[int],
        pools: Sequence[bool],
        hidden: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.pools = tuple(pools)
        for out_channels, pool in zip(widths, pools, strict=True):
            self.convs.append(nn.Conv2d(channels, out_channels, 3, padding=1))
            self.norms.append(norm(out_channels))
            channels = out_channels
            if pool:
                height, width = height // 2, width // 2
        features = channels * height * width
        self.hidden = nn.Linear(features, hidden) if hidden else None
        self.output = nn.Linear(hidden or features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm, pool in zip(self.convs, self.norms, self.pools, strict=True):
            x = conv_norm_relu(conv, norm, x, pool=pool)
        x = x.flatten(1)  # copies if the layout is channels-last, for which a view would fail
        if self.hidden is not None:
            x = F.relu(self.hidden(x))
        return self.output(x)


@final
class MLP(nn.Module):
    """Features [B, F] or images [B, C, H, W] → logits [B, num_classes]; ReLU between linear layers."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, hidden, strict=False))
        self.output = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.output(x)


def pools_that_fit(height: int, width: int, wanted: int) -> tuple[bool, ...]:
    """Whether to pool after each of `wanted` convolutions; the output stays at least 2×2."""
    side = min(height, width)
    return tuple(side // 2**halvings >= 4 for halvings in range(wanted))
