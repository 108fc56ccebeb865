"""Attention from elementary operations, which have second derivatives; PyTorch's fused kernels have none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """Compute attention from elementary operations inside the block; only in the calling thread."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """PyTorch calls this for each of its functions; two functions are replaced.

        Calls made by this method are not intercepted again. `nn.MultiheadAttention` uses elementary operations when
        its attention weights are requested.
        """
        given = dict(kwargs or {})
        if func is multi_head_attention_forward and not given.get("need_weights", True):
            return func(*args, **{**given, "need_weights": True})[0], None
        if func is not scaled_dot_product_attention or given.get("enable_gqa"):
            return func(*args, **given)
        return plain_attention(*args, **{k: v for k, v in given.items() if k != "enable_gqa"})


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(query key^T * scale + mask) value, of [..., L, E], [..., S, E], [..., S, F] -> [..., L, F].

    attn_mask: bool (True: attend to this position) or float (added to the scores), broadcast to [..., L, S].
    """
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.dropout(torch.softmax(scores, -1), dropout_p, dropout_p > 0) @ value
