"""What holds for every method, executor and runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssfl.core.payloads import Part, Payload, nbytes
from ssfl.deploy.protocol.payloads import ExpectedReply
from ssfl.wire.message import decode, encode
from tests.contract.reading import timeless
from tests.contract.table import (
    ALGORITHMS,
    EXECUTORS,
    NETS,
    REFERENCE,
    finished,
    new_rig,
    run_to_end,
)
from tests.support.resuming import kept_progress, resumed_from_each
from tests.support.rigs import float_data, make_rig, tiny_net

every_row = pytest.mark.parametrize("name", ALGORITHMS)
every_net = pytest.mark.parametrize("net", NETS)
every_executor = pytest.mark.parametrize("executor", EXECUTORS)


@every_row
@every_net
@every_executor
def test_the_wire_changes_no_bit(name: str, net: str, executor: str) -> None:
    here, wired = finished(name, net, executor), finished(name, net, executor, wire=True)
    assert here.models.equal(wired.models)
    assert here.bytes == wired.bytes
    assert timeless(here.rig.events) == timeless(wired.rig.events)


@every_row
@every_net
@every_executor
def test_every_executor_computes_the_same(name: str, net: str, executor: str) -> None:
    reference, other = finished(name, net, REFERENCE), finished(name, net, executor)
    torch.testing.assert_close(other.models, reference.models, rtol=0, atol=1e-10)
    assert other.bytes == reference.bytes
    for ours, theirs in zip(other.rig.events, reference.rig.events, strict=True):
        assert ours["event"] == theirs["event"]
        for field in ("phase", "round", "train_flops", "density", "global_accuracy", "client_accuracy"):
            assert ours.get(field) == theirs.get(field), field


@every_row
@every_net
def test_bytes_are_a_function_of_the_payload(name: str, net: str) -> None:
    run = finished(name, net)
    payloads = run.rig.recorder.payloads()
    lengths = [len(encode(p)) for p in payloads]
    assert lengths == [nbytes(p) for p in payloads]
    assert sum(lengths) == sum(run.bytes)
    for payload in payloads:
        assert encode(decode(encode(payload))) == encode(payload)


@every_row
@every_net
def test_the_same_seed_gives_the_same_bits(name: str, net: str) -> None:
    again = new_rig(name, net)
    assert run_to_end(again).equal(finished(name, net).models)
    assert timeless(again.events) == timeless(finished(name, net).rig.events)


@every_row
def test_another_seed_gives_another_model(name: str) -> None:
    assert not finished(name, "group", seed=8).models.equal(finished(name, "group").models)


@every_row
def test_resuming_anywhere_is_never_having_stopped(name: str, tmp_path: Path) -> None:
    net = "batch"  # the harder one: its running statistics must survive too
    first = new_rig(name, net, wire=True)
    kept = kept_progress(first, tmp_path)
    assert run_to_end(first).equal(finished(name, net).models)
    assert len(kept) == len([e for e in first.events if e["event"] in ("round", "phase")])
    models = finished(name, net).models
    for _, end in resumed_from_each(kept, lambda: new_rig(name, net), models, first.events):
        assert first.loop.progress is not None
        assert end.ledger == first.loop.progress.ledger


@every_row
def test_one_client_alone(name: str) -> None:
    alone = make_rig(ALGORITHMS[name](), float_data((9,)), tiny_net("batch"), wire=True)
    models = run_to_end(alone, 2).view(-1)
    assert bool(models.isfinite().all())
    assert not models.equal(alone.theta)


@every_row
def test_replies_have_the_parts_that_their_task_declares(name: str) -> None:
    """A deployment refuses other replies: form, length, and for values on a mask the mask that was sent."""
    rig = finished(name, "batch").rig
    for plan, replies in rig.recorder.passed:
        declared = rig.algorithm.tasks[plan.phase].reply_parts
        assert declared is not None
        sent = {i.client: [m.parts for m in i.inbox if isinstance(m, Payload)] for i in plan.instructions}
        for reply in replies:
            parts: dict[str, Part] = {}
            for message in sent[reply.client]:
                parts |= {n: p for n, p in message.items() if p.has_values}
            expected = ExpectedReply(
                reply.client, parts, rig.algorithm.tasks[plan.phase], plan.timed, rig.context.layout
            )
            assert reply.payload.parts.keys() == declared.keys()
            assert expected.refusal_before_decoding(reply.payload) is None
            assert expected.refusal(reply.payload) is None
