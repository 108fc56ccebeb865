"""Several processes, on one host or many, that run the same loop and share out a cohort's clients.

Draws are named, so every rank makes the same plan. Each computes its share of the jobs through an executor of its
own. Where the server needs no more than the mean of the replies, one reduction gives it to all ranks (rank_means.py);
else, or where the bits of one process are asked for, all ranks gather all replies (docs/engine.md: the cost).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, final

import torch
from safetensors.torch import load, save
from torch import Tensor

from ssfl.algorithms.base import ClientReply, ClientReport
from ssfl.core.layout import Layout
from ssfl.core.metrics import Tally
from ssfl.core.payloads import DenseValues, MaskBits, MaskedValues, Payload, SparseValues
from ssfl.engine.executors import Executor
from ssfl.engine.jobs import DivergedError, Job, Outcome
from ssfl.engine.local import ClientRunner
from ssfl.engine.rank_means import Outline, PartialMean, outlines, payload_of, same
from ssfl.engine.records import Packer, apart, unpack
from ssfl.engine.shares import row_slices

T = TypeVar("T")
OUTCOME_RECORDS = (
    ClientReply,
    ClientReport,
    Tally,
    Payload,
    DenseValues,
    MaskBits,
    MaskedValues,
    SparseValues,
)
_LENGTH = struct.Struct("<Q")


class RankError(RuntimeError):
    """Another rank died, failed, or does not compute the same run: says which and what to do."""


class RefusedByFirstRank(ValueError):
    """Bad input that rank 0 has found, and tells the user itself."""

    first_rank_says_it = True


class Link(Protocol):
    """What connects the ranks."""

    @property
    def rank(self) -> int:
        """This process's number, from 0; rank 0 writes the run folder."""
        ...

    @property
    def size(self) -> int:
        """How many ranks there are."""
        ...

    def gather(self, message: bytes) -> list[bytes]:
        """Every rank's message, by rank; all ranks must call it. RankError when one is gone."""
        ...

    def add_up(self, vector: Tensor) -> Tensor:
        """The sum of all ranks' vectors of one shape, the same bits on all; may overwrite `vector`."""
        ...


@final
class Alone:
    """The link of a run in one process."""

    rank = 0
    size = 1

    def gather(self, message: bytes) -> list[bytes]:
        """The message itself."""
        return [message]

    def add_up(self, vector: Tensor) -> Tensor:
        """The vector itself."""
        return vector


def shares(examples: Sequence[int], size: int) -> list[list[int]]:
    """Positions of the jobs of each rank, ascending: the longest job first to whoever has least (ties: lower number).

    `examples` are the jobs' training examples. Every rank computes the same shares; some may be empty.
    """
    loads, out = [0] * size, [[] for _ in range(size)]  # type: list[int], list[list[int]]
    for position in sorted(range(len(examples)), key=lambda i: (-examples[i], i)):
        rank = min(range(size), key=lambda r: (loads[r], r))
        loads[rank] += max(examples[position], 1)
        out[rank].append(position)
    return [sorted(share) for share in out]


def to_bytes(value: Any, packer: Packer | None = None) -> bytes:
    """A value of numbers, strings, tensors and dataclasses as bytes, without pickle.

    Tensors that `packer` holds already are named, not written: the reader must know them too.
    """
    packer = packer or Packer()
    known = set(packer.tensors)
    head = json.dumps(packer.pack(value)).encode()
    new = {name: t for name, t in packer.tensors.items() if name not in known}
    return _LENGTH.pack(len(head)) + head + save(apart(new))


def from_bytes(raw: bytes, records: Sequence[type[Any]], known: Mapping[str, Tensor] | None = None) -> Any:
    """The value of `to_bytes`; `known` gives the tensors that were only named."""
    (length,) = _LENGTH.unpack_from(raw)
    start = _LENGTH.size + length
    tensors = {**(known or {}), **load(raw[start:])}
    return unpack(json.loads(raw[_LENGTH.size : start]), tensors, records)


def first_decides(link: Link, decide: Callable[[], T], records: Sequence[type[Any]] = ()) -> T:
    """What rank 0's `decide` gives, on every rank.

    If it fails there: everywhere else RefusedByFirstRank for bad input (one of our ValueErrors), else RankError.
    """
    if link.size == 1:
        return decide()
    if link.rank:
        how, value = from_bytes(link.gather(b"")[0], records)
        if how == "refused":
            raise RefusedByFirstRank(value)
        if how == "failed":
            raise RankError(f"rank 0 stopped: {value}")
        return value  # type: ignore[no-any-return]
    try:
        own = decide()
    except Exception as error:
        refused = isinstance(error, ValueError) and type(error).__module__.partition(".")[0] == "ssfl"
        link.gather(to_bytes(("refused" if refused else "failed", str(error))))
        raise
    link.gather(to_bytes(("decided", own)))
    return own


class RankedExecutor:
    """This rank's share through `inner`, the others' from their ranks; outcomes as if all had been computed here.

    With `split_evaluation` the whole test set is shared out too, in whole evaluation batches; without, every rank
    evaluates all of it through its own executor (for one that has worker processes).
    """

    def __init__(
        self,
        inner: Executor,
        runner: ClientRunner,
        link: Link,
        split_evaluation: bool = True,
        by_mean: bool = False,
    ) -> None:
        """by_mean: one reduction instead of all replies, in phases whose task is `averaged_by` something."""
        self.inner = inner
        self.by_mean = by_mean
        self.runner = runner
        self.link = link
        self.split_evaluation = split_evaluation

    @property
    def layout(self) -> Layout:
        """The runner's."""
        return self.runner.layout

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """All outcomes, in the jobs' order, after every rank has computed its share."""
        weighting = self.runner.tasks[jobs[0].phase].averaged_by if jobs and self.by_mean else ""
        if weighting:
            yield from self._averaged(jobs, weighting)
            return
        counts = [self.runner.federation.examples(j.instruction.client) for j in jobs]
        mine = shares(counts, self.link.size)[self.link.rank]
        known = Packer()  # what all ranks hold already is not sent again
        known.pack(list(jobs))

        def compute() -> Any:
            computed = zip(mine, self.inner.run([jobs[i] for i in mine]), strict=True)
            return [(i, o.reply, _changed(o, jobs[i])) for i, o in computed]

        outcomes: dict[int, Outcome] = {}
        for told in self._share_out(compute, OUTCOME_RECORDS, known, fingerprint(jobs, len(known.tensors))):
            for position, reply, state in told:
                outcomes[position] = Outcome(reply, jobs[position].state if state is None else state)
        yield from (outcomes[i] for i in range(len(jobs)))

    def _averaged(self, jobs: Sequence[Job], weighting: str) -> Iterator[Outcome]:
        """Outcomes whose payloads all carry the mean of the replies."""
        counts = [self.runner.federation.examples(j.instruction.client) for j in jobs]
        weights = counts if weighting == "examples" else [1] * len(jobs)
        mine = shares(counts, self.link.size)[self.link.rank]
        known, mean = Packer(), PartialMean()
        known.pack(list(jobs))

        def compute() -> Any:
            told = []
            for i, o in zip(mine, self.inner.run([jobs[i] for i in mine]), strict=True):
                mean.add(o.reply.payload, weights[i] / sum(weights))
                told.append((i, o.reply.report, outlines(o.reply.payload), _changed(o, jobs[i])))
            return told

        mark = fingerprint(jobs, len(known.tensors))
        ranks = self._share_out(compute, (ClientReport, Tally, Outline), known, mark)
        told = {position: rest for rank in ranks for position, *rest in rank}
        parts = same(tuple(parts) for _, parts, _ in told.values())
        means = [self.link.add_up(mean.of(part)) for part in parts]
        for i, job in enumerate(jobs):
            report, _, state = told[i]
            client = job.instruction.client
            reply = ClientReply(client, payload_of(parts, means, client), report)
            yield Outcome(reply, job.state if state is None else state)

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The test set in slices of whole evaluation batches, one slice a rank."""
        if not self.split_evaluation:
            return self.inner.predict(theta)
        total = len(self.runner.federation.arrays.test_y)
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
        """Every rank's answer, by rank. A failure here or there ends the work on all ranks."""
        value, failure = None, None
        before = dict(known.tensors)
        try:
            value = compute()
            message = to_bytes(("done", value), known)
        except Exception as error:  # the others must hear of it before it goes its way
            failure = error
            message = to_bytes(("failed", (type(error).__name__, str(error))))
        answers = self.link.gather(_LENGTH.pack(mark) + message)
        if failure is not None:
            raise failure
        return [
            value if rank == self.link.rank else self._answer(rank, raw, records, before, mark)
            for rank, raw in enumerate(answers)
        ]

    def _answer(
        self, rank: int, raw: bytes, records: Sequence[type[Any]], known: Mapping[str, Tensor], mark: int
    ) -> Any:
        if _LENGTH.unpack_from(raw) != (mark,):
            raise RankError(
                f"rank {rank} does not compute the same run as rank {self.link.rank}: start all ranks with the "
                "same words, the same program and data, on the same kind of processor"
            )
        kind, body = from_bytes(raw[_LENGTH.size :], records, known)
        if kind == "failed":
            raise _their_error(rank, *body)
        return body


def fingerprint(jobs: Sequence[Job], tensors: int) -> int:
    """A number that two ranks with different plans or models hardly share: clients, tensors, the first inbox."""
    said = json.dumps([tensors, [(j.phase, j.clock.round, j.instruction.client) for j in jobs]])
    mark = zlib.crc32(said.encode())
    packer = Packer()
    packer.pack(jobs[0].instruction if jobs else None)
    for tensor in packer.tensors.values():
        mark = zlib.crc32(tensor.view(-1).view(torch.uint8).numpy().data, mark)
    return mark


def _changed(outcome: Outcome, job: Job) -> Any:
    return None if outcome.state is job.state else outcome.state


def _their_error(rank: int, kind: str, text: str) -> Exception:
    """The same error on every rank where all know it, so that all end alike."""
    if kind == DivergedError.__name__:
        return DivergedError(text)
    return RankError(f"rank {rank} stopped: {kind}: {text}")
