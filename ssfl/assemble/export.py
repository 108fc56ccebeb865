"""The end of a run in files that need nothing of ours: safetensors of plain state_dicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

import ssfl
from ssfl.algorithms.base import ClientState
from ssfl.assemble import folder as place
from ssfl.assemble.build import Parts
from ssfl.engine.driver import Progress


def export(parts: Parts, progress: Progress, folder: Path) -> Path:
    """model.safetensors, or client_models.safetensors where a method has no global model; whole or not there."""
    theta = parts.algorithm.weights_to_evaluate(progress.state, parts.context)
    if theta is not None:
        return _write(named_tensors(parts, theta), parts, folder / place.MODEL)
    tensors = {
        f"client{client:05d}/{name}": tensor
        for client, own in client_models(parts, progress.client_states).items()
        for name, tensor in named_tensors(parts, own).items()
    }
    return _write(tensors, parts, folder / place.CLIENT_MODELS)


def named_tensors(parts: Parts, theta: Tensor) -> Mapping[str, Tensor]:
    """The network's state_dict under weights theta [P]."""
    named = parts.layout.views(theta[: parts.layout.trained_size])
    named |= parts.layout.statistics(theta[parts.layout.trained_size :])
    return {**parts.module.state_dict(), **named}


def client_models(parts: Parts, states: Mapping[int, ClientState]) -> Mapping[int, Tensor]:
    """Each client's own model [P], where its memory holds one; the initial model for clients never visited."""
    models = dict.fromkeys(parts.context.clients, parts.theta)
    for client, state in states.items():
        for task in parts.algorithm.tasks.values():
            kept = task.kept_model(state)
            if kept is not None:
                models[client] = kept
    return models


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
