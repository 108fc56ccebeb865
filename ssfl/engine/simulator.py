"""An exchange inside this process: payloads pass by reference, or as real bytes when `wire` is set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ssfl.algorithms.base import ClientReply, Instruction, RoundPlan
from ssfl.core.codec import decode, encode
from ssfl.core.payloads import Payload
from ssfl.engine.client_store import ClientStates, ClientStore
from ssfl.engine.executors import Executor
from ssfl.engine.jobs import Job
from ssfl.engine.remembered import bind, without_tensors


class Simulator:
    """Runs a plan's instructions through an executor and keeps what the clients remember.

    With `wire=True` every payload crosses as the bytes that a deployment would send, both ways. `store` holds the
    clients' memories; without one they stay in this process's.
    """

    def __init__(self, executor: Executor, wire: bool = False, store: ClientStore | None = None) -> None:
        self.executor = executor
        self.wire = wire
        self.store = ClientStore() if store is None else store

    def __call__(self, plan: RoundPlan) -> Iterator[ClientReply]:
        """All replies, sorted by client, each as soon as it and those before it are ready."""
        instructions = sorted(plan.instructions, key=lambda i: i.client)
        for instruction in instructions:
            bind(instruction, self.store)
        jobs = [
            Job(plan.phase, self._delivered(i), self.store.get(i.client), plan.clock) for i in instructions
        ]
        for job, outcome in zip(jobs, self.executor.run(jobs), strict=True):
            client, payload = outcome.reply.client, self._crossed(outcome.reply.payload)
            if outcome.state is not job.state:
                self.store.put(client, outcome.state)
                payload = without_tensors(payload, outcome.state, self.store.entry(client))
            yield replace(outcome.reply, payload=payload)

    def client_states(self) -> ClientStates:
        """What every client remembers now, or the file that holds it; tensors are never changed in place."""
        return self.store.snapshot()

    def restore(self, states: ClientStates) -> None:
        """Continue from remembered states."""
        self.store.restore(states)

    def _delivered(self, instruction: Instruction) -> Instruction:
        if not self.wire:
            return instruction
        return replace(instruction, inbox=tuple(map(self._crossed, instruction.inbox)))

    def _crossed(self, payload: Payload) -> Payload:
        return decode(encode(payload)) if self.wire else payload
