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
"""Plan -> the clients that do not answer."""


def all_answer(plan: RoundPlan) -> Collection[int]:
    """No client is absent."""
    return ()


def seeded_absence(seed: int, share: float) -> Absence:
    """Each client of an exchange is absent with probability `share` (0-1); a resumed run repeats the same draws."""

    def absent(plan: RoundPlan) -> Collection[int]:
        return {i.client for i in plan.instructions if _draw(plan, i.client) < share}

    def _draw(plan: RoundPlan, client: int) -> float:
        generator = stream(seed, "absent", plan.phase, plan.clock.round, client)
        return float(torch.rand((), generator=generator))

    return absent


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

    def __call__(self, plan: RoundPlan, meter: Meter) -> Iterator[ClientReply]:
        """Yields the replies, sorted by client, each as soon as it and all earlier ones are ready."""
        self._sent.clear()
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
        return replace(job, inbox=tuple(map(self._delivered, job.received())), peers={})

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

    def _delivered(self, payload: Payload) -> Payload:
        """A message as its client receives it; one for many clients is encoded once."""
        if id(payload) not in self._sent:
            self._sent[id(payload)] = payload, self._crossed(payload)
        return self._sent[id(payload)][1]

    def _crossed(self, payload: Payload) -> Payload:
        layout = self.executor.layout
        return decode(encode(payload, layout), layout) if self.wire else payload


def _published(memory: MemoryHandle) -> MemoryHandle:
    """Only the published payload of a memory in this process, so that workers receive nothing else."""
    return ClientMemory({}, memory.published) if isinstance(memory, ClientMemory) else memory
