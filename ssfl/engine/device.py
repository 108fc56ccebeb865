"""Where tensors live while they are computed on: which device, when they go there, when they come back.

Payloads and clients' memories lie in the host's memory, so methods, wire and checkpoints know no device. A client's
work goes to the device after `receive` and comes back before `reply`; in between nothing waits for the host.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ssfl.algorithms.base import ClientTask, Work

CPU = torch.device("cpu")
EVALUATION_BATCH_ON_DEVICE = 2048
"""Examples a forward pass; ResNet18's largest map of so many 32x32 images takes 0.5 GB in float32."""


class NoDeviceError(ValueError):
    """The device asked for is not there: says which there are."""


def resolved_device(asked: str) -> str:
    """`auto` decided: cuda where PyTorch sees a device, else cpu."""
    if asked != "auto":
        return asked
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_of(kind: str, number: int) -> torch.device:
    """The device of a kind and number; NoDeviceError when the host has none of that number."""
    if kind != "cuda":
        return torch.device(kind)
    count = torch.cuda.device_count()
    if number >= count:
        raise NoDeviceError(f"no CUDA device {number}; PyTorch sees {count}, numbered from 0")
    return torch.device("cuda", number)


def set_arithmetic(device: torch.device, precision: str) -> None:
    """Make the process's settings follow `engine.precision`; a CPU has none.

    fp32 means fp32: cuDNN's own default would round the factors of convolutions to tf32. Algorithms are chosen by
    rule and repeatable, never by a race, so that a resumed run computes the same bits on the same device type.
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
def on_device(work: Work, device: torch.device) -> Work:
    """The work's tensors on the device; the same tensors where they are there already."""
    return work if device.type == "cpu" else {name: t.to(device) for name, t in work.items()}


def on_host(computed: Work, received: Work, task: ClientTask) -> Work:
    """The work for `reply`, in the host's memory: what training changes comes back, the rest was never lost.

    computed: after training, on the device. received: what `receive` gave.
    """
    if all(t.device.type == "cpu" for t in computed.values()):
        return computed
    changed = ("theta", *task.updates)
    return {n: t.cpu() if n in changed or n not in received else received[n] for n, t in computed.items()}


def stacked(works: Sequence[Work], device: torch.device) -> Work:
    """K clients' works as [K, ...] on the device; what all share (one broadcast model) crosses once."""
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
    """Within: layers that draw (dropout) draw from `seed`; afterwards the generator is where it was.

    A CUDA generator gives other numbers than the CPU's: with such layers, runs are equal per device type only.
    """
    # The generator's own methods: torch.manual_seed walks every device and formats a stack, 0.2 ms a client.
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
    """Name, memory, driver's CUDA version: what a figure measured there means nothing without."""
    if device.type != "cuda":
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device_memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
