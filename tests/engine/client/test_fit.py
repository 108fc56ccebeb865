"""A client's local training compared with torch's optimiser on the same batches, and its errors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import ClientContext, Clock, Probe, TrainLoss
from ssfl.algorithms.dense import dense_training
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.masked import SupportMemo, masked_training
from ssfl.algorithms.ssfl import score_saliency
from ssfl.core.layout import Layout
from ssfl.core.optim import CosineRestarts, ExponentialDecay, FitSpec
from ssfl.core.payloads import DenseValues, Payload, Support, dense_values
from ssfl.core.saliency import SALIENCIES, SNIP
from ssfl.engine.client.batch_order import SeededOrder
from ssfl.engine.client.errors import DivergedError
from ssfl.engine.client.job import ClientJob
from ssfl.engine.client.memory import ClientMemory
from tests.support.rigs import FloatData, float_data, make_rig, make_runner, tiny_net

SPECS = {
    "plain": FitSpec(2, 8, ExponentialDecay(0.1, 0.998)),
    "decay": FitSpec(2, 8, ExponentialDecay(0.1, 0.998), weight_decay=5e-2),
    "clip": FitSpec(2, 8, ExponentialDecay(0.1, 0.998), weight_decay=5e-4, clip_norm=0.3),
    "momentum": FitSpec(3, 8, ExponentialDecay(0.1, 0.5), momentum=0.9, weight_decay=5e-2, clip_norm=0.5),
    "cosine": FitSpec(4, 8, CosineRestarts(0.1, 3), momentum=0.9, clip_norm=10.0),
}


@dataclass(frozen=True)
class Descending:
    """A custom batch order."""

    def epoch(self, client: int, round: int, epoch: int, examples: int) -> Tensor:
        return torch.arange(examples - 1, -1, -1).roll(epoch + round + client)

    def probe(self, client: int, round: int, index: int, examples: int, batch_size: int) -> Tensor:
        return torch.arange(examples)[index : index + batch_size]


def context(layout: Layout, client: int, examples: int, round: int = 2) -> ClientContext:
    return ClientContext(client, Clock(round, 5), 7, layout, examples)


def torch_training(
    module: nn.Module, spec: FitSpec, data: FloatData, client: int, round: int, mask: Tensor | None = None
) -> TrainLoss:
    """The same local epochs with torch.optim.SGD and clip_grad_norm_; returns the mean losses over examples."""
    parameters = list(module.parameters())
    sgd = torch.optim.SGD(parameters, lr=1.0, momentum=spec.momentum, weight_decay=spec.weight_decay)
    x, y = data.train[client]
    module.train()
    losses, seen = [0.0], list[float]()
    for epoch in range(spec.epochs):
        losses = []
        sgd.param_groups[0]["lr"] = spec.schedule(round, epoch)
        order = Descending().epoch(client, round, epoch, len(y)).tolist()
        for start in range(0, len(order), spec.batch_size):
            rows = order[start : start + spec.batch_size]
            sgd.zero_grad()
            loss = cross_entropy(module(x[rows].double()), y[rows])
            torch.autograd.backward(loss)
            if mask is not None:
                apply_mask(parameters, mask)
            if spec.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, spec.clip_norm)
            sgd.step()
            losses += [float(loss.detach())] * len(rows)
        seen += losses
    return TrainLoss(sum(losses) / len(losses), sum(seen) / len(seen))


def apply_mask(parameters: list[nn.Parameter], mask: Tensor) -> None:
    at = 0
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad *= mask[at : at + parameter.numel()].view_as(parameter)
        at += parameter.numel()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("client", [0, 2])
def test_fit_equals_torchs_own_sgd(name: str, norm: str, client: int) -> None:
    data, spec = float_data(), SPECS[name]
    theirs = tiny_net(norm).double()
    task = dense_training(spec)
    runner = make_runner(data, tiny_net(norm), {"train": task}, order=Descending())
    work = {"theta": runner.layout.flatten(theirs)}
    loss = runner.fit(task, spec, work, context(runner.layout, client, data.examples(client)))
    their_loss = torch_training(theirs, spec, data, client, round=2)
    assert loss is not None
    torch.testing.assert_close(work["theta"], runner.layout.flatten(theirs), rtol=1e-9, atol=1e-12)
    assert loss.last_epoch == pytest.approx(their_loss.last_epoch, rel=1e-10)
    assert loss.all_epochs == pytest.approx(their_loss.all_epochs, rel=1e-10)
    assert loss.last_epoch != pytest.approx(loss.all_epochs, rel=1e-6)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_masked_fit_equals_torchs_sgd_with_masked_gradients(norm: str) -> None:
    """Gradients are masked before they are clipped, as in the authors' current code."""
    data, spec = float_data(), SPECS["momentum"]
    theirs = tiny_net(norm).double()
    task = masked_training(spec, SupportMemo())
    runner = make_runner(data, tiny_net(norm), {"train": task}, order=Descending())
    layout = runner.layout
    bits = torch.rand(layout.prunable_size, generator=torch.Generator().manual_seed(1)) < 0.4
    mask = layout.expand_mask(bits)
    start = layout.flatten(theirs) * mask
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(layout.views(start)[name])
    inbox = (Payload({"w": Support.of(mask).pack(start)}),)
    outcome = runner.run(ClientJob("train", 3, inbox, Clock(2, 5), ClientMemory({"mask": bits})))
    torch_training(theirs, spec, data, 3, round=2, mask=mask)
    ours = Support.of(mask).unpack(outcome.reply.payload.parts["w"])
    torch.testing.assert_close(ours, layout.flatten(theirs), rtol=1e-9, atol=1e-12)


def test_what_arrives_is_left_as_it_was() -> None:
    """In a simulation payloads are passed by reference: a client must not write to the server's model."""
    data, task = float_data(), dense_training(SPECS["momentum"])
    runner = make_runner(data, tiny_net("batch"), {"train": task})
    theta = runner.layout.flatten(runner.module)
    before = theta.clone()
    job = ClientJob("train", 0, (Payload({"w": DenseValues(theta)}),), Clock(1, 5))
    first = runner.run(job)
    assert theta.equal(before)
    kept = dense_values(first.reply.payload.parts["w"]).clone()
    runner.run(replace(job, client=3))
    assert dense_values(first.reply.payload.parts["w"]).equal(kept)


def test_a_probe_is_the_mean_over_its_minibatches() -> None:
    data, probe = float_data(), Probe(SNIP, batches=3, batch_size=4)
    task = score_saliency(probe, "examples")
    runner = make_runner(data, tiny_net(), {"score": task}, order=Descending())
    theta = runner.layout.flatten(runner.module)
    job = ClientJob("score", 0, (Payload({"w": DenseValues(theta)}),), Clock(1, 5))
    ours = dense_values(runner.run(job).reply.payload.parts["scores"])
    x, y = data.train[0]
    total = torch.zeros_like(ours)
    for index in range(3):
        module = tiny_net().double().eval()
        rows = slice(index, index + 4)
        loss = cross_entropy(module(x[rows].double()), y[rows])
        grads = torch.autograd.grad(loss, [p for p in module.parameters() if p.dim() > 1])
        weights = [p for p in module.parameters() if p.dim() > 1]
        total += torch.cat([(g * w).abs().flatten() for g, w in zip(grads, weights, strict=True)]).detach()
    torch.testing.assert_close(ours, total / 3, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", SALIENCIES)
def test_a_criterion_scores_in_its_own_mode(name: str) -> None:
    """BatchNorm uses batch statistics in train mode and running ones in eval mode, so the scores differ."""
    data, saliency = float_data(), SALIENCIES[name]
    probe = Probe(saliency, 1, 8)
    task = score_saliency(probe, "examples")
    runner = make_runner(data, tiny_net("batch"), {"score": task})
    theta = runner.layout.flatten(runner.module)
    work = {"theta": theta}
    runner.probe(task, probe, work, context(runner.layout, 0, 13))
    assert all(m.training == saliency.training_mode for m in runner.module.modules())


def test_tallies_are_of_the_trained_model_on_the_clients_own_split() -> None:
    data, task = float_data(), dense_training(SPECS["plain"])
    runner = make_runner(data, tiny_net("batch"), {"train": task})
    theta = runner.layout.flatten(runner.module)
    outcome = runner.run(ClientJob("train", 3, (Payload({"w": DenseValues(theta)}),), Clock(1, 5)))
    tally = outcome.reply.report.tallies["trained"]
    x, y = data.test[3]
    module = tiny_net("batch").double().eval()
    trained = runner.layout.views(dense_values(outcome.reply.payload.parts["w"]))
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name in trained:
                tensor.copy_(trained[name])
        logits = module(x.double())
    assert int(tally.correct.sum()) == int((logits.argmax(1) == y).sum())
    assert tally.loss_sum == pytest.approx(float(cross_entropy(logits, y, reduction="sum")), rel=1e-12)
    assert tally.total.equal(torch.bincount(y, minlength=3))


def test_nan_loss_names_client_and_round() -> None:
    data = float_data()
    data.train[3][0][0] = float("nan")
    fit = FitSpec(1, 8, ExponentialDecay(0.1, 1.0))
    rig = make_rig(FedAvg(fit, per_round=5), data, tiny_net())
    with pytest.raises(DivergedError, match=r"client 3, phase train, round 1: the training loss is"):
        rig.run(3)


def test_a_model_that_breaks_after_its_last_step_is_found_too() -> None:
    """The loss is measured before the step, so an infinite last step is only visible in the aggregate."""
    fit = FitSpec(1, 100, ExponentialDecay(1e308, 1.0), weight_decay=1e9)
    rig = make_rig(FedAvg(fit, per_round=5), float_data(), tiny_net("none"))
    with pytest.raises(DivergedError, match=r"not finite after round 1"):
        rig.run(3)
    assert rig.loop.progress is not None
    assert rig.loop.progress.clock.round == 1


def test_the_default_order_is_a_permutation_that_depends_on_names_alone() -> None:
    order = SeededOrder(7)
    for epoch in range(3):
        assert sorted(order.epoch(4, 2, epoch, 50).tolist()) == list(range(50))
    first = order.epoch(4, 2, 0, 50)
    order.probe(4, 2, 0, 50, 16)
    assert order.epoch(4, 2, 0, 50).equal(first)
    others = [order.epoch(4, 2, 1, 50), order.epoch(4, 3, 0, 50), order.epoch(5, 2, 0, 50)]
    assert not any(first.equal(o) for o in [*others, SeededOrder(8).epoch(4, 2, 0, 50)])
    probe = order.probe(4, 2, 0, 50, 16)
    assert len(probe) == len(set(probe.tolist())) == 16
    assert len(order.probe(4, 2, 0, 5, 16)) == 5
