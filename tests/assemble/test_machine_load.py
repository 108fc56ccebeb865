"""The share of processor time of other processes: from given numbers, and with a process in a busy loop."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from ssfl.assemble import machine_load
from ssfl.assemble.machine_load import Moment, others_share


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_load, "_processors", lambda: {0, 1})
    start = Moment(10.0, 1.0, 100.0)
    assert others_share(start, Moment(14.0, 5.0, 104.0)) == 0  # all of it was ours
    assert others_share(start, Moment(14.0, 3.0, 106.0)) == pytest.approx(0.5)  # 4 of 2 x 4 seconds
    assert others_share(start, Moment(14.0, 5.0, 103.9)) == 0  # clocks of different grain
    assert others_share(start, Moment(14.0, 1.0, 120.0)) == 1


def test_without_counts_the_load_average_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_load, "_processors", lambda: {0, 1})
    for load, share in ((0.4, 0.0), (2.0, 0.5), (9.0, 1.0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert others_share(Moment(0.0, 0.0, None), Moment(1.0, 1.0, None)) == share


@pytest.mark.skipif(not machine_load.STAT.exists(), reason="reads Linux's /proc")
def test_a_process_that_counts_is_seen() -> None:
    """A busy loop uses one of the processors that this process may use."""
    share = 0.6 / len(os.sched_getaffinity(0))
    code = "import sys\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            since = Moment.now()
            time.sleep(1.0)
            assert others_share(since, Moment.now()) > share
        finally:
            other.kill()
