"""ResNets for small images (He et al. 2016) with the stem of SSFL's experiments: 3×3, stride 1, no max-pool.

Stages halve the resolution from the second on; the last map is averaged over all positions. SSFL's network ends
in a 4×4 average pool, which at 32×32 is the same function; averaging over all positions also works for 64×64
(its `tiny_resnet18`) and 28×28. Initial weights are PyTorch's defaults, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from ssfl.models.norms import Norm, conv_norm_relu


@final
class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: [B, in, H, W] → [B, width, H/stride, W/stride]."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm(width)
        self.shortcut = _shortcut(in_channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = conv_norm_relu(self.conv1, self.norm1, x)
        return conv_norm_relu(self.conv2, self.norm2, y, self.shortcut(x))


@final
class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions and a shortcut: [B, in, H, W] → [B, 4·width, H/stride, W/stride]."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.norm3 = norm(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = conv_norm_relu(self.conv1, self.norm1, x)
        y = conv_norm_relu(self.conv2, self.norm2, y)
        return conv_norm_relu(self.conv3, self.norm3, y, self.shortcut(x))


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Sequential:
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm(out_channels)
    )


@final
class ResNet(nn.Module):
    """Images [B, C, H, W] → logits [B, num_classes].

    `widths` and `depths` give, stage by stage, the channels (before the block's expansion) and the blocks.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        widths: Sequence[int],
        depths: Sequence[int],
        in_channels: int,
        num_classes: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.norm1 = norm(widths[0])
        # The stages have the names layer1, layer2, … that are usual for ResNets.
        self.stage_names = tuple(f"layer{number}" for number in range(1, len(widths) + 1))
        channels = widths[0]
        for name, width, depth in zip(self.stage_names, widths, depths, strict=True):
            blocks = nn.Sequential()
            for position in range(depth):
                stride = 2 if name != "layer1" and position == 0 else 1
                blocks.append(block(channels, width, stride, norm))
                channels = width * block.expansion
            self.add_module(name, blocks)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = conv_norm_relu(self.conv1, self.norm1, x)
        for name in self.stage_names:
            x = getattr(self, name)(x)
        return self.linear(x.mean(dim=(2, 3)))
