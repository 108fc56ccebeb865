"""3x3 convolutions of many small groups."""

from __future__ import annotations

from ssfl.native.group_conv.convolution import MOST_CHANNELS_IN, group_conv, serves

__all__ = ["MOST_CHANNELS_IN", "group_conv", "serves"]
