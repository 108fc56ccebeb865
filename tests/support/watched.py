"""Tasks and executors that detect changes of the arguments and results of `receive`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ssfl.algorithms.base import ClientContext, ClientState, ClientTask, Work
from ssfl.core.layout import Layout
from ssfl.core.payloads import Payload
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.executors.executor import Executor
from ssfl.engine.state.serialization import Packer


class ChangedError(Exception):
    """A read-only value has changed; the message names the value and the client."""


def digest(value: Any) -> str:
    """Digest of all bits of a value that a checkpoint can store."""
    packer = Packer()
    found = hashlib.sha256(json.dumps(packer.pack(value)).encode())
    for tensor in packer.tensors.values():
        found.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Held:
    """Arguments and results of one client's `receive`, with their digests at that time."""

    values: Mapping[str, Any]
    digests: Mapping[str, str]

    def check(self, client: int, moment: str) -> None:
        changed = [name for name, value in self.values.items() if digest(value) != self.digests[name]]
        if changed:
            raise ChangedError(f"client {client}: {moment} changed {', '.join(changed)}")


def held(**values: Any) -> Held:
    return Held(values, {name: digest(value) for name, value in values.items()})


@dataclass(frozen=True)
class Watch:
    """Wraps `receive` and `reply` of a task and checks in `reply` that received values did not change."""

    task: ClientTask
    clients: dict[int, Held] = field(default_factory=dict)

    def receive(
        self, inbox: Sequence[Payload], state: ClientState, context: ClientContext
    ) -> tuple[Work, ClientState]:
        given = held(inbox=tuple(inbox), memory=dict(state))
        work, remembered = self.task.receive(inbox, state, context)
        given.check(context.client, "receive")
        # Also the dictionary: an executor must not write its results into it.
        self.clients[context.client] = held(
            inbox=tuple(inbox), memory=dict(state), work=work, entries=dict(work), remembered=remembered
        )
        return work, remembered

    def reply(
        self, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
    ) -> tuple[Payload, ClientState]:
        received = self.clients.pop(context.client)
        received.check(context.client, "the executor")
        answer = self.task.reply(work, probed, state, context)
        received.check(context.client, "reply")
        return answer


def watched(tasks: Mapping[str, ClientTask]) -> dict[str, ClientTask]:
    """The same tasks; they raise ChangedError if a received value changes."""
    out = {}
    for phase, task in tasks.items():
        watch = Watch(task)
        out[phase] = replace(task, receive=watch.receive, reply=watch.reply)
    return out


@dataclass
class Unchanging:
    """An executor that checks that jobs do not change while they are computed."""

    inner: Executor
    jobs: int = 0

    @property
    def layout(self) -> Layout:
        return self.inner.layout

    def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        before = [self._held(job) for job in jobs]
        yield from self.inner.run(jobs)
        for job, values in zip(jobs, before, strict=True):
            values.check(job.client, f"phase {job.phase}")
            self.jobs += 1

    def _held(self, job: ClientJob) -> Held:
        peers = {client: peer.load() for client, peer in job.peers.items()}
        return held(inbox=job.inbox, memory=job.memory.load(), peers=peers)

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.predict(theta)

    def close(self) -> None:
        self.inner.close()
