"""An exchange inside this process: payloads are passed by reference, or encoded and decoded with `wire=True`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import final

import torch

from ssfl.algorithms.base import ClientReply, Instruction, PeerModel, RoundPlan
from ssfl.core.payloads import Payload, Traffic
from ssfl.core.rng import stream
from ssfl.engine.accounting.ledger import Meter
from ssfl.engine.client.job import ClientJob, Outcome, published_by
from ssfl.engine.client.memory import ClientMemories, ClientMemory, MemoryHandle
from ssfl.engine.executors.executor import Executor
from ssfl.engine.state.client_store import ClientStore
from ssfl.wire.message import decode, encode

Absence = Callable[[RoundPlan], Collection[int]]
"""Plan -> the clients that do not answer; called once for every attempt of a plan."""


def all_answer(plan: RoundPlan) -> Collection[int]:
    """No client is absent."""
    return ()


@final
class SeededAbsence:
    """Each client of an exchange is absent with probability `share` (0-1); a resumed run repeats the same draws.

    An exchange that is repeated at once has draws of its own, so that it can succeed.
    """

    def __init__(self, seed: int, share: float) -> None:
        self._seed, self._share = seed, share
        self._last, self._attempt = ("", 0), 0

    def __call__(self, plan: RoundPlan) -> Collection[int]:
        """The absent clients."""
        this = plan.phase, plan.clock.round
        self._attempt = self._attempt + 1 if this == self._last else 0
        self._last = this
        return {i.client for i in plan.instructions if self._draw(plan, i.client) < self._share}

    def _draw(self, plan: RoundPlan, client: int) -> float:
        again = (self._attempt,) if self._attempt else ()
        generator = stream(self._seed, "absent", plan.phase, plan.clock.round, client, *again)
        return float(torch.rand((), generator=generator))


@final
class Simulator:
    """Executes a plan's instructions with an executor and keeps the clients' states.

    wire: encode and decode every payload, as a deployment does. store: holds the clients' states; None: in memory.
    absent: clients whose messages are sent and counted, but which do not work or answer.
    """

    def __init__(
        self,
        executor: Executor,
        wire: bool = False,
        store: ClientStore | None = None,
        absent: Absence = all_answer,
    ) -> None:
        self.executor = executor
        self.wire = wire
        self.store = ClientStore() if store is None else store
        self.absent = absent
        self._jobs: list[ClientJob] = []
        self._sent: dict[int, tuple[Payload, Payload]] = {}
        self._peers: dict[int, Payload] = {}

    def __call__(self, plan: RoundPlan, meter: Meter) -> Iterator[ClientReply]:
        """Yields the replies, sorted by client, each as soon as it and all earlier ones are ready."""
        self._sent.clear()
        self._peers.clear()
        instructions = sorted(plan.instructions, key=lambda i: i.client)
        self._count_messages(plan, instructions, meter)
        absent = self.absent(plan)
        jobs = self._jobs = [self._job(plan, i) for i in instructions if i.client not in absent]
        for job, outcome in zip(jobs, self.executor.run(jobs), strict=True):
            reply = outcome.reply
            payload = reply.payload if reply.is_mean else self._crossed(reply.payload)
            self._store_state(job, outcome, payload if plan.publish else None)
            meter.received(job.client, reply.traffic or Traffic.of(payload))
            yield replace(reply, payload=payload)
        self._jobs = []

    def job_of(self, client: str) -> ClientJob | None:
        """A client's job of an unfinished exchange; None if there is none."""
        return next((job for job in self._jobs if str(job.client) == client), None)

    def client_memories(self) -> ClientMemories:
        """The clients' current states or handles of their files; tensors are never changed in place."""
        return self.store.snapshot()

    def restore(self, memories: ClientMemories) -> None:
        """Restore the clients' states."""
        self.store.restore(memories)

    def _job(self, plan: RoundPlan, instruction: Instruction) -> ClientJob:
        memory = self.store.get(instruction.client)
        references = [m.client for m in instruction.inbox if isinstance(m, PeerModel)]
        peers: Mapping[int, MemoryHandle] = {c: _published(self.store.get(c)) for c in references}
        job = ClientJob(
            plan.phase,
            instruction.client,
            instruction.inbox,
            plan.clock,
            memory,
            peers,
            publish=plan.publish,
            initial_model=plan.initial_model,
        )
        if not self.wire:
            return job
        return replace(job, inbox=tuple(self._delivered(job, message) for message in job.inbox), peers={})

    def _store_state(self, job: ClientJob, outcome: Outcome, published: Payload | None) -> None:
        if outcome.state is None and published is None:
            return
        before = job.memory.load()
        state = before.state if outcome.state is None else outcome.state
        self.store.put(job.client, ClientMemory(state, before.published if published is None else published))

    def _count_messages(self, plan: RoundPlan, instructions: list[Instruction], meter: Meter) -> None:
        """Count every message for its sender, also if its client does not answer."""
        sizes: dict[int, Traffic] = {}  # the size of a broadcast payload is computed once
        models: dict[int, Traffic] = {}
        for instruction in instructions:
            for message in instruction.inbox:
                if isinstance(message, PeerModel):
                    if message.client not in models:
                        peers = {message.client: self.store.get(message.client)}
                        model = published_by(message.client, peers, plan.initial_model)
                        models[message.client] = Traffic.of(model)
                    meter.sent(message.sender, instruction.client, models[message.client])
                else:
                    if id(message) not in sizes:
                        sizes[id(message)] = Traffic.of(message)
                    meter.sent(message.sender, instruction.client, sizes[id(message)])

    def _delivered(self, job: ClientJob, message: Payload | PeerModel) -> Payload:
        """A message as its client receives it; one for many clients is encoded and held once."""
        if isinstance(message, PeerModel):
            peer = message.client
            if peer not in self._peers:
                self._peers[peer] = self._crossed(published_by(peer, job.peers, job.initial_model))
            return replace(self._peers[peer], sender=message.sender)
        if id(message) not in self._sent:
            self._sent[id(message)] = message, self._crossed(message)
        return self._sent[id(message)][1]

    def _crossed(self, payload: Payload) -> Payload:
        layout = self.executor.layout
        return decode(encode(payload, layout), layout) if self.wire else payload


def _published(memory: MemoryHandle) -> MemoryHandle:
    """Only the published payload of a memory in this process, so that workers receive nothing else."""
    return ClientMemory({}, memory.published) if isinstance(memory, ClientMemory) else memory
