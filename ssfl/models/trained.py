"""A trained network together with the preprocessing of its training data: raw rows in, logits out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ssfl.models import MODEL_NAMES, build_model
from ssfl.models.errors import ModelError

METADATA_KEY = "ssfl"
"""Key of a safetensors file's metadata: one JSON object, because the order of several keys changes at each write."""


@final
@dataclass(frozen=True)
class Inputs:
    """The type of raw rows, and how they become the network's input: (x / divisor - mean) / std in float32.

    input_dtype: "uint8" for pixels (divisor 255), "float32" for features (divisor 1), "int64" for token numbers, which
    the network receives unchanged. mean, std: one entry for all, one per channel of images [B, C, H, W], or one per
    feature of tables [B, F]. class_names: the classes of the logits, in their order.
    """

    input_dtype: str
    divisor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]


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
    """One network of a file that a run wrote: its state_dict, and its metadata."""

    path: Path
    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One example: (C, H, W) or (F,)."""
        return tuple(self.about["input_shape"])

    @property
    def inputs(self) -> Inputs:
        """The preprocessing. Raises ModelError if the file does not contain it."""
        inputs = self.about.get("inputs")
        if inputs is None:
            raise ModelError(
                f"{self.path}: contains no preprocessing (sites that scale their own rows have no common one; older "
                "files lack it); load the weights with safetensors.torch.load_file"
            )
        return Inputs(
            inputs["input_dtype"],
            inputs["divisor"],
            tuple(inputs["mean"]),
            tuple(inputs["std"]),
            tuple(inputs["class_names"]),
        )

    def into(self, network: nn.Module) -> TrainedNetwork:
        """The network with these weights and the preprocessing, in eval mode. Raises ModelError if they do not fit."""
        try:
            network.load_state_dict(dict(self.tensors))
        except RuntimeError as error:
            raise ModelError(
                f"{self.path}: does not fit the network: {' '.join(str(error).split())}"
            ) from None
        return TrainedNetwork(network, self.inputs, len(self.input_shape)).eval()


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
    name = file.about["model"]
    if network is None and name not in MODEL_NAMES:
        raise ModelError(
            f"{path}: contains weights of the custom network {name}; give it as network={name.split(':')[-1]}(...)"
        )
    if network is None:
        network = build_model(name, file.about["num_classes"], file.input_shape, file.about["norm"])
    return file.into(network)


def read_trained(path: Path, client: int | None = None) -> TrainedFile:
    """The network of a run's file, or that of one client. Raises ModelError if there is no such file or client."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            names = list(file.keys())
            prefix = _prefix(path, names, client)
            tensors = {n.removeprefix(prefix): file.get_tensor(n) for n in names if n.startswith(prefix)}
    except FileNotFoundError:
        raise ModelError(
            f"{path}: no such file; a finished run's folder contains model.safetensors"
        ) from None
    except (OSError, SafetensorError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: cannot be read as safetensors ({error})") from None
    if not isinstance(about, dict):
        raise ModelError(
            f"{path}: does not describe its network; only files written by a run of ssfl can be used"
        )
    return TrainedFile(path, about, tensors)


def client_prefix(client: int) -> str:
    """The prefix of the names of a client's tensors in client_models.safetensors."""
    return f"client{client:05d}/"


def _prefix(path: Path, names: list[str], client: int | None) -> str:
    clients = sorted({int(n.partition("/")[0].removeprefix("client")) for n in names if "/" in n})
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


def inputs_as_json(inputs: Inputs | None) -> dict[str, Any] | None:
    """The preprocessing as in the files' metadata."""
    return None if inputs is None else asdict(inputs)
