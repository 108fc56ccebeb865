"""Handles the server's messages at a site: join a run, do the work of an exchange, answer a ping, finish."""

from __future__ import annotations

import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ssfl.algorithms.base import Clock
from ssfl.deploy.errors import DeployError
from ssfl.deploy.log import EventLog
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.protocol.payloads import digest_of, from_bytes, is_broadcast, to_bytes
from ssfl.deploy.site.kept_states import KEPT_DAYS, KeptStates, Memory, forget_old_runs, is_run_name
from ssfl.deploy.site.sessions import Builder, Session
from ssfl.deploy.transport.port import Message
from ssfl.engine.client.errors import ClientError
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.client.memory import ClientMemory
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.malloc import kept_inside
from ssfl.errors import UserError
from ssfl.output import write_atomically


class Trainer:
    """Network and state of one site; `handle` answers one message.

    wish: client number to ask for if the server has no roster; -1: any. state: the site's folder of client states, and
    of the client's own model at the end of a run, for methods that have one; None: nothing is written.
    """

    def __init__(self, build: Builder, log: EventLog, wish: int = -1, state: Path | None = None) -> None:
        self.build = build
        self.log = log
        self.wish = wish
        self.state = state
        self.session: Session | None = None
        """The run that this site has joined."""
        self._forget_old_runs()

    @property
    def run(self) -> str:
        """The run that this site has joined; empty for none."""
        return "" if self.session is None else self.session.join.run

    def handle(self, message: Message) -> Message | str:
        """The answer, or the reason why there is none. Never raises because of a message's contents."""
        try:
            return message_bytes.pack(self._answer(message_bytes.unpack(message)))
        except messages.MessageError as error:
            reason = f"not understood: {error}"
        except UserError as error:
            reason = str(error)
        except Exception as error:
            reason = _reason_to_send(error)
            self.log.error("work_failed", repr(error), run=self.run, traceback=traceback.format_exc())
            return reason
        self.log.warning("refused", reason, run=self.run)
        return reason

    def _answer(self, message: messages.AnyMessage) -> messages.AnyMessage:
        if isinstance(message, messages.Join):
            return self.join(message)
        if isinstance(message, messages.Work):
            return self.work(message)
        if isinstance(message, messages.Ping):
            return messages.Pong(self.run, self.wish)
        if isinstance(message, messages.Finish):
            return self.finish(message)
        raise messages.MessageError(f"only a server accepts a {type(message).__name__}")

    # ── joining ──────────────────────────────────────────────────────────────────────────────────────────────────
    def join(self, join: messages.Join) -> messages.Joined:
        """Build the run's network and tasks. Returns what the server must know. Raises UserError."""
        session = self.session
        if session is None or session.join != join:
            session = self.session = self.build(join)
            self._forget_old_runs()
        text = f"{session.about}, as client {join.client} with {session.joined.examples} examples"
        self.log.info("joined", text, run=join.run)
        newest = session.states.before(1 << 62)
        return replace(session.joined, standing=tuple(newest.holds))

    def _forget_old_runs(self) -> None:
        """Delete the states of runs that were not used for KEPT_DAYS; a run with newer ones may be resumed."""
        for run in forget_old_runs(self.state, self.run, time.time()):
            self.log.info("state_deleted", f"not used for {KEPT_DAYS} days", run=run)

    # ── working ──────────────────────────────────────────────────────────────────────────────────────────────────
    def work(self, work: messages.Work) -> messages.Done:
        """Do this client's work of one exchange. Raises DeployError if run, client, phase or masks do not match."""
        session = self.session
        if session is None or work.run != session.join.run:
            joined = f"run {self.run}" if self.run else "no run"
            raise DeployError(f"run {work.run!r:.60}: this site has joined {joined}; {messages.JOIN_FIRST}")
        if work.client != session.join.client:
            raise DeployError(f"client {work.client}: this site is client {session.join.client}")
        if work.phase not in session.algorithm.tasks:
            raise DeployError(f"phase {work.phase!r:.40}: this method has no such phase")
        start = time.perf_counter()
        memory = self._memory_before(session, work)
        outcome = self._run(
            session, work.phase, work.inbox, Clock(work.round, work.total), memory, work.publish
        )
        state = memory.state if outcome.state is None else outcome.state
        kept = self._save_memory(session, work, memory, state)
        payload = to_bytes(outcome.reply.payload, session.runner.layout)
        self.log.info(
            "worked",
            f"{work.phase}, round {work.round} of {work.total}: {time.perf_counter() - start:.2f} s, "
            f"{sum(map(len, work.inbox)):,} bytes in, {len(payload):,} bytes out",
            run=work.run,
            round=work.round,
            phase=work.phase,
            seconds=time.perf_counter() - start,
            bytes_in=sum(map(len, work.inbox)),
            bytes_out=len(payload),
        )
        return messages.Done(
            work.run, work.client, work.exchange, outcome.reply.report, payload, tuple(kept.holds)
        )

    def _memory_before(self, session: Session, work: messages.Work) -> Memory:
        """The client's memory before this exchange, with the broadcasts that the site had missed."""
        memory = session.states.before(work.exchange)
        for missed in work.missed:
            if missed.digest in memory.holds:
                continue
            task = session.algorithm.tasks.get(missed.phase)
            if task is None or not is_broadcast(task) or digest_of(missed.blobs) != missed.digest:
                raise DeployError(f"missed broadcast {missed.digest}: not a broadcast of this run")
            outcome = self._run(session, missed.phase, missed.blobs, Clock(missed.round, work.total), memory)
            holds = {**memory.holds, missed.digest: work.exchange - 1}
            state = memory.state if outcome.state is None else outcome.state
            memory = Memory(work.exchange - 1, state, holds)
        lacking = [digest for digest in work.holds if digest not in memory.holds]
        if lacking:
            raise DeployError(f"{messages.LACKS}{' '.join(lacking)}")
        return memory

    def _save_memory(self, session: Session, work: messages.Work, before: Memory, state: Any) -> Memory:
        holds = dict(before.holds)
        if is_broadcast(session.algorithm.tasks[work.phase]):
            holds[digest_of(work.inbox)] = work.exchange
        kept = Memory(work.exchange, state, holds)
        if fault := session.states.put(kept, work.checkpoints):
            self.log.warning(
                "state_not_saved",
                f"{fault}: the state is kept in memory and lost when this process ends",
                run=work.run,
            )
        return kept

    def _run(
        self,
        session: Session,
        phase: str,
        blobs: tuple[bytes, ...],
        clock: Clock,
        memory: Memory,
        publish: bool = False,
    ) -> Outcome:
        inbox = tuple(from_bytes(blob, session.runner.layout) for blob in blobs)
        job = ClientJob(phase, session.join.client, inbox, clock, ClientMemory(memory.state), publish=publish)
        with kept_inside(session.runner.model_bytes):
            return session.runner.run(job)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────
    def finish(self, finish: messages.Finish) -> messages.Finished:
        """Write the client's own model, if the method has one, and delete the run's state."""
        session = self.session
        if session is not None and session.join.run == finish.run:
            self._keep_model(session)
            session.states.forget()
            self.session = None
            self.log.info("finished", "the run has finished; its state is deleted", run=finish.run)
        elif self.state is not None and is_run_name(finish.run):
            KeptStates(self.state, finish.run).forget()  # this site has joined another run since
        return messages.Finished(finish.run)

    def _keep_model(self, session: Session) -> None:
        folder = self.state
        state = session.states.before(1 << 62).state
        tasks = session.algorithm.tasks.values()
        kept = [t.kept_model(state) for t in tasks if t.kept_model is not None] if state else []
        theta = next((t for t in reversed(kept) if t is not None), None)
        if theta is None or folder is None:
            return
        path = folder / f"{session.join.run}.model.safetensors"
        try:
            write_model(session.runner, theta, path)
        except OSError as error:
            self.log.warning("model_not_saved", f"{path}: {error.strerror}", run=session.join.run)
        else:
            self.log.info("model_saved", f"this site's own model: {path}", run=session.join.run)


def _reason_to_send(error: Exception) -> str:
    """The reason to send to the server: only texts of this package, since other libraries' errors may quote data."""
    cause = error.__cause__ if isinstance(error, ClientError) else error
    if isinstance(error, ClientError) and cause is None:
        return str(error)
    if isinstance(cause, UserError) or type(cause).__module__.partition(".")[0] == "ssfl":
        return str(error)
    return f"{type(cause).__name__} at the site; see the site's log"


def write_model(runner: ClientRunner, theta: torch.Tensor, path: Path) -> None:
    """Write weights theta [P] as a state_dict in safetensors format."""
    flat = runner.flat()
    flat.load(theta)
    tensors = {name: t for name, t in flat.module.state_dict().items() if isinstance(t, torch.Tensor)}
    # save_file would give the file mode 0600 under any umask.
    write_atomically(path, save({name: tensor.clone() for name, tensor in tensors.items()}))
