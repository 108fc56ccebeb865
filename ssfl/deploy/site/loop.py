"""A site's loop: stay connected, receive one message at a time, answer it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import final

from ssfl.deploy.log import EventLog
from ssfl.deploy.transport.port import Delivery, LinkError, Message, SitePort

FAST_SECONDS = 0.1
"""Seconds between two polls while a message is expected soon. A poll costs 5-10 ms of CPU time on both sides."""
LEAST_SECONDS = 0.02
"""Least seconds between the answer to a poll and the next poll, also if the poll took longer than the interval."""
IDLE_SECONDS = 1.0
"""Seconds between two polls without recent messages."""
EXPECTED_SECONDS = 20.0
"""Seconds after its last answer in which a site polls often."""
LONGEST_WAIT_SECONDS = 10.0
"""Longest wait between two attempts to connect or to send an answer."""
REPEAT_WARNING_SECONDS = 60.0

Handler = Callable[[Message], Message | str]


@final
class Pace:
    """The poll interval: short after an answer, then increasing."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = now() - EXPECTED_SECONDS

    def answered(self) -> None:
        """Record that a message has just been answered."""
        self._last = self._now()

    def seconds(self) -> float:
        """The current poll interval, from FAST_SECONDS to IDLE_SECONDS."""
        silent = self._now() - self._last
        if silent < EXPECTED_SECONDS:
            return FAST_SECONDS
        return min(IDLE_SECONDS, FAST_SECONDS * silent / EXPECTED_SECONDS * 2)


def serve(
    port: SitePort,
    handle: Handler,
    log: EventLog,
    stop: threading.Event,
    max_body_bytes: int,
    patience_seconds: float | None = None,
) -> bool:
    """Serve until `stop` is set. Returns False if the site gave up.

    patience_seconds: give up after so long without a connection; None: never.
    """
    pace, retry = Pace(), _Retry(log, patience_seconds)
    while not stop.is_set():
        try:
            port.connect()
            asked = time.monotonic()
            delivery = port.receive(max_body_bytes)
            retry.worked()
            if delivery is None:  # the time of the poll itself counts as part of the interval
                stop.wait(max(LEAST_SECONDS, asked + pace.seconds() - time.monotonic()))
                continue
            _answer(port, delivery, handle, log, stop)
            pace.answered()
            del delivery  # before the next one is received
        except LinkError as error:
            if not retry.wait(error, stop):
                return False
    return True


def _answer(
    port: SitePort, delivery: Delivery, handle: Handler, log: EventLog, stop: threading.Event
) -> None:
    """Handle a message and send the answer; retry until the server no longer accepts it.

    A SuperLink that was restarted does not know the node or the message: the site must connect again.
    """
    end = time.monotonic() + delivery.seconds
    answer = handle(delivery.message)
    pause = 1.0
    while True:
        try:
            port.answer(delivery, answer)
            return
        except LinkError as error:
            dropped = error.too_late or not error.again or time.monotonic() >= end
            text = f"{error}; {'the server continues without it' if dropped else 'trying again'}"
            log.warning("answer_not_sent", text)
            if dropped:
                return
        stop.wait(pause)
        if stop.is_set():
            return
        pause = min(LONGEST_WAIT_SECONDS, 1.6 * pause)


@final
class _Retry:
    """Waits between connection attempts; logs the reason once a minute, and a restored connection."""

    def __init__(self, log: EventLog, patience_seconds: float | None) -> None:
        self._log = log
        self._patience = patience_seconds
        self._since: float | None = None
        self._last_logged = ("", 0.0)
        self._pause = 0.5

    def worked(self) -> None:
        if self._since is not None:
            self._log.info("connected", f"after {time.monotonic() - self._since:.0f} s")
        elif not self._last_logged[0]:
            self._log.info("connected")
            self._last_logged = ("connected", 0.0)
        self._since = None
        self._pause = 0.5

    def wait(self, error: LinkError, stop: threading.Event) -> bool:
        """Wait before the next attempt; False if the site gives up."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        text, at = self._last_logged
        if str(error) != text or now - at >= REPEAT_WARNING_SECONDS:
            self._log.warning("not_connected", f"{error}; trying again")
            self._last_logged = (str(error), now)
        if self._patience is not None and now - self._since >= self._patience:
            self._log.error("gave_up", f"after {self._patience:.0f} s: {error}")
            return False
        stop.wait(self._pause)
        self._pause = min(LONGEST_WAIT_SECONDS, self._pause * 1.6)
        return True
