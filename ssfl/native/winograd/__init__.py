"""Winograd convolutions of 3x3 filters."""

from __future__ import annotations

from ssfl.native.winograd.convolution import (
    CHANNELS,
    Place,
    fits,
    serves,
    serves_shape,
    winograd_conv,
)

__all__ = ["CHANNELS", "Place", "fits", "serves", "serves_shape", "winograd_conv"]
