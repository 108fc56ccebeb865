"""The device of the computation, and copies of tensors to and from it.

Payloads and client states are in host memory, so methods, wire and checkpoints do not depend on the device. A client's
work is copied to the device after `receive` and back before `reply`; in between the device does not wait for the host.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ssfl.algorithms.base import ClientTask, Work
from ssfl.errors import UserError

CPU = torch.device("cpu")
EVALUATION_BATCH_ON_DEVICE = 2048
"""Examples per forward pass; ResNet18's largest map then takes 0.5 GB in float32 for 32x32 images."""


class NoDeviceError(UserError):
    """The requested device does not exist; the message says which devices exist."""


def resolved_device(asked: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Resolves `auto`: cuda if PyTorch sees a device, else cpu."""
    if asked != "auto":
        return asked
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_of(kind: str, number: int) -> torch.device:
    """The device of a kind and number. Raises NoDeviceError if there is no device with this number."""
    if kind != "cuda":
        return torch.device(kind)
    count = torch.cuda.device_count()
    if number >= count:
        raise NoDeviceError(f"no CUDA device {number}; PyTorch sees {count}, numbered from 0")
    return torch.device("cuda", number)


def set_arithmetic(device: torch.device, precision: str) -> None:
    """Set PyTorch's global precision settings from `engine.precision`; a CPU has none.

    fp32 means fp32: cuDNN's default would round the factors of convolutions to tf32. Algorithms are deterministic and
    not chosen by timing, so that a resumed run computes the same bits on the same device type.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the device is first used
    torch.cuda.set_device(device)
    rounded = precision == "tf32"
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        mode = "tf32" if rounded else "ieee"
        torch.backends.cuda.matmul.fp32_precision = mode
        torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]
    else:  # PyTorch before 2.9
        torch.backends.cuda.matmul.allow_tf32 = rounded
        torch.backends.cudnn.allow_tf32 = rounded
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


# ── a client's work ──────────────────────────────────────────────────────────────────────────────────────────────
def on_device(received: Work, device: torch.device, task: ClientTask) -> Work:
    """The received work on the device; tensors that are there already are not copied.

    Tensors that the task's objective updates in place are always copied, so that the received ones do not change.
    """
    return {name: t.to(device, copy=name in task.updates) for name, t in received.items()}


def on_host(computed: Work, received: Work, task: ClientTask) -> Work:
    """The work for `reply`, in host memory: trained tensors are copied back, the others are taken from `received`.

    computed: after training, on the device. received: the result of `receive`.
    """
    if all(t.device.type == "cpu" for t in computed.values()):
        return computed
    changed = ("theta", *task.updates)
    return {n: t.cpu() if n in changed or n not in received else received[n] for n, t in computed.items()}


def stacked(works: Sequence[Work], device: torch.device) -> Work:
    """K clients' works as [K, ...] on the device; a tensor that all share (a broadcast model) is copied once."""
    return {name: _stack([w[name] for w in works], device) for name in works[0]}


def _stack(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    first = tensors[0]
    one = all(t.data_ptr() == first.data_ptr() and t.shape == first.shape for t in tensors)
    if one and device.type != "cpu" and first.device != device:
        return first.to(device).expand(len(tensors), *first.shape).contiguous()
    return torch.stack(list(tensors)).to(device)


# ── draws of layers ──────────────────────────────────────────────────────────────────────────────────────────────
@contextlib.contextmanager
def layer_draws(device: torch.device, seed: int) -> Iterator[None]:
    """Inside the block random layers (dropout) draw from `seed`; afterwards the generator's state is restored.

    A CUDA generator gives other numbers than a CPU generator: with such layers, runs are equal only on one device type.
    """
    # The generator's methods are used because torch.manual_seed visits every device: 0.2 ms per client.
    generator = _generator(device)
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.init()  # type: ignore[no-untyped-call]
        number = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[number]
    return torch.default_generator


def device_facts(device: torch.device) -> Mapping[str, object]:
    """Name, memory, CUDA and cuDNN versions of the device, to record with measurements."""
    if device.type != "cuda":
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device_memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
