"""The end of a run in files that need nothing of ours: safetensors of plain state_dicts."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import ssfl
from ssfl.algorithms.base import ClientState
from ssfl.assemble import folder as place
from ssfl.assemble.build import Parts
from ssfl.engine.driver import Progress

TYPES: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
    }
)
"""What a network's state holds, in the format's words."""


def export(parts: Parts, progress: Progress, folder: Path) -> Path:
    """model.safetensors, or client_models.safetensors where a method has no global model; whole or not there."""
    theta = parts.algorithm.weights_to_evaluate(progress.state, parts.context)
    if theta is not None:
        return _write(named_tensors(parts, theta), parts, folder / place.MODEL)
    path = folder / place.CLIENT_MODELS
    temporary = path.with_name(f".{path.name}.new")
    write_client_models(parts, progress.client_states, temporary)
    temporary.replace(path)
    return path


def named_tensors(parts: Parts, theta: Tensor) -> Mapping[str, Tensor]:
    """The network's state_dict under weights theta [P]."""
    named = parts.layout.views(theta[: parts.layout.trained_size])
    named |= parts.layout.statistics(theta[parts.layout.trained_size :])
    return {**parts.module.state_dict(), **named}


def client_model(parts: Parts, state: ClientState) -> Tensor:
    """A client's own model [P], where its memory holds one; the initial model for a client never visited."""
    kept = [task.kept_model(state) for task in parts.algorithm.tasks.values()]
    return next((theta for theta in reversed(kept) if theta is not None), parts.theta)


def write_client_models(parts: Parts, states: Mapping[int, ClientState], path: Path) -> None:
    """All clients' models as one safetensors file, "clientNNNNN/NAME", with one model at a time in memory.

    Larger types come first, so that every tensor is aligned to its type, as the format's own writer has it.
    """
    shapes = named_tensors(parts, parts.theta)
    sizes = sorted({t.element_size() for t in shapes.values()}, reverse=True)
    clients = parts.context.clients
    order = [
        (c, n, t) for size in sizes for c in clients for n, t in shapes.items() if t.element_size() == size
    ]
    with path.open("wb") as file:
        file.write(_header({_entry(client, name): tensor for client, name, tensor in order}, metadata(parts)))
        for size in sizes:
            for client in clients:
                own = named_tensors(parts, client_model(parts, states.get(client, {})))
                for tensor in own.values():
                    if tensor.element_size() == size:
                        file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)


def _entry(client: int, name: str) -> str:
    return f"client{client:05d}/{name}"


def _header(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """A safetensors header for tensors [...] that follow in this order; padded to 8 bytes as the format asks."""
    told: dict[str, Any] = {"__metadata__": dict(about)}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        told[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    raw = json.dumps(told, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def metadata(parts: Parts) -> dict[str, str]:
    """What build_model needs, as JSON under the key "ssfl".

    One key, because safetensors writes several in an order of its own each time, and equal runs end in equal bytes.
    """
    about = {
        "version": ssfl.__version__,
        "model": parts.config.model.name,
        "norm": parts.config.model.norm,
        "num_classes": parts.federation.arrays.num_classes,
        "input_shape": list(parts.federation.input_shape),
    }
    return {"ssfl": json.dumps(about, sort_keys=True)}


def _write(tensors: Mapping[str, Tensor], parts: Parts, path: Path) -> Path:
    temporary = path.with_name(f".{path.name}.new")
    save_file({name: t.clone() for name, t in tensors.items()}, temporary, metadata=metadata(parts))
    temporary.replace(path)
    return path
