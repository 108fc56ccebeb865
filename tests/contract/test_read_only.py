"""What arrives is read only: `receive` changes nothing that it was given, executors nothing that it gave back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssfl.algorithms.base import ClientContext, ClientState, ClientTask, Work
from ssfl.algorithms.fedavg import FedAvg
from ssfl.core.payloads import Payload
from ssfl.engine.client.errors import ClientError
from ssfl.engine.client.memory import ClientMemories
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.state.client_store import ClientStore
from ssfl.engine.state.progress import Progress
from tests.contract.table import ALGORITHMS, EXECUTORS, FIT, PERSONAL, SIZES, finished, new_rig, run_to_end
from tests.support.rigs import float_data, make_rig, make_runner, tiny_net
from tests.support.watched import ChangedError, Unchanging, watched


def compacted(runner: ClientRunner) -> Executor:
    return SequentialExecutor(replace(runner, compaction=True))


def static(runner: ClientRunner) -> Executor:
    return BatchedExecutor(runner, block=2, static=True)


LOCAL: Mapping[str, Callable[[ClientRunner], Executor]] = {
    **EXECUTORS,
    "static": static,
    "compacted": compacted,
}


def watched_executor(name: str, executor: str, net: str) -> Unchanging:
    runner = make_runner(float_data(SIZES), tiny_net(net), watched(ALGORITHMS[name]().tasks))
    return Unchanging(LOCAL[executor](runner))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("executor", LOCAL)
@pytest.mark.parametrize("net", ["group", "batch"])
def test_nothing_that_was_received_changes(name: str, executor: str, net: str) -> None:
    watching = watched_executor(name, executor, net)
    rig = new_rig(name, net, watching)
    try:
        run_to_end(rig)
    finally:
        watching.close()
    assert watching.jobs == sum(len(replies) for _, replies in rig.recorder.passed)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_nor_in_worker_processes(name: str, workers: Callable[[str], Executor]) -> None:
    watching = Unchanging(workers(name))
    assert run_to_end(new_rig(name, "batch", watching)).equal(finished(name, "batch").models)
    assert watching.jobs > 0


@pytest.mark.parametrize("name", PERSONAL)
def test_nor_where_memories_lie_in_files(name: str, tmp_path: Path) -> None:
    watching = watched_executor(name, "sequential", "batch")
    rig = new_rig(name, "batch", watching, store=ClientStore(tmp_path, 0))
    assert run_to_end(rig).equal(finished(name, "batch").models)


def writes_into(what: str) -> ClientTask:
    """FedAvg's client with a fault."""
    task = FedAvg(FIT, 3).tasks["train"]

    def receive(
        inbox: Sequence[Payload], state: ClientState, context: ClientContext
    ) -> tuple[Work, ClientState]:
        work, remembered = task.receive(inbox, state, context)
        if what == "inbox":
            work["theta"].mul_(2)
        return work, remembered

    def hook(theta: Tensor, work: Work) -> Tensor:
        if what == "work":
            work["extra"] += 1
        return theta

    def with_extra(
        inbox: Sequence[Payload], state: ClientState, context: ClientContext
    ) -> tuple[Work, ClientState]:
        work, remembered = receive(inbox, state, context)
        return {**work, "extra": torch.zeros(1)}, remembered

    return replace(task, receive=receive if what == "inbox" else with_extra, project_weights=hook)


@pytest.mark.parametrize(
    ("what", "says"), [("inbox", "receive changed inbox"), ("work", "the executor changed work, entries")]
)
def test_the_watch_sees_a_change(what: str, says: str) -> None:
    """One that passes everything would prove nothing."""
    data, module = float_data(SIZES), tiny_net()
    runner = make_runner(data, module, watched({"train": writes_into(what)}))
    rig = make_rig(FedAvg(FIT, 3), data, module, executor=SequentialExecutor(runner))
    with pytest.raises(ClientError, match=says) as refused:
        rig.run(1)
    assert isinstance(refused.value.__cause__, ChangedError)


# ── memories that do not change ──────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["fedavg", "fedavg_ft", "sparsyfed"])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_clients_that_remember_nothing_have_no_memory(name: str, executor: str) -> None:
    assert finished(name, "batch", executor).rig.recorder.client_memories() == {}


@pytest.mark.parametrize("name", ["ssfl", "random_global"])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_memory_that_stays_the_same_is_not_written_again(name: str, executor: str) -> None:
    rig, seen = new_rig(name, "batch", executor), list[ClientMemories]()

    def save(progress: Progress) -> float:
        seen.append(progress.client_memories)
        return 0.0

    rig.loop.save = save
    run_to_end(rig)
    rig.executor.close()
    phases = [plan.phase for plan, _ in rig.recorder.passed]
    after_the_mask, end = seen[phases.index("store_mask")], seen[-1]
    assert len(after_the_mask) == len(SIZES)
    assert all(end[client] is memory for client, memory in after_the_mask.items())
