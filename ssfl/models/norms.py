"""Normalisation layers by name: "group", "group<G>" or "batch"; and the sequence convolution, norm, pooling, ReLU."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ssfl.models.errors import ModelError

Norm = Callable[[int], nn.Module]
"""Number of channels → a normalisation layer over them."""


def norm_layer(norm: str, default_groups: int) -> Norm:
    """The norm called `norm`: "group" (with the network's `default_groups`), "group<G>" or "batch".

    GroupNorm keeps no statistics between batches and is therefore preferred for non-IID clients; BatchNorm keeps a
    running mean and variance as buffers. Raises ModelError for another name; the returned function raises it if the
    groups do not divide the channels.
    """
    if norm == "batch":
        return nn.BatchNorm2d
    match = re.fullmatch(r"group([1-9]\d*)?", norm)
    if match is None:
        raise ModelError(
            f"norm is {norm!r}; allowed: 'group' (the network's usual number of groups), "
            "'group2' or any other number of groups, 'batch'"
        )
    groups = int(match[1] or default_groups)

    def group_norm(channels: int) -> nn.Module:
        if channels % groups:
            raise ModelError(
                f"norm is {norm!r}, but {groups} groups do not divide a layer of {channels} channels; "
                f"choose a number of groups that divides {channels}"
            )
        return nn.GroupNorm(groups, channels)

    return group_norm


def conv_norm_relu(
    conv: nn.Module, norm: nn.Module, x: Tensor, residual: Tensor | None = None, pool: bool = False
) -> Tensor:
    """relu(max_pool2d(norm(conv(x)), 2) + residual); pool and residual are optional and exclude each other.

    ReLU is monotonic, so pooling before it gives the same function and gradient, and ReLU then processes a quarter of
    the values. An engine with a fused implementation sets it on the norm layer (`fused(conv, x, residual, pool)`,
    ssfl/engine/compute/fused_layers.py); every network that calls this function then uses it.
    """
    fused = getattr(norm, "fused", None)
    if fused is not None:
        return fused(conv, x, residual, pool)
    y = norm(conv(x))
    if pool:
        y = F.max_pool2d(y, 2)
    return F.relu(y if residual is None else y + residual)
