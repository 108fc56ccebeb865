"""Writes a finished run's networks as safetensors of plain state_dicts, which can be read without ssfl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import ssfl
from ssfl import run_folder
from ssfl.algorithms.base import ClientState
from ssfl.assemble.build import RunSetup, module_of
from ssfl.core.reading import raw_bytes
from ssfl.core.tensor_roles import state_under, unsaved_buffers, unsaved_digest
from ssfl.engine.client.memory import ClientMemories
from ssfl.engine.state.progress import Progress
from ssfl.engine.state.tensor_file import header, pieces, write_pieces
from ssfl.models.description import METADATA_KEY, inputs_as_json
from ssfl.models.trained import client_prefix
from ssfl.output import whole_file


def export(setup: RunSetup, progress: Progress, folder: Path) -> Path:
    """Writes model.safetensors, or client_models.safetensors for a method without a global model, atomically."""
    theta = setup.algorithm.weights_to_evaluate(progress.state, setup.context)
    if theta is not None:
        path = folder / run_folder.MODEL
        write_pieces(path, pieces(named_tensors(setup, theta), metadata(setup)))
        return path
    path = folder / run_folder.CLIENT_MODELS
    with whole_file(path) as temporary:
        write_client_models(setup, progress.client_memories, temporary)
    return path


def named_tensors(setup: RunSetup, theta: Tensor) -> Mapping[str, Tensor]:
    """The network's state_dict under weights theta [P]."""
    return state_under(setup.module, {**setup.constants, **setup.layout.named(theta)})


def client_model(setup: RunSetup, state: ClientState) -> Tensor:
    """A client's own model [P] from its memory; the initial model for a client that never trained."""
    kept = [task.kept_model(state) for task in setup.algorithm.tasks.values() if task.kept_model is not None]
    return next((theta for theta in reversed(kept) if theta is not None), setup.theta)


def write_client_models(setup: RunSetup, memories: ClientMemories, path: Path) -> None:
    """All clients' models as one safetensors file, "clientNNNNN/NAME", with one model at a time in memory.

    Larger types come first, so that every tensor is aligned to its type, as in files of the format's own writer.
    """
    shapes = named_tensors(setup, setup.theta)
    sizes = sorted({t.element_size() for t in shapes.values()}, reverse=True)
    clients = setup.context.clients
    order = [
        (c, n, t) for size in sizes for c in clients for n, t in shapes.items() if t.element_size() == size
    ]
    with path.open("wb") as file:
        file.write(
            header({client_prefix(client) + name: tensor for client, name, tensor in order}, metadata(setup))
        )
        for size in sizes:
            for client in clients:
                own = named_tensors(setup, client_model(setup, _state(memories, client)))
                for tensor in own.values():
                    if tensor.element_size() == size:
                        file.write(raw_bytes(tensor))


def _state(memories: ClientMemories, client: int) -> ClientState:
    return memories[client].load().state if client in memories else {}


def metadata(setup: RunSetup) -> dict[str, str]:
    """The arguments that rebuild the network, and its preprocessing, as JSON under one key."""
    about: dict[str, Any] = {
        "version": ssfl.__version__,
        "model": setup.config.model.name,
        "norm": setup.config.model.norm,
        "num_classes": setup.federation.arrays.num_classes,
        "input_shape": list(setup.federation.input_shape),
        "inputs": inputs_as_json(setup.inputs),
    }
    if unsaved_buffers(setup.module):  # training may have changed those of setup.module
        about["unsaved_buffers"] = unsaved_digest(module_of(setup.config, setup.federation))
    return {METADATA_KEY: json.dumps(about, sort_keys=True)}
