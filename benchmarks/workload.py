"""The work on which simulators are compared. Needs only numpy and torch, because it also runs in peers' environments.

Networks are written as by a user of any framework, not as in ssfl.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH_SIZE = 16
LR = 0.05
CLASSES = 10
TEST_EXAMPLES = 500
SEED = 0


@dataclass(frozen=True)
class Workload:
    """One round: `cohort` of `clients`, `examples` each, one local epoch of plain SGD, sample-weighted FedAvg."""

    name: str
    shape: tuple[int, ...]
    """One example."""
    clients: int
    cohort: int
    examples: int
    """Per client."""
    build: Callable[[], nn.Module]
    """The network with PyTorch's default initial weights."""
    parameters: int

    @property
    def network(self) -> str:
        """The name of its network: cnn, resnet18, tiny or scale."""
        return self.name.partition("-")[0]

    @property
    def round_examples(self) -> int:
        """Examples trained on in one round."""
        return self.cohort * self.examples


@dataclass(frozen=True)
class ClientArrays:
    """All clients' data. x: float32 [clients, examples, *shape], y: int64 [clients, examples]; and a test set."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def client_arrays(work: Workload) -> ClientArrays:
    """Class means of low frequency (4x4 normal values times 0.5, upsampled) plus unit normal noise; seed 0.

    Inputs that are not images get a normal mean per class, times 0.5.
    """
    rng = np.random.default_rng(SEED)
    means = _class_means(rng, work.shape)
    total = work.clients * work.examples

    def draw(count: int) -> tuple[Tensor, Tensor]:
        y = rng.integers(0, CLASSES, count)
        noise = rng.standard_normal((count, *work.shape), dtype=np.float32)
        return torch.from_numpy(means[y] + noise), torch.from_numpy(y)

    x, y = draw(total)
    test_x, test_y = draw(TEST_EXAMPLES)
    own = (work.clients, work.examples)
    return ClientArrays(x.view(*own, *work.shape), y.view(own), test_x, test_y)


def _class_means(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    if len(shape) == 1:
        return (0.5 * rng.standard_normal((CLASSES, *shape))).astype(np.float32)
    channels, height, width = shape
    coarse = 0.5 * rng.standard_normal((CLASSES, channels, 4, 4))
    return np.kron(coarse, np.ones((1, 1, height // 4, width // 4))).astype(np.float32)


def seeded(work: Workload) -> nn.Module:
    """The network with the same initial weights for all contestants."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return work.build()


def cohort_of(work: Workload, round_: int) -> list[int]:
    """The round's clients, drawn without replacement."""
    rng = np.random.default_rng((SEED, round_))
    return sorted(rng.choice(work.clients, work.cohort, replace=False).tolist())


def accuracy_of(module: nn.Module, arrays: ClientArrays) -> float:
    """Accuracy on the test set, which shows that a contestant really trains."""
    module.eval()
    with torch.no_grad():
        hits = [
            (module(x).argmax(1) == y).sum()
            for x, y in zip(torch.split(arrays.test_x, 100), torch.split(arrays.test_y, 100))
        ]
    return int(torch.stack(hits).sum()) / len(arrays.test_y)


# ── networks ─────────────────────────────────────────────────────────────────────────────────────────────────────
def peer_cnn() -> nn.Module:
    """Conv 3→32→64→64 (3x3), each GroupNorm(4) → ReLU → max-pool 2; linear 1024→64, ReLU, 64→10."""
    blocks: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 64)):
        blocks += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def tiny_cnn() -> nn.Module:
    """About 4,000 parameters for 8x8 images: conv 1→8→16, GroupNorm(4), one max-pool, linear 256→10."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, CLASSES)),
    )


class Block(nn.Module):
    """ResNet's basic block with GroupNorm(2)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(2, after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(2, after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(2, after)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def peer_resnet18() -> nn.Module:
    """ResNet18 with the CIFAR stem and GroupNorm(2)."""
    stages: list[nn.Module] = []
    before = 64
    for width in (64, 128, 256, 512):
        stages += [Block(before, width, 1 if width == 64 else 2), Block(width, width, 1)]
        before = width
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.GroupNorm(2, 64), nn.ReLU()),
        *stages,
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES)),
    )


FEATURES = 64


def perceptron(hidden: int) -> nn.Module:
    """64 → hidden → hidden → 10, for any size."""
    widths = (FEATURES, hidden, hidden, CLASSES)
    pairs = list(pairwise(widths))
    layers = [layer for a, b in pairs for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def hidden_width(parameters: int) -> int:
    """The width at which `perceptron` has about this number of parameters: h² + (64 + 10 + 2) h + 10 = parameters."""
    linear = FEATURES + CLASSES + 2
    return max(1, round((-linear + (linear**2 + 4 * (parameters - CLASSES)) ** 0.5) / 2))


IMAGE = (3, 32, 32)
WORKLOADS = {
    w.name: w
    for w in (
        Workload("cnn", IMAGE, 100, 10, 50, peer_cnn, 122_890),
        Workload("resnet18", IMAGE, 100, 10, 50, peer_resnet18, 11_173_962),
        Workload("resnet18-quick", IMAGE, 100, 2, 32, peer_resnet18, 11_173_962),
        Workload("tiny", (1, 8, 8), 32, 32, 50, tiny_cnn, 3_866),
    )
}


def workload(name: str) -> Workload:
    """One of WORKLOADS, or "scale-CLIENTS-COHORT-PARAMETERS": a perceptron, 16 examples (one step) per client."""
    if name in WORKLOADS:
        return WORKLOADS[name]
    kind, *numbers = name.split("-")
    if kind != "scale" or len(numbers) != 3:
        allowed = ", ".join(WORKLOADS)
        raise ValueError(f"workload {name!r}; allowed: {allowed}, scale-CLIENTS-COHORT-PARAMETERS")
    clients, cohort, parameters = map(int, numbers)
    hidden = hidden_width(parameters)
    exact = hidden**2 + (FEATURES + CLASSES + 2) * hidden + CLASSES
    return Workload(name, (FEATURES,), clients, cohort, BATCH_SIZE, lambda: perceptron(hidden), exact)
