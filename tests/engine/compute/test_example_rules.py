"""How networks treat the examples of a minibatch, for networks with known properties."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssfl.engine.compute.example_rules import (
    ExampleRules,
    couples_examples,
    draws_in_training,
    example_rules,
    is_ordinary,
    joined_last,
)
from ssfl.models import build_model
from tests.support.networks import NETWORKS
from tests.support.rigs import tiny_net

SHAPE = (1, 6, 6)


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("Frozen", ExampleRules()),
        ("SharedNorm", ExampleRules(two_in_training=True)),
        ("Counter", ExampleRules(two_in_training=True)),
        ("UntrackedNorm", ExampleRules(two_in_training=True, two_in_evaluation=True)),
    ],
)
def test_which_networks_need_two_examples(name: str, rules: ExampleRules) -> None:
    assert example_rules(NETWORKS[name](), SHAPE) == rules


def test_batch_norm_over_pixels_takes_one_image() -> None:
    assert example_rules(tiny_net("batch"), SHAPE) == ExampleRules()
    small = build_model("resnet18", 10, (1, 8, 8), "batch")  # its last maps are 1x1
    assert example_rules(small, (1, 8, 8)) == ExampleRules(two_in_training=True)


@pytest.mark.parametrize(
    "name", [name for name in NETWORKS if name not in ("FunctionalDropout", "Branch", "Skipped")]
)
def test_which_networks_couple_examples(name: str) -> None:
    always = name in ("Centred", "UntrackedNorm")
    in_training = always or name in ("SharedNorm", "Counter", "Assigned")
    assert couples_examples(NETWORKS[name](), SHAPE, training=True) == in_training
    assert couples_examples(NETWORKS[name](), SHAPE, training=False) == always


def test_ordinary_networks_are_not_tried() -> None:
    for name in ("resnet8", "cnn", "digits_cnn", "mlp"):
        assert is_ordinary(build_model(name, 10, (1, 8, 8)))
    assert is_ordinary(tiny_net("batch"))
    assert not any(is_ordinary(make()) for make in NETWORKS.values())
    frozen = tiny_net()
    next(frozen.parameters()).requires_grad_(False)
    assert not is_ordinary(frozen)
    hooked = tiny_net()
    hooked.register_forward_hook(lambda *_: None)
    assert not is_ordinary(hooked)


def test_draws_of_every_kind_are_found_and_undone() -> None:
    layers, functional, plain = (
        nn.Sequential(nn.Flatten(), nn.Dropout(0.5)),
        NETWORKS["FunctionalDropout"](),
        tiny_net(),
    )
    before = torch.default_generator.get_state()
    assert draws_in_training(layers, SHAPE)
    assert draws_in_training(functional, SHAPE)
    assert not draws_in_training(plain, SHAPE)
    assert torch.default_generator.get_state().equal(before)


@pytest.mark.parametrize(
    ("sizes", "drop", "expected"),
    [
        ([4, 4], False, [4, 4]),
        ([4, 1], False, [5]),
        ([4, 1], True, [4]),
        ([4, 4, 1], False, [4, 5]),
        ([1], False, []),
        ([], False, []),
    ],
)
def test_a_lone_last_example(sizes: list[int], drop: bool, expected: list[int]) -> None:
    rows = torch.arange(sum(sizes)).split(sizes) if sizes else []  # type: ignore[no-untyped-call]
    found = list(joined_last(iter([(r, r) for r in rows]), drop))
    assert [len(y) for _, y in found] == expected
    if expected:
        assert torch.cat([x for x, _ in found]).equal(torch.arange(sum(expected)))
