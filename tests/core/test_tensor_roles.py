"""The role of each tensor of some networks, listed by hand."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from ssfl.core.layout import Layout
from ssfl.core.tensor_roles import (
    LayoutError,
    cast_floats,
    fixed_state,
    in_own_memory,
    prunable_names,
    state_under,
    tensor_roles,
)
from tests.support.networks import NETWORKS, OwnLayer, SharedNorm, TiedParameter

EXPECTED = {
    "Frozen": {"body.weight": "constant", "body.bias": "constant"},
    "TiedParameter": {"one.weight": "trained", "two.weight": "shared"},
    "SharedLayer": {"layers.0.weight": "trained", "layers.2.weight": "shared", "layers.2.bias": "shared"},
    "SharedNorm": {
        "layers.0.running_mean": "carried",
        "layers.2.running_mean": "shared",
        "layers.0.num_batches_tracked": "constant",
    },
    "Scalars": {"scale": "trained", "shift": "carried"},
    "Constants": {
        "order": "constant",
        "keep": "constant",
        "bias": "constant",
        "turn": "constant",
        "gain": "constant",
    },
    "Counter": {"norm.running_var": "carried", "norm.num_batches_tracked": "carried"},
    "WeightNorm": {"body.parametrizations.weight.original0": "trained"},
    "SpectralNorm": {"body.parametrizations.weight.0._u": "carried"},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_roles_of_the_kinds(name: str) -> None:
    found = {t.name: t.role for t in tensor_roles(NETWORKS[name]())}
    assert {key: found[key] for key in EXPECTED[name]} == EXPECTED[name]
    assert found["head.weight"] == "trained"


def test_a_shared_tensor_names_its_first_name() -> None:
    found = {t.name: t.same_as for t in tensor_roles(TiedParameter())}
    assert found["two.weight"] == "one.weight"
    assert found["one.weight"] == ""


def test_theta_holds_what_is_trained_and_carried_alone() -> None:
    layout = Layout.of(NETWORKS["Constants"]())
    assert layout.names == ("body.weight", "body.bias", "head.weight", "head.bias")
    counted = Layout.of(NETWORKS["Counter"]())
    assert counted.whole == ("norm.num_batches_tracked",)
    assert counted.size - counted.trained_size == 8 + 8 + 1
    named = counted.named(torch.full((counted.size,), 2.6))
    assert named["norm.num_batches_tracked"].equal(torch.tensor(3))


def test_frozen_weights_are_not_prunable() -> None:
    layout = Layout.of(NETWORKS["Frozen"]())
    assert [name for name, _, _ in layout.prunable_segments] == ["head.weight"]


def test_a_layer_declares_what_may_be_pruned() -> None:
    assert prunable_names(OwnLayer()) == {"weight"}
    assert Layout.of(OwnLayer()).prunable_size == 3 * 36
    wrong = OwnLayer()
    wrong.prunable_parameters = ("weights",)  # type: ignore[assignment]
    with pytest.raises(LayoutError, match="names 'weights'; its trained parameters are weight, bias"):
        prunable_names(wrong)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda layer: weight_norm(layer), "0.weight is computed by a hook"),
        (lambda layer: spectral_norm(layer), "0.weight is computed by a hook"),
        (partial(prune.l1_unstructured, name="weight", amount=0.5), "prune.remove"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_hooks_compute_are_refused(wrap: object, message: str) -> None:
    layer = nn.Linear(4, 3)
    assert callable(wrap)
    wrap(layer)
    network = nn.Sequential(layer)
    network(torch.zeros(1, 4))
    with pytest.raises(LayoutError, match=message):
        Layout.of(network)


def test_complex_parameters_are_refused_by_name_and_type() -> None:
    network = nn.Module()
    network.register_parameter("filter", nn.Parameter(torch.ones(2, dtype=torch.cfloat)))
    with pytest.raises(LayoutError, match="parameter filter is complex64"):
        Layout.of(network)


def test_gradient_hooks_are_refused_because_copies_lose_them() -> None:
    network = nn.Linear(4, 3)
    handle = network.weight.register_hook(lambda gradient: 0.5 * gradient)  # type: ignore[no-untyped-call]
    assert not copy.deepcopy(network).weight._backward_hooks  # PyTorch's behaviour, the reason
    with pytest.raises(LayoutError, match="parameter weight has a gradient hook"):
        Layout.of(network)
    handle.remove()
    assert Layout.of(network).size == 15


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_as_a_network_and_as_a_layer() -> None:
    scripted = torch.jit.script(nn.Linear(4, 3))
    with pytest.raises(LayoutError, match="the network is TorchScript"):
        Layout.of(scripted)
    with pytest.raises(LayoutError, match="layer 1 is TorchScript"):
        Layout.of(nn.Sequential(nn.Flatten(), scripted))


def test_the_state_dict_under_other_weights_has_every_name() -> None:
    network = SharedNorm()
    constants, layout = fixed_state(network), Layout.of(network)
    assert list(constants) == ["layers.0.num_batches_tracked"]
    state = state_under(network, {**constants, **layout.named(torch.arange(layout.size).float())})
    assert state.keys() == network.state_dict().keys()
    assert state["layers.2.running_mean"].equal(state["layers.0.running_mean"])
    network.load_state_dict(state)


def test_casting_keeps_whole_numbers_and_what_is_shared() -> None:
    network = cast_floats(NETWORKS["Constants"](), torch.float64)
    state = dict(network.named_buffers()) | dict(network.named_parameters())
    types = {name: state[name].dtype for name in ("order", "keep", "bias", "turn", "gain")}
    assert types == {
        "order": torch.int64,
        "keep": torch.bool,
        "bias": torch.float64,
        "turn": torch.complex64,
        "gain": torch.float64,
    }
    two = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2)])
    two[1]._buffers["running_mean"] = two[0]._buffers["running_mean"]
    for changed in (cast_floats(two, torch.float64), in_own_memory(two)):
        assert changed[0]._buffers["running_mean"] is changed[1]._buffers["running_mean"]  # type: ignore[index]


def test_memory_of_its_own() -> None:
    network = TiedParameter()
    before = {name: p.data_ptr() for name, p in network.named_parameters()}
    in_own_memory(network)
    assert network.one.weight is network.two.weight
    assert all(p.data_ptr() != before[name] for name, p in network.named_parameters())


def test_parametrised_weights_are_served() -> None:
    network = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    assert Layout.of(network).prunable_size == 0
