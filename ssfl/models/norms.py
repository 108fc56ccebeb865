"""Normalisation layers by name: "group", "group<G>" or "batch"; and a layer's usual sequence around one."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ssfl.models.errors import ModelError

Norm = Callable[[int], nn.Module]
"""Number of channels → a normalisation layer over them."""


def norm_layer(norm: str, default_groups: int) -> Norm:
    """The norm called `norm`: "group" (with the network's own `default_groups`), "group<G>" or "batch".

    GroupNorm keeps no statistics between batches, which is why federated work on non-IID clients prefers it;
    BatchNorm keeps a running mean and variance as buffers. Raises ModelError for another name, and the
    returned function raises it where the groups do not divide the channels.
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
    """relu(max_pool2d(norm(conv(x)), 2) + residual); pool and residual only where asked for, never both.

    ReLU never changes an order, so the largest of a window may be taken first: the same function, the same gradient,
    and ReLU then runs over a quarter of the values. An engine that knows how to do all of it at once says so on the
    norm layer (`fused(conv, x, residual, pool)`, ssfl/engine/native_layers.py); a network that goes through here, its
    own or a user's, then gains from it.
    """
    fused = getattr(norm, "fused", None)
    if fused is not None:
        return fused(conv, x, residual, pool)
    y = norm(conv(x))
    if pool:
        y = F.max_pool2d(y, 2)
    return F.relu(y if residual is None else y + residual)
