"""Several processes (ranks), on one host or many, that run the same loop and divide a cohort's clients.

Random streams are named, so every rank makes the same plan. Each rank computes its share of the jobs with its own
executor. If the server needs only the mean of the replies, one reduction gives it to all ranks (`means.py`); otherwise,
or if the bits of one process are required, all ranks gather all replies (docs/engine.md gives the cost).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ssfl.algorithms.base import ClientReply, ClientReport, TrainLoss, Weighting
from ssfl.core.layout import Layout
from ssfl.core.metrics import Tally
from ssfl.core.payloads import Payload, Traffic
from ssfl.engine.client.data_source import evaluation_labels
from ssfl.engine.client.errors import ClientError, DivergedError, Place
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.executors.distributed.link import LENGTH, Link, RankError, from_bytes, to_bytes
from ssfl.engine.executors.distributed.means import Outline, PartialMean, outlines, payload_of, same
from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.scheduling import row_slices
from ssfl.engine.state.serialization import Packer
from ssfl.wire.parts import PARTS

OUTCOME_RECORDS = (
    ClientReply,
    ClientReport,
    TrainLoss,
    Tally,
    Traffic,
    Payload,
    *PARTS,
)


def shares(examples: Sequence[int], size: int) -> list[list[int]]:
    """Positions of the jobs of each rank, ascending: the longest job first, to the least loaded rank (ties: lower).

    examples: the jobs' training examples. Every rank computes the same shares; some may be empty.
    """
    loads, out = [0] * size, [[] for _ in range(size)]  # type: list[int], list[list[int]]
    for position in sorted(range(len(examples)), key=lambda i: (-examples[i], i)):
        rank = min(range(size), key=lambda r: (loads[r], r))
        loads[rank] += max(examples[position], 1)
        out[rank].append(position)
    return [sorted(share) for share in out]


class RankedExecutor:
    """Computes this rank's share with `inner` and receives the other shares; outcomes are as in one process.

    With `split_evaluation` ranks also divide the test set, in whole evaluation batches; otherwise every rank evaluates
    all of it with its own executor (if that has worker processes).
    """

    def __init__(
        self,
        inner: Executor,
        runner: ClientRunner,
        link: Link,
        split_evaluation: bool = True,
        by_mean: bool = False,
    ) -> None:
        """by_mean: one reduction instead of all replies, in phases whose task sets `averaged_by`."""
        self.inner = inner
        self.by_mean = by_mean
        self.runner = runner
        self.link = link
        self.split_evaluation = split_evaluation

    @property
    def layout(self) -> Layout:
        """The layout of the runner's network."""
        return self.runner.layout

    def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        """All outcomes, in the jobs' order, after every rank has computed its share."""
        weighting = self.runner.tasks[jobs[0].phase].averaged_by if jobs and self.by_mean else None
        if weighting is not None:
            yield from self._averaged(jobs, weighting)
            return
        counts = [self.runner.federation.examples(j.client) for j in jobs]
        own = shares(counts, self.link.size)[self.link.rank]
        known = _packed(jobs)  # tensors that all ranks hold are not sent

        def compute() -> Any:
            computed = zip(own, self.inner.run([jobs[i] for i in own]), strict=True)
            return [(i, o.reply, o.state) for i, o in computed]

        outcomes: dict[int, Outcome] = {}
        for answer in self._share_out(compute, OUTCOME_RECORDS, known, fingerprint(jobs, len(known.tensors))):
            for position, reply, state in answer:
                outcomes[position] = Outcome(reply, state)
        yield from (outcomes[i] for i in range(len(jobs)))

    def _averaged(self, jobs: Sequence[ClientJob], weighting: Weighting) -> Iterator[Outcome]:
        """Outcomes whose payload is the mean of the replies."""
        counts = [self.runner.federation.examples(j.client) for j in jobs]
        weights = counts if weighting == "examples" else [1] * len(jobs)
        own = shares(counts, self.link.size)[self.link.rank]
        known, mean = _packed(jobs), PartialMean()

        def compute() -> Any:
            computed = []
            for i, o in zip(own, self.inner.run([jobs[i] for i in own]), strict=True):
                payload = self._opened(o.reply.payload, jobs[i])
                mean.add(payload, weights[i] / sum(weights))
                computed.append((i, o.reply.report, outlines(payload), o.state, Traffic.of(o.reply.payload)))
            return computed

        mark = fingerprint(jobs, len(known.tensors))
        ranks = self._share_out(compute, (ClientReport, TrainLoss, Tally, Outline, Traffic), known, mark)
        by_position = {position: rest for rank in ranks for position, *rest in rank}
        parts = same(tuple(parts) for _, parts, *_ in by_position.values())
        means = [self.link.add_up(mean.of(part)) for part in parts]
        for i, job in enumerate(jobs):
            report, _, state, traffic = by_position[i]
            payload = payload_of(parts, means, job.client)
            yield Outcome(ClientReply(job.client, payload, report, is_mean=True, traffic=traffic), state)

    def _opened(self, payload: Payload, job: ClientJob) -> Payload:
        """A reply as the server decodes it: means are of values, not of coded values."""
        wire, where = self.runner.wire_stack, (job.client, job.phase, job.clock.round)
        held = wire.held_by(job.memory.load().state)
        return wire.receive_reply(payload, wire.received_by(job.received(), *where, held), *where)

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """See `Executor.predict`; in slices of whole evaluation batches, one slice a rank."""
        if not self.split_evaluation:
            return self.inner.predict(theta)
        total = len(evaluation_labels(self.runner.federation))
        first, last = row_slices(total, self.link.size)[self.link.rank]

        def compute() -> Any:
            return self.runner.predict_rows(theta, first, last) if last > first else None

        slices = [t for t in self._share_out(compute, (), Packer(), total) if t is not None]
        return torch.cat([s[0] for s in slices]), torch.cat([s[1] for s in slices])

    def close(self) -> None:
        """End this rank's executor."""
        self.inner.close()

    def _share_out(
        self, compute: Callable[[], Any], records: Sequence[type[Any]], known: Packer, mark: int
    ) -> list[Any]:
        """Every rank's result, by rank. A failure on any rank ends the work on all ranks."""
        value, failure = None, None
        before = dict(known.tensors)
        try:
            value = compute()
            message = to_bytes(("done", value), known)
        except Exception as error:  # the other ranks must receive it before it is raised
            failure = error
            message = to_bytes(("failed", _described(error)))
        answers = self.link.gather(LENGTH.pack(mark) + message)
        if failure is not None:
            raise failure
        return [
            value if rank == self.link.rank else self._answer(rank, raw, records, before, mark)
            for rank, raw in enumerate(answers)
        ]

    def _answer(
        self, rank: int, raw: bytes, records: Sequence[type[Any]], known: Mapping[str, Tensor], mark: int
    ) -> Any:
        if LENGTH.unpack_from(raw) != (mark,):
            raise RankError(
                f"rank {rank} does not compute the same run as rank {self.link.rank}: start all ranks with the "
                "same words, the same program and data, on the same kind of processor"
            )
        kind, body = from_bytes(raw[LENGTH.size :], (*records, Place), known)
        if kind == "failed":
            raise _remote_error(rank, *body)
        return body


def fingerprint(jobs: Sequence[ClientJob], tensors: int) -> int:
    """A checksum of plan and model, to detect ranks that differ: clients, tensors, the first inbox."""
    text = json.dumps([tensors, [(j.phase, j.clock.round, j.client) for j in jobs]])
    mark = zlib.crc32(text.encode())
    packer = Packer()
    packer.pack(jobs[0].inbox if jobs else None)
    for tensor in packer.tensors.values():
        mark = zlib.crc32(tensor.view(-1).view(torch.uint8).numpy().data, mark)
    return mark


def _packed(jobs: Sequence[ClientJob]) -> Packer:
    """The tensors of the jobs, with the same names on every rank."""
    packer = Packer()
    packer.pack([(job.inbox, job.memory, dict(job.peers)) for job in jobs])
    return packer


def _described(error: Exception) -> tuple[str, str, Place | None]:
    if isinstance(error, ClientError):
        return type(error).__name__, error.what, error.place
    return type(error).__name__, str(error), None


def _remote_error(rank: int, kind: str, text: str, place: Place | None) -> Exception:
    """The error of another rank, with the same type if it is known, so that all ranks end with the same error."""
    for known in (DivergedError, ClientError):
        if kind == known.__name__:
            return known(place, text)
    return RankError(f"rank {rank} stopped: {kind}: {text}")
