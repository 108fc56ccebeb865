"""A stop signal is not lost if a library suppresses its KeyboardInterrupt."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from ssfl.stop_signals import STOPS, StopHandler, check_stop, stop_requested


@pytest.fixture
def handler() -> Iterator[StopHandler]:
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOPS}
    found = StopHandler()
    found.install()
    yield found
    for number, old in before.items():
        signal.signal(number, old)


def swallowed(number: signal.Signals) -> None:
    """A signal whose KeyboardInterrupt is suppressed, as in a finalizer."""
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), number)
        time.sleep(1)  # the handler runs during the sleep


def test_without_our_handler_nothing_is_requested() -> None:
    assert not stop_requested()
    check_stop()


@pytest.mark.parametrize("number", STOPS)
def test_a_swallowed_stop_is_found_later(handler: StopHandler, number: signal.Signals) -> None:
    check_stop()
    swallowed(number)
    assert handler.received == [number]
    with pytest.raises(KeyboardInterrupt):
        check_stop()


def test_nohup_stays(handler: StopHandler) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    StopHandler().install()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert isinstance(signal.getsignal(signal.SIGTERM), StopHandler)
