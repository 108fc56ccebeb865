"""Worker processes that serve every row of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.processes.executor import ProcessExecutor
from tests.contract.table import ALGORITHMS, SIZES
from tests.support.executor_cases import Named
from tests.support.rigs import float_data, make_runner, tiny_net
from tests.support.watched import watched


@pytest.fixture(scope="session")
def workers() -> Iterator[Callable[[str], Executor]]:
    """Row -> its executor: two worker processes over the network with BatchNorm, their tasks watched."""
    if not Path("/proc/self/status").exists():
        pytest.skip("workers need Linux")
    tasks = {
        f"{name}/{phase}": task
        for name, make in ALGORITHMS.items()
        for phase, task in watched(make().tasks).items()
    }
    executor = ProcessExecutor(make_runner(float_data(SIZES), tiny_net("batch"), tasks), 2)
    yield partial(Named, executor)
    executor.close()
