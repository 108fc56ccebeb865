"""Typed values <-> plain JSON plus named tensors: the content of checkpoints, without pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ssfl.errors import UserError

KEPT_CHECKPOINTS = 2
"""Number of newest checkpoints that are kept, with every file that they name."""
NOT_SAVED: Mapping[str, bool] = MappingProxyType({"saved": False})
"""Metadata of a dataclass field that is not in checkpoints; it gets its default when read."""


class RecordError(UserError):
    """A value that a checkpoint cannot store, or a checkpoint without the expected value."""


class Packer:
    """Turns values into JSON and collects their tensors; a tensor that appears twice is stored once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[tuple[Any, ...], str] = {}
        self._alive: list[Tensor] = []

    def pack(self, value: Any) -> Any:
        """JSON of None, numbers, strings, bytes, tensors, tuples, lists, mappings and dataclasses of these."""
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, bytes):
            return {"bytes": value.hex()}
        if isinstance(value, Tensor):
            return {"tensor": self._name(value)}
        if is_dataclass(value) and not isinstance(value, type):
            saved = [f.name for f in fields(value) if f.metadata.get("saved", True)]
            inside = {name: self.pack(getattr(value, name)) for name in saved}
            return {"record": type(value).__name__, "fields": inside}
        if isinstance(value, Mapping):
            return {"map": [[self.pack(k), self.pack(v)] for k, v in value.items()]}
        if isinstance(value, list):
            return {"list": [self.pack(v) for v in value]}
        if isinstance(value, tuple):
            return {"tuple": [self.pack(v) for v in value]}
        raise RecordError(f"a checkpoint cannot hold a {type(value).__name__}")

    def _name(self, tensor: Tensor) -> str:
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        if tensor.numel() == 0 or key not in self._known:
            name = f"t{len(self.tensors)}"
            self._known[key] = name
            self._alive.append(tensor)
            self.tensors[name] = tensor.detach().cpu().contiguous()
        return self._known[key]


def unpack(value: Any, tensors: Mapping[str, Tensor], records: Sequence[type[Any]]) -> Any:
    """The value that was passed to `Packer.pack`; dataclasses must be of the types in `records`."""
    known = {kind.__name__: kind for kind in records}

    def build(item: Any) -> Any:
        if not isinstance(item, dict):
            return item
        if "tensor" in item:
            return tensors[item["tensor"]]
        if "record" in item:
            if item["record"] not in known:
                raise RecordError(
                    f"the checkpoint contains a {item['record']}, which this method does not use"
                )
            return known[item["record"]](**{k: build(v) for k, v in item["fields"].items()})
        if "map" in item:
            return {build(k): build(v) for k, v in item["map"]}
        if "list" in item:
            return [build(v) for v in item["list"]]
        if "tuple" in item:  # also the form of lists in older checkpoints
            return tuple(build(v) for v in item["tuple"])
        if "bytes" in item:
            return bytes.fromhex(item["bytes"])
        if "float" in item:
            return float(item["float"])
        raise RecordError(f"the checkpoint contains an unknown form {sorted(item)}")

    return build(value)


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values without shared memory, because safetensors refuses tensors that share memory."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.numel() * tensor.element_size()
        own = whole and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        out[name] = tensor if own else tensor.clone()
    return out
