"""Small networks with special properties that users' networks may have, from 1x6x6 inputs to 3 classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

CLASSES = 3
FEATURES = 36
WIDTH = 8


class Base(nn.Module):
    """Two linear layers; subclasses differ in `extra` and `middle`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.extra()

    def extra(self) -> None:
        """Additional layers and tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(self.body(x.flatten(1)))))

    def middle(self, h: Tensor) -> Tensor:
        return h


class Frozen(Base):
    def extra(self) -> None:
        self.body.requires_grad_(False)


class TiedParameter(Base):
    def extra(self) -> None:
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.two.weight = self.one.weight

    def middle(self, h: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(h)))


class SharedLayer(Base):
    def extra(self) -> None:
        one = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.Sequential(one, nn.Tanh(), one)

    def middle(self, h: Tensor) -> Tensor:
        return self.layers(h)


class SharedNorm(Base):
    def extra(self) -> None:
        norm = nn.BatchNorm1d(WIDTH)
        self.layers = nn.Sequential(norm, nn.Linear(WIDTH, WIDTH), norm)

    def middle(self, h: Tensor) -> Tensor:
        return self.layers(h)


class Scalars(Base):
    def extra(self) -> None:
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("shift", torch.tensor(0.25))
        self.shift: Tensor

    def middle(self, h: Tensor) -> Tensor:
        return h * self.scale + self.shift


class Constants(Base):
    """Buffers of integers, booleans, infinities and complex numbers, and one that is not saved."""

    def extra(self) -> None:
        self.order = nn.Parameter(torch.arange(WIDTH).flip(0), requires_grad=False)
        self.register_buffer("keep", torch.arange(WIDTH) > 0)
        self.register_buffer("bias", torch.tensor([0.0] * (WIDTH - 1) + [float("-inf")]))
        self.register_buffer("turn", torch.polar(torch.ones(WIDTH), torch.arange(WIDTH).float()))
        self.register_buffer("gain", torch.linspace(0.5, 1.5, WIDTH), persistent=False)
        self.gain: Tensor
        self.keep: Tensor
        self.bias: Tensor
        self.turn: Tensor

    def middle(self, h: Tensor) -> Tensor:
        h = torch.view_as_real(h.to(self.turn.dtype) * self.turn)[..., 0].to(h.dtype)
        return (h[:, self.order] * self.gain + self.bias).masked_fill(~self.keep, 0.0)


class Counter(Base):
    def extra(self) -> None:
        self.norm = nn.BatchNorm1d(WIDTH, momentum=None)

    def middle(self, h: Tensor) -> Tensor:
        return self.norm(h)


class Assigned(Base):
    """Its running mean is a new tensor after every step."""

    def extra(self) -> None:
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.mean: Tensor

    def middle(self, h: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return h - self.mean


class UntrackedNorm(Base):
    def extra(self) -> None:
        self.norm = nn.BatchNorm1d(WIDTH, track_running_stats=False)

    def middle(self, h: Tensor) -> Tensor:
        return self.norm(h)


class Centred(Base):
    """Every example's output depends on the others."""

    def middle(self, h: Tensor) -> Tensor:
        return h - h.mean(0, keepdim=True)


class WeightNorm(Base):
    def extra(self) -> None:
        parametrizations.weight_norm(self.body)


class SpectralNorm(Base):
    def extra(self) -> None:
        parametrizations.spectral_norm(self.body)


class FunctionalDropout(Base):
    def middle(self, h: Tensor) -> Tensor:
        return F.dropout(h, 0.3, self.training)


class TrainingOnly(Base):
    def middle(self, h: Tensor) -> Tensor:
        return h.clamp(-2, 2) if self.training else h


class Branch(Base):
    def middle(self, h: Tensor) -> Tensor:
        return h if float(h.detach().mean()) > 0 else 0.5 * h


class Unused(Base):
    """Layers that no forward pass uses, and one that does not get a gradient."""

    def extra(self) -> None:
        self.spare = nn.Linear(WIDTH, WIDTH)
        self.fixed = nn.Linear(WIDTH, WIDTH)

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            shift = self.fixed(torch.ones_like(h))
        return h + shift


class Skipped(Base):
    """Each step uses one of two layers."""

    def extra(self) -> None:
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def middle(self, h: Tensor) -> Tensor:
        return self.one(h) if float(h.detach().mean()) > 0 else self.two(h)


class InPlace(Base):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        return super().forward(x)


class View(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4 * 9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(F.relu(self.conv(x)), 2).view(-1, 36))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(6, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.squeeze(1))[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, WIDTH)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        t = self.embed(x.squeeze(1))
        return self.head((t + self.attend(t, t, t, need_weights=False)[0]).mean(1))


class Careful(Base):
    """Checks its input before it computes."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (1, 6, 6) or not bool(x.isfinite().all()):
            raise ValueError("unexpected input")
        return super().forward(x)


class OwnLayer(nn.Module):
    """Not a PyTorch layer: its prunable weight is declared."""

    prunable_parameters = ("weight",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, FEATURES) * 0.1)
        self.bias = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        Frozen,
        TiedParameter,
        SharedLayer,
        SharedNorm,
        Scalars,
        Constants,
        Counter,
        Assigned,
        UntrackedNorm,
        Centred,
        WeightNorm,
        SpectralNorm,
        FunctionalDropout,
        TrainingOnly,
        Branch,
        Unused,
        Skipped,
        InPlace,
        View,
        Recurrent,
        Attention,
        Careful,
        OwnLayer,
    )
}
