"""The loop, its events, the scoreboard and the ledger, by hand-computed cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import (
    ClientReply,
    ClientReport,
    Clock,
    Instruction,
    Probe,
    RoundPlan,
    ServerContext,
    TrainLoss,
)
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.random_masks import SharedRandomMask
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.layout import Layout
from ssfl.core.metrics import Tally
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import DenseValues, Payload, nbytes
from ssfl.core.saliency import MAGNITUDE, SNIP
from ssfl.engine.accounting.ledger import Ledger, Meter, dense_payload_bytes, exchange_fields
from ssfl.engine.accounting.scoreboard import Scoreboard
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.simulator import Simulator
from tests.support.rigs import float_data, make_rig, tiny_net

FIT = FitSpec(1, 8, ExponentialDecay(0.1, 0.99))


def test_phases_and_rounds_in_order() -> None:
    method = SSFL(FIT, 2, Discovery(Probe(SNIP, 1, 8), 0.5), mask_round=2)
    rig = make_rig(method, float_data(), tiny_net())
    rig.run(3)
    recorded = [(e["event"], e["phase"], e["round"], e["clients"]) for e in rig.events]
    assert recorded == [
        ("round", "warmup", 1, 2),
        ("phase", "score", 1, 5),
        ("phase", "store_mask", 1, 5),
        ("round", "train", 2, 2),
        ("round", "train", 3, 2),
    ]
    assert [e["density"] for e in rig.events[:1]] == [1.0]
    assert ["layer_density" in e for e in rig.events] == [False, True, False, False, False]


def test_n_rounds_train_n_rounds() -> None:
    rig = make_rig(FedAvg(FIT, 2), float_data(), tiny_net())
    rig.run(4)
    assert [e["round"] for e in rig.events] == [1, 2, 3, 4]


def test_testing_every_few_rounds_and_always_at_the_end() -> None:
    rig = make_rig(FedAvg(FIT, 2), float_data(), tiny_net())
    rig.loop.test_every = 3
    rig.run(5)
    assert [e["round"] for e in rig.events if "global_accuracy" in e] == [3, 5]


def test_an_error_of_the_next_plan_does_not_lose_the_finished_round(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make_rig(FedAvg(FIT, 2), float_data(), tiny_net()).run(4)
    rig = make_rig(FedAvg(FIT, 2), float_data(), tiny_net())
    configure = FedAvg.configure_round

    def failing(self: FedAvg, state: Any, clock: Clock, context: ServerContext) -> RoundPlan | None:
        if clock.round == 3:
            raise ValueError("no third round")
        return configure(self, state, clock, context)

    with monkeypatch.context() as patch:
        patch.setattr(FedAvg, "configure_round", failing)
        with pytest.raises(ValueError, match="no third round"):
            rig.run(4)
    assert [e["round"] for e in rig.events] == [1, 2]
    stopped = rig.loop.progress
    assert stopped is not None
    assert stopped.clock.round == 3
    weights = rig.algorithm.weights_to_evaluate(rig.loop.run(stopped).state, rig.context)
    assert weights is not None
    assert torch.equal(weights, expected)
    assert [e["round"] for e in rig.events] == [1, 2, 3, 4]


def test_the_list_of_very_many_clients_stands_in_the_last_evaluation_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ssfl.engine.loop.MOST_LISTED", 4)
    rig = make_rig(FedAvg(FIT, 2, fine_tune=FIT), float_data(), tiny_net())
    rig.run(3)
    listed = [(e["event"], "client_accuracy" in e, "client_accuracy_mean" in e) for e in rig.events]
    assert listed == [
        ("round", False, True),
        ("round", False, True),
        ("round", True, True),
        ("phase", True, True),
    ]


def test_the_global_model_is_tested_on_the_whole_test_set() -> None:
    data = float_data()
    rig = make_rig(FedAvg(FIT, 5), data, tiny_net("group"))
    weights = rig.run(2)
    module = tiny_net("group").double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(rig.context.layout.views(weights)[name])
        x, y = torch.cat([x for x, _ in data.test]), data.arrays.test_y
        logits = module(x.double())
    last = rig.events[-1]
    assert last["global_accuracy"] == pytest.approx(float((logits.argmax(1) == y).double().mean()))
    assert last["global_loss"] == pytest.approx(float(cross_entropy(logits, y)), rel=1e-12)
    for c, accuracy in enumerate(last["global_class_accuracy"]):
        assert accuracy == pytest.approx(float((logits.argmax(1)[y == c] == c).double().mean()))


def test_untrained_clients_count_with_the_initial_model() -> None:
    """The mean is over all clients: the last trained model, or the initial one for clients that were never sampled."""
    data = float_data()
    rig = make_rig(FedAvg(FIT, 1), data, tiny_net("group"))
    rig.run(1)
    (reply,) = rig.recorder.passed[0][1]
    with torch.no_grad():
        initial = tiny_net("group").double().eval()
        expected = [float((initial(x.double()).argmax(1) == y).double().mean()) for x, y in data.test]
    expected[reply.client] = reply.report.tallies["trained"].accuracy
    last = rig.events[-1]
    assert last["client_accuracy"] == pytest.approx(expected)
    assert last["client_accuracy_mean"] == pytest.approx(np.mean(expected))
    assert last["client_accuracy_std"] == pytest.approx(np.std(expected))
    assert (last["client_accuracy_min"], last["client_accuracy_max"]) == (min(expected), max(expected))
    assert last["clients_trained"] == 1


def test_scoreboard_by_hand() -> None:
    tallies = {
        0: Tally(torch.tensor([1]), torch.tensor([2]), 3.0),
        1: Tally(torch.tensor([1]), torch.tensor([1]), 3.0),
        2: Tally(torch.tensor([0]), torch.tensor([0]), 0.0),
    }
    board = Scoreboard.initial(tallies, 3)
    fields = board.fields()
    assert fields["client_accuracy"] == [0.5, 1.0, None]
    assert (fields["client_accuracy_mean"], fields["client_accuracy_std"]) == (0.75, 0.25)
    assert fields["client_loss_mean"] == (1.5 + 3.0) / 2
    better = board.updated({0: Tally(torch.tensor([2]), torch.tensor([2]), 0.5)})
    assert better.fields()["client_accuracy"] == [1.0, 1.0, None]
    assert (better.fields()["clients_trained"], board.fields()["clients_trained"]) == (1, 0)
    assert board.updated({}) is board


def test_a_scoreboard_without_test_examples_says_nothing() -> None:
    nothing = Tally(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 0.0)
    assert Scoreboard.initial({0: nothing}, 1).fields() == {}
    assert Scoreboard.initial({}, 2).fields() == {}  # a server without the clients' test rows


def reply(client: int, loss: float | None, examples: int, payload: Payload) -> ClientReply:
    train_loss = None if loss is None else TrainLoss(loss, 2 * loss)
    return ClientReply(client, payload, ClientReport(examples, train_loss, train_flops=10 * examples))


@dataclass(frozen=True)
class Answering:
    """An executor without arithmetic."""

    replies: list[ClientReply]

    @property
    def layout(self) -> Layout:
        return Layout((), (), (), ())

    def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        return (Outcome(r, None) for r in self.replies if r.client in {job.client for job in jobs})

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def close(self) -> None: ...


def test_bytes_are_charged_to_the_edge_they_cross() -> None:
    server, peer = Payload({"w": DenseValues(torch.zeros(5))}), Payload({"w": DenseValues(torch.zeros(3))}, 1)
    inboxes = {0: (server, peer), 2: (server,), 3: ()}
    plan = RoundPlan("train", tuple(Instruction(c, inbox) for c, inbox in inboxes.items()), Clock(4, 9))
    up = Payload({}, 0)
    replies = [reply(0, 1.0, 1, up), reply(2, 4.0, 3, up), reply(3, None, 9, up)]
    meter = Meter(3)
    assert list(meter.watch(Simulator(Answering(replies))(plan, meter))) == replies
    fields = exchange_fields(plan, meter)
    assert "missing_replies" not in fields
    assert fields["downlink_bytes"] == 2 * (41 + 20)
    assert (fields["peer_bytes"], fields["peer_metadata_bytes"]) == (41 + 12, 41)
    assert fields["uplink_bytes"] == 3 * 24
    assert fields["train_loss_last_epoch"] == (1.0 + 3 * 4.0) / 4
    assert fields["train_loss_all_epochs"] == (2.0 + 3 * 8.0) / 4
    assert fields["train_flops"] == 130
    ledger = Ledger().plus(fields).plus(fields)
    assert (ledger.downlink_bytes, ledger.peer_bytes) == (2 * 2 * (41 + 20), 2 * (41 + 12))
    nothing = exchange_fields(replace(plan, timed=False), Meter())
    assert nothing["round"] == 3
    assert nothing["train_loss_last_epoch"] is nothing["train_loss_all_epochs"] is None


def test_a_dense_models_bytes_by_arithmetic() -> None:
    assert dense_payload_bytes(7) == nbytes(Payload({"w": DenseValues(torch.zeros(7))})) == 41 + 28


def test_an_emptied_layer_is_warned_of_once() -> None:
    """Scores are magnitudes and one layer's weights are very small, so the global top-k empties it."""
    module = tiny_net("none")
    with torch.no_grad():
        next(p for n, p in module.named_parameters() if n == "3.weight").mul_(1e-6)
    rig = make_rig(SSFL(FIT, 2, Discovery(Probe(MAGNITUDE, 1, 8), 0.3)), float_data(), module)
    rig.run(2)
    warnings = [e["message"] for e in rig.events if e["event"] == "warning"]
    assert len(warnings) == 1
    assert "3.weight" in warnings[0]
    assert "min_layer_density" in warnings[0]
    event = next(e for e in rig.events if "layer_density" in e)
    assert event["empty_layers"] == ["3.weight"]
    assert event["layer_density"]["3.weight"] == 0.0


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_a_mask_from_the_start_is_reported_once_with_its_empty_layers(
    scope: Literal["global", "layerwise"],
) -> None:
    """Density 0.01 keeps no weight of a layer of fewer than 100."""
    rig = make_rig(SharedRandomMask(FIT, 2, 0.01, scope), float_data(), tiny_net("none"))
    rig.run(2)
    assert ["layer_density" in e for e in rig.events if e["event"] != "warning"] == [True, False, False]
    (event,) = [e for e in rig.events if "layer_density" in e]
    bits = rig.context.layout.take_prunable(mask_of(rig.loop.progress))
    spans = {name: bits[a:b] for name, a, b in rig.context.layout.prunable_segments}
    assert event["empty_layers"] == [name for name, own in spans.items() if not bool(own.any())] != []
    (warning,) = [e["message"] for e in rig.events if e["event"] == "warning"]
    assert all(name in warning for name in event["empty_layers"])


def test_flops_count_kept_weights_three_forwards_and_epochs() -> None:
    """Convolutions at 6x6 positions, the linear layer once; biases dense; 3 forward passes per example and epoch."""
    data, fit = float_data(), FitSpec(2, 8, ExponentialDecay(0.1, 1.0))
    rig = make_rig(SSFL(fit, 5, Discovery(Probe(SNIP, 1, 8), 0.3)), data, tiny_net("none"))
    rig.run(1)
    kept = rig.context.layout.kept_per_layer(mask_of(rig.loop.progress))
    bias = 6 * 36 + 3
    forward = 2 * (36 * (kept["0.weight"] + kept["3.weight"]) + kept["8.weight"]) + bias
    examples = sum(data.examples(k) for k in range(5))
    assert rig.events[-1]["train_flops"] == 3 * forward * examples * 2
    dense = 2 * (36 * (36 + 216) + 72) + bias
    scored = sum(min(8, data.examples(k)) for k in range(5))
    assert rig.events[0]["train_flops"] == 3 * dense * scored


def mask_of(progress: object) -> Tensor:
    bits = progress.state.bits  # type: ignore[attr-defined]
    assert isinstance(bits, Tensor)
    return bits
