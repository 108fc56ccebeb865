"""GroupNorm fused with the layers that follow it."""

from __future__ import annotations

from ssfl.native.group_norm.norm import MOST_CHANNELS, After, fits, layer_by_layer, norm_act

__all__ = ["MOST_CHANNELS", "After", "fits", "layer_by_layer", "norm_act"]
