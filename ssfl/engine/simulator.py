"""An exchange inside this process: payloads pass by reference, or as real bytes when `wire` is set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ssfl.algorithms.base import ClientReply, ClientState, Instruction, RoundPlan
from ssfl.core.codec import decode, encode
from ssfl.core.payloads import Payload
from ssfl.engine.executors import Executor
from ssfl.engine.local import Job

ClientStates = Mapping[int, ClientState]


class Simulator:
    """Runs a plan's instructions through an executor and keeps what the clients remember.

    With `wire=True` every payload crosses as the bytes that a deployment would send, both ways.
    """

    def __init__(self, executor: Executor, wire: bool = False) -> None:
        self.executor = executor
        self.wire = wire
        self._states: dict[int, ClientState] = {}

    def __call__(self, plan: RoundPlan) -> list[ClientReply]:
        """All replies, sorted by client."""
        instructions = sorted(plan.instructions, key=lambda i: i.client)
        jobs = [
            Job(plan.phase, self._delivered(i), self._states.get(i.client, {}), plan.clock)
            for i in instructions
        ]
        replies = []
        for job, outcome in zip(jobs, self.executor.run(jobs), strict=True):
            if outcome.state is not job.state:
                self._states[outcome.reply.client] = outcome.state
            replies.append(replace(outcome.reply, payload=self._crossed(outcome.reply.payload)))
        return replies

    def client_states(self) -> ClientStates:
        """What every client remembers now; the tensors are shared, never changed in place."""
        return dict(self._states)

    def restore(self, states: ClientStates) -> None:
        """Continue from remembered states."""
        self._states = dict(states)

    def _delivered(self, instruction: Instruction) -> Instruction:
        if not self.wire:
            return instruction
        return replace(instruction, inbox=tuple(map(self._crossed, instruction.inbox)))

    def _crossed(self, payload: Payload) -> Payload:
        return decode(encode(payload)) if self.wire else payload
