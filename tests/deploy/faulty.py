"""Runs over a fake fleet in which one answer is changed, and what they must equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.core.payloads import Payload
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.transport.port import Message
from ssfl.wire.message import encode
from tests.contract.table import ROUNDS, new_rig
from tests.deploy.fake_fleet import Bench, Fault
from tests.deploy.oracle import Missing, without
from tests.support.rigs import tiny_net

LAYOUT = Layout.of(tiny_net())


def simulated(name: str, missing: Missing, rounds: int = ROUNDS) -> Tensor:
    rig = new_rig(name, "group")
    rig.loop.exchange = without(rig.recorder.inner, missing)
    progress = rig.loop.run(rig.loop.start(rig.theta, rounds))
    weights = rig.algorithm.weights_to_evaluate(progress.state, rig.context)
    assert weights is not None
    return weights


def deployed(bench: Bench, rounds: int = ROUNDS) -> Tensor:
    progress = bench.run(rounds)
    weights = bench.algorithm.weights_to_evaluate(progress.state, bench.loop.context)
    assert weights is not None
    return weights


def in_work(phase: str, round_: int, change: Callable[[Message, messages.Done], Any]) -> Fault:
    """A fault in the reply to one work, once; honest otherwise."""
    done: list[int] = []

    def fault(message: Message, answer: Message | str) -> Any:
        work = message_bytes.unpack(message)
        if isinstance(work, messages.Work) and (work.phase, work.round) == (phase, round_) and not done:
            done.append(1)
            assert isinstance(answer, Message)
            reply = message_bytes.unpack(answer)
            assert isinstance(reply, messages.Done)
            return change(answer, reply)
        return answer

    return fault


def with_payload(reply: messages.Done, payload: Payload) -> Message:
    return message_bytes.pack(replace(reply, payload=encode(payload, LAYOUT)))
