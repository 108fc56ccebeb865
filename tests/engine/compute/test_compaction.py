"""Compaction: results equal those of the complete layer, on real networks; it is used only if that is exact."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import ClientTask, Work
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.random_masks import ClientwiseRandomMask, SharedRandomMask
from ssfl.core.layout import Layout
from ssfl.core.net import FlatNet
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.engine.compute.compaction import Live, compacted, live_channels, training_plan, winograd_weights
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.models import build_model
from ssfl.native import available
from tests.support.rigs import float_data, make_rig, make_runner, tiny_net

FIT = FitSpec(
    epochs=2,
    batch_size=8,
    schedule=ExponentialDecay(0.05, 0.99),
    momentum=0.9,
    weight_decay=5e-4,
    clip_norm=1.0,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def magnitude_mask(module: nn.Module, density: float) -> Tensor:
    """A mask [T] of the largest weights of the network and all that is not prunable; unequal over channels."""
    layout = Layout.of(module)
    with torch.no_grad():
        for _, weight in module.named_parameters():
            if weight.dim() > 1:  # filters of very different norm, as after training
                weight.mul_(torch.rand(len(weight), *[1] * (weight.dim() - 1)).mul(4).exp())
    theta = layout.flatten(module)
    scores = layout.take_prunable(theta).abs()
    keep = scores.topk(int(density * len(scores))).indices
    bits = torch.zeros(len(scores), dtype=torch.bool)
    bits[keep] = True
    return layout.expand_mask(bits)


def outputs_and_gradients(
    module: nn.Module, x: Tensor, y: Tensor
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    module.zero_grad()
    x = x.clone().requires_grad_()
    logits = module(x)
    torch.autograd.backward(cross_entropy(logits, y))
    into = (
        torch.zeros_like(x) if x.grad is None else x.grad
    )  # None: the output of a layer without kept weights does not depend on its input
    zero = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    gradients = {n: zero[n] if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}
    return logits.detach(), gradients, into


# ── one network ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("density", [0.1, 0.03, 0.01])
@pytest.mark.parametrize(("name", "norm"), [("resnet8", "group"), ("resnet20", "batch"), ("cnn", "group")])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equal_outputs_and_masked_gradients(
    name: str, norm: str, density: float, channels_last: bool
) -> None:
    torch.manual_seed(5)
    module = build_model(name, num_classes=10, input_shape=(3, 16, 16), norm=norm).double()
    mask = magnitude_mask(module, density)
    layout = Layout.of(module)
    kept = layout.views(mask[: layout.trained_size])
    with torch.no_grad():
        for n, p in module.named_parameters():
            p.mul_(kept[n])
    plan = live_channels(layout, mask)
    assert plan
    x, y = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.tensor([1, 3, 0, 9])
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    whole, wanted, back = outputs_and_gradients(module, x, y)
    with compacted(module, plan):
        small, gradients, into = outputs_and_gradients(module, x, y)
    torch.testing.assert_close(small, whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(into, back, rtol=1e-9, atol=1e-11)
    for n, wanted_gradient in wanted.items():
        torch.testing.assert_close(gradients[n] * kept[n], wanted_gradient * kept[n], rtol=1e-9, atol=1e-11)
    module.eval()
    with compacted(module, plan):
        small = module(x)
    torch.testing.assert_close(small, module(x), rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(not available(), reason="the kernels were not built")
@pytest.mark.parametrize("density", [0.3, 0.02])
def test_winograd_computes_compacted_layers(density: float) -> None:
    """The number of channels is a multiple of 16, and results equal those of the complete network to rounding."""
    torch.manual_seed(5)
    module = build_model("resnet18", num_classes=10, input_shape=(3, 16, 16), norm="group2")
    mask = magnitude_mask(module, density)
    layout = Layout.of(module)
    kept = layout.views(mask[: layout.trained_size])
    with torch.no_grad():
        for n, p in module.named_parameters():
            p.mul_(kept[n])
    exact, plan = (
        live_channels(layout, mask),
        live_channels(layout, mask, uses_winograd=winograd_weights(module)),
    )
    small = {n for n in plan if kept[n].shape[2:] == (3, 3) and kept[n].shape[1] % 16 == 0}
    assert small & {f"layer{stage}.0.conv1.weight" for stage in (2, 3, 4)}  # stride 2
    for n in plan.keys() - small:
        assert torch.equal(plan[n].filters, exact[n].filters)
        assert torch.equal(plan[n].columns, exact[n].columns)
    for n in small:
        for few, more in zip((exact[n].filters, exact[n].columns), (plan[n].filters, plan[n].columns)):
            assert len(more) == -(-len(few) // 16) * 16
            assert set(few.tolist()) <= set(more.tolist())
            assert more.tolist() == sorted(set(more.tolist()))
    x, y = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last), torch.tensor([1, 3, 0, 9])
    whole, wanted, back = outputs_and_gradients(module, x, y)
    with compacted(module, plan, winograd=True):
        found, gradients, into = outputs_and_gradients(module, x, y)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(into, back, rtol=1e-3, atol=1e-5)
    for n, gradient in wanted.items():
        torch.testing.assert_close(gradients[n] * kept[n], gradient * kept[n], rtol=1e-3, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 5),
    st.integers(1, 5),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
    st.floats(0, 1),
)
def test_any_convolution(
    seed: int,
    columns: int,
    filters: int,
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    dilation: int,
    bias: bool,
    density: float,
) -> None:
    """Also with a mask that keeps no weight, or all weights."""
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(columns, filters, kernel, stride, padding, dilation, bias=bias).double()
    kept = torch.rand(conv.weight.shape, generator=generator) < density
    with torch.no_grad():
        conv.weight.mul_(kept)
    x = torch.randn(2, columns, 7, 6, generator=generator, dtype=torch.float64)
    live = Live(
        kept.flatten(1).any(1).nonzero()[:, 0], kept.transpose(0, 1).flatten(1).any(1).nonzero()[:, 0]
    )
    wanted = conv(x)
    with compacted(conv, {"weight": live}):
        torch.testing.assert_close(conv(x), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_with_nothing_left(padding: str) -> None:
    conv = nn.Conv2d(2, 3, (2, 3), padding=padding, dilation=2)
    nothing = Live(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    with torch.no_grad():
        conv.weight.zero_()
    x = torch.randn(2, 2, 9, 8)
    whole = conv(x)
    with compacted(conv, {"weight": nothing}):
        assert torch.equal(conv(x), whole)


@pytest.mark.parametrize("layer", [nn.Linear(4, 2, bias=False), nn.Conv2d(4, 2, 1, bias=False)])
def test_a_network_of_which_nothing_is_left_still_has_a_gradient(layer: nn.Module) -> None:
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
    x = torch.randn(3, 4, 1, 1) if isinstance(layer, nn.Conv2d) else torch.randn(3, 4)
    layout = Layout.of(layer)
    with compacted(layer, live_channels(layout, layout.flatten(layer))):
        torch.autograd.backward(layer(x).square().sum())
    (weight,) = layer.parameters()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_a_linear_layer_by_hand() -> None:
    layer = nn.Linear(3, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0, 0], [0, 2, 0], [0, 0, 0], [5, 0, 0]]))
        layer.bias.copy_(torch.tensor([1.0, 2, 3, 4]))
    plan = live_channels(Layout.of(layer), Layout.of(layer).flatten(layer))
    assert [plan["weight"].filters.tolist(), plan["weight"].columns.tolist()] == [[1, 3], [0, 1]]
    with compacted(layer, plan):
        assert layer(torch.tensor([[10.0, 100, 1000]])).tolist() == [[1, 202, 3, 54]]


def test_what_is_nearly_whole_and_what_is_not_ordinary_stays() -> None:
    grouped = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    )
    with torch.no_grad():
        for weight in grouped.parameters():
            weight[0] = 0
    layout = Layout.of(grouped)
    plan = live_channels(layout, layout.flatten(grouped))
    assert set(plan) == {"0.weight", "1.weight"}
    with compacted(grouped, plan):
        assert not any("forward" in vars(layer) for layer in grouped)
    assert live_channels(layout, layout.flatten(grouped), least_saving=0.3) == {}


def test_the_module_is_left_as_it_was_also_after_an_error() -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    before = copy.deepcopy(vars(module[0]))
    nothing = Live(torch.tensor([1]), torch.tensor([2]))
    with pytest.raises((RuntimeError, IndexError)), compacted(module, {"0.weight": nothing}):
        module(torch.zeros(1, 2))  # there is no column 2
    assert vars(module[0]).keys() == before.keys()


# ── through the engine ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("method", [SharedRandomMask, ClientwiseRandomMask])
def test_a_run_with_compaction_ends_with_the_same_weights(method: Any, norm: str) -> None:
    weights, events = [], []
    for compaction in (False, True):
        algorithm, data = method(FIT, 3, 0.06), float_data()
        runner = make_runner(data, tiny_net(norm), algorithm.tasks)
        runner.compaction = compaction
        rig = make_rig(algorithm, data, tiny_net(norm), executor=SequentialExecutor(runner))
        weights.append(rig.run(3))
        events.append([e["train_loss_last_epoch"] for e in rig.events if e["event"] == "round"])
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-10, atol=1e-10)
    assert events[1] == pytest.approx(events[0], rel=1e-9)


def test_dense_training_is_untouched() -> None:
    ends = []
    for compaction in (False, True):
        algorithm, data = FedAvg(FIT, 3), float_data()
        runner = make_runner(data, tiny_net(), algorithm.tasks)
        runner.compaction = compaction
        ends.append(make_rig(algorithm, data, tiny_net(), executor=SequentialExecutor(runner)).run(2))
    assert torch.equal(ends[0], ends[1])


def nothing(*_: Any) -> Any:
    raise NotImplementedError


MASKED = ClientTask(nothing, nothing, fit=FIT, mask_stage="before_clip")
"""SGD inside work["mask"], as in most sparse methods."""


def divided_by_its_norm(gradient: Tensor, theta: Tensor, work: Work) -> Tensor:
    return gradient / gradient.norm(dim=-1, keepdim=True)


def shifted(theta: Tensor, work: Work) -> Tensor:
    return theta + 1


def with_squares(net: FlatNet, theta: Tensor, work: Work, batch: Any, statistics: Any) -> Tensor:
    return net.loss(theta, batch, statistics) + theta.square().sum()


OTHERS = {
    "no mask": replace(MASKED, mask_stage=None),
    "clipping sees the gradient where the mask is zero": replace(MASKED, mask_stage="after_step"),
    "only zeros of theta itself": replace(MASKED, mask_stage="unapplied"),
    "a hook that sees the gradient where the mask is zero": replace(
        MASKED, transform_gradient=divided_by_its_norm
    ),
    "the network sees something else than theta": replace(MASKED, effective_weights=shifted),
    "a gradient not of the module's own backward alone": replace(MASKED, objective=with_squares),
}


def test_training_is_compacted_only_where_that_changes_nothing() -> None:
    torch.manual_seed(0)
    module = tiny_net()
    layout = Layout.of(module)
    mask = magnitude_mask(module, 0.05)
    theta = layout.flatten(module) * mask
    work = {"theta": theta, "mask": mask[: layout.trained_size]}
    assert set(training_plan(MASKED, theta, work, layout)) <= {"0.weight", "3.weight", "8.weight"}
    assert training_plan(MASKED, theta, work, layout)
    for name, task in OTHERS.items():
        assert training_plan(task, theta, work, layout) == {}, name
    outside = theta.clone()
    outside[int((~work["mask"]).nonzero()[0])] = (
        1e-3  # a weight outside the mask that is not zero must be computed
    )
    assert training_plan(MASKED, outside, work, layout) == {}
