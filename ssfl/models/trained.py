"""A trained network together with the preprocessing of its training data: raw rows in, logits out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ssfl.core.tensor_roles import unsaved_buffers, unsaved_digest
from ssfl.models import MODEL_NAMES, build_model
from ssfl.models.description import METADATA_KEY, Description, Inputs, description_of
from ssfl.models.errors import ModelError

_CLIENTS_TENSOR = re.compile(r"client(\d{5,})/.+", re.DOTALL)
"""Name of a client's tensor; a network's own names may contain a slash too."""


@final
class TrainedNetwork(nn.Module):
    """`network` behind its preprocessing: x [B, *input_shape] as stored in the data set → logits [B, classes]."""

    def __init__(self, network: nn.Module, inputs: Inputs, dimensions: int) -> None:
        """dimensions: number of dimensions of one example; 3 for images, 1 for tables."""
        super().__init__()
        shape = (1, -1) + (1,) * (dimensions - 1)
        self.network = network
        self.whole = inputs.input_dtype == "int64"
        self.divisor = inputs.divisor
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(inputs.mean, dtype=torch.float32).view(shape))
        self.register_buffer("std", torch.tensor(inputs.std, dtype=torch.float32).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of raw rows."""
        if self.whole:
            return self.network(x)
        return self.network((x.to(torch.float32) / self.divisor - self.mean) / self.std)


@final
@dataclass(frozen=True)
class TrainedFile:
    """One network of a file that a run wrote: its state_dict, its description, and the metadata as it is stored."""

    path: Path
    metadata: str
    about: Description
    tensors: Mapping[str, Tensor]

    @property
    def inputs(self) -> Inputs:
        """The preprocessing. Raises ModelError if the file does not contain it."""
        if self.about.inputs is None:
            raise ModelError(
                f"{self.path}: contains no preprocessing (sites that scale their own rows have no common one; older "
                "files lack it); load the weights with safetensors.torch.load_file"
            )
        return self.about.inputs

    @property
    def input_dtype(self) -> torch.dtype | None:
        """For `build_model`: the type of the network's inputs if it is not a float."""
        inputs = self.about.inputs
        return torch.int64 if inputs is not None and inputs.input_dtype == "int64" else None

    def into(self, network: nn.Module) -> TrainedNetwork:
        """The network with these weights and the preprocessing, in eval mode. Raises ModelError if they do not fit."""
        if not isinstance(network, nn.Module):
            raise ModelError(
                f"network is {network!r:.60}; it must be an nn.Module, that is an instance such as Net()"
            )
        try:
            network.load_state_dict(dict(self.tensors))
        except RuntimeError as error:
            raise ModelError(
                f"{self.path}: does not fit the network: {' '.join(str(error).split())}"
            ) from None
        if self.about.unsaved_buffers and unsaved_digest(network) != self.about.unsaved_buffers:
            names = ", ".join(unsaved_buffers(network)) or "none"
            raise ModelError(
                f"{self.path}: the network's buffers that are not saved ({names}) differ from those of the run: build "
                "it after torch.manual_seed(SEED), with the run's experiment.seed"
            )
        return TrainedNetwork(network, self.inputs, len(self.about.input_shape)).eval()


def load_trained(
    path: Path | str, client: int | None = None, network: nn.Module | None = None
) -> TrainedNetwork:
    """The trained network of a run's `model.safetensors`, as a module that takes raw rows.

    Args:
        path: model.safetensors, or client_models.safetensors.
        client: the client's number, if the file contains one network per client.
        network: your custom network, untrained; a file must not decide what code is imported. None: one of MODEL_NAMES.

    Raises:
        ModelError: no such file or client, `network` is missing, or weights that do not fit; one line.
    """
    file = read_trained(Path(path), client)
    about = file.about
    if network is not None:
        return file.into(network)
    if about.model not in MODEL_NAMES:
        raise ModelError(
            f"{path}: contains weights of the custom network {about.model}; "
            f"give it as network={about.model.split(':')[-1]}(...)"
        )
    with torch.device("meta"):  # sizes that the file only claims must not allocate memory
        shapes = {name: t.shape for name, t in _build(about).state_dict().items()}
    if shapes != {name: t.shape for name, t in file.tensors.items()}:
        raise ModelError(
            f"{path}: does not fit the network: {about.model} has tensors of other names or shapes"
        )
    return file.into(_build(about))


def _build(about: Description) -> nn.Module:
    return build_model(about.model, about.num_classes, about.input_shape, about.norm)


def read_trained(path: Path, client: int | None = None) -> TrainedFile:
    """The network of a run's file, or that of one client.

    Raises ModelError if there is no such file or client, or if the file does not describe its network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY, "")
            names = list(file.keys())
            prefix = _prefix(path, names, client)
            tensors = {n.removeprefix(prefix): file.get_tensor(n) for n in names if n.startswith(prefix)}
    except FileNotFoundError:
        raise ModelError(
            f"{path}: no such file; a finished run's folder contains model.safetensors"
        ) from None
    except (OSError, SafetensorError) as error:
        if path.is_dir():
            raise ModelError(
                f"{path}: is a folder; name the file in it, such as {path}/model.safetensors"
            ) from None
        raise ModelError(f"{path}: cannot be read as safetensors ({error})") from None
    return TrainedFile(path, metadata, description_of(path, metadata), tensors)


def client_prefix(client: int) -> str:
    """The prefix of the names of a client's tensors in client_models.safetensors."""
    return f"client{client:05d}/"


def _prefix(path: Path, names: list[str], client: int | None) -> str:
    found = [_CLIENTS_TENSOR.fullmatch(name) for name in names]
    clients = sorted({int(one[1]) for one in found if one}) if all(found) else []
    if client is None and clients:
        raise ModelError(
            f"{path}: contains one network per client; choose one with client={clients[0]}..{clients[-1]}"
        )
    if client is None:
        return ""
    if client not in clients:
        held = (
            f"clients {clients[0]}..{clients[-1]}" if clients else "one network for all clients: omit client"
        )
        raise ModelError(f"{path}: no network of client {client}; it contains {held}")
    return client_prefix(client)
