"""Whether two clients' memories have the same bits."""

from __future__ import annotations

from typing import Any

import torch

from ssfl.engine.client.memory import ClientMemory
from ssfl.engine.state.serialization import Packer


def same_memory(one: ClientMemory, other: ClientMemory) -> bool:
    """State and published payload: the same names, types and bits."""
    return same_value(dict(one.state), dict(other.state)) and same_value(one.published, other.published)


def same_value(one: Any, other: Any) -> bool:
    """Compares any values that a checkpoint can store; shared memory of tensors does not matter."""
    ours, theirs = _flat(one), _flat(other)
    return ours[0] == theirs[0] and all(
        a.dtype == b.dtype and a.equal(b) for a, b in zip(ours[1], theirs[1], strict=True)
    )


def _flat(value: Any) -> tuple[Any, list[torch.Tensor]]:
    """The value with every tensor replaced by its index in the list, and the list."""
    packer = Packer()
    form, tensors = packer.pack(value), list[torch.Tensor]()

    def named(item: Any) -> Any:
        if isinstance(item, dict) and "tensor" in item:
            tensors.append(packer.tensors[item["tensor"]])
            return {"tensor": len(tensors)}
        if isinstance(item, dict):
            return {k: named(v) for k, v in item.items()}
        return [named(v) for v in item] if isinstance(item, list) else item

    return named(form), tensors
