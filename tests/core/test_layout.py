"""Flat vectors: round trips over generated networks, trained and prunable parts, masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssfl.core.layout import Layout, layer_densities
from ssfl.core.payloads import DenseValues, Payload, Support, nbytes
from ssfl.models import build_model
from tests.support.layouts import prunable_coordinates

layers = st.sampled_from(["linear", "conv", "transposed", "batch", "group", "embedding", "frozen"])


def module_of(kinds: list[str]) -> nn.Module:
    makers: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(3, 2),
        "conv": lambda: nn.Conv2d(2, 3, 2, bias=False),
        "transposed": lambda: nn.ConvTranspose2d(2, 1, 2),
        "batch": lambda: nn.BatchNorm2d(2),
        "group": lambda: nn.GroupNorm(1, 3),
        "embedding": lambda: nn.Embedding(4, 2),
        "frozen": lambda: nn.BatchNorm1d(2, affine=False),
    }
    return nn.Sequential(*(makers[k]() for k in kinds))


@given(st.lists(layers, min_size=1, max_size=5))
def test_round_trip_and_counts(kinds: list[str]) -> None:
    module = module_of(kinds)
    layout, theta = Layout.of(module), Layout.of(module).flatten(module)
    tensors = dict(module.named_parameters()) | {
        n: b for n, b in module.named_buffers() if b.is_floating_point()
    }
    assert tuple(tensors) == layout.names
    assert theta.shape == (sum(t.numel() for t in tensors.values()),) == (layout.size,)
    assert layout.trained_size == sum(p.numel() for p in module.parameters())
    weights = [m.weight for m in module if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]  # type: ignore[attr-defined]
    assert layout.prunable_size == sum(w.numel() for w in weights)
    views = layout.views(theta)
    assert all(views[n].equal(t) for n, t in tensors.items())
    tail = layout.statistics(theta[layout.trained_size :])
    assert all(tail[n].equal(tensors[n]) for n in tail)
    assert layout.take_prunable(theta).equal(
        torch.cat([w.detach().flatten() for w in weights] or [theta[:0]])
    )
    assert prunable_coordinates(layout).sum() == layout.prunable_size


@given(st.lists(layers, min_size=1, max_size=5), st.integers(0, 9))
def test_masks_expand_and_come_back(kinds: list[str], seed: int) -> None:
    layout = Layout.of(module_of(kinds))
    bits = torch.rand(layout.prunable_size, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask = layout.expand_mask(bits)
    assert layout.take_prunable(mask).equal(bits)
    assert bool(mask[~prunable_coordinates(layout)].all())
    assert layout.kept_per_layer(mask) == layout.kept_per_layer(bits)
    assert sum(layout.kept_per_layer(mask).values()) == int(bits.sum())
    assert layout.kept_per_layer(mask[: layout.trained_size]) == layout.kept_per_layer(bits)


def test_views_share_memory_and_batch_over_clients() -> None:
    layout = Layout.of(nn.Linear(3, 2))
    theta = torch.arange(16.0).view(2, 8)
    views = layout.views(theta)
    assert views["weight"].shape == (2, 2, 3)
    views["bias"][1, 0] = -1.0
    assert float(theta[1, 6]) == -1.0


def test_densities_by_hand() -> None:
    layout = Layout.of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    bits = torch.tensor([True, True, True, False, False, False])
    assert layer_densities(layout, bits) == {"0.weight": 0.75, "1.weight": 0.0}
    assert layer_densities(layout, layout.expand_mask(bits)) == {"0.weight": 0.75, "1.weight": 0.0}


def test_a_mask_or_module_of_another_model_is_refused() -> None:
    layout = Layout.of(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="6 prunable"):
        layout.expand_mask(torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="not those of this layout"):
        layout.flatten(nn.Sequential(nn.Linear(3, 2)))


def test_digest_tells_models_apart() -> None:
    names = [
        Layout.of(m).digest for m in (nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 3), nn.Conv1d(3, 2, 1))
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert len(names[0]) == 8


def test_resnet18_at_density_one_half_is_22_37_megabytes() -> None:
    """Published arithmetic: 11,164,352 prunable of 11,173,962; 5,591,786 values are sent; 44.70 MB dense."""
    module = build_model("resnet18", num_classes=10, input_shape=(3, 32, 32), norm="group")
    layout = Layout.of(module)
    assert (layout.prunable_size, layout.size) == (11_164_352, 11_173_962)
    theta = layout.flatten(module)
    bits = torch.zeros(layout.prunable_size, dtype=torch.bool)
    bits[: layout.prunable_size // 2] = True
    packed = Support.of(layout.expand_mask(bits)).pack(theta)
    assert packed.values.numel() == 5_591_786
    assert round(nbytes(Payload({"w": packed})) / 1e6, 2) == 22.37
    assert round(nbytes(Payload({"w": DenseValues(theta)})) / 1e6, 2) == 44.70
