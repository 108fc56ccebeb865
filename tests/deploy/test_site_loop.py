"""A site's loop: an answer that the server cannot accept any longer does not keep the site from the next messages."""

from __future__ import annotations

import threading

import pytest

from ssfl.deploy.log import EventLog
from ssfl.deploy.site import loop
from ssfl.deploy.transport.port import Delivery, LinkError, Message


class Restarted:
    """A server that is restarted while the site works: it does not know the node until the site connects again."""

    def __init__(self, stop: threading.Event, error: LinkError) -> None:
        self.stop, self.error = stop, error
        self.calls: list[str] = []

    def connect(self) -> None:
        self.calls.append("connect")

    def receive(self, max_body_bytes: int) -> Delivery:
        self.calls.append("receive")
        return Delivery(None, "1", Message(b"{}"), 600.0)

    def answer(self, delivery: Delivery, message: Message | str) -> None:
        self.calls.append("answer")
        if self.calls.count("answer") == 2:
            self.stop.set()
            return
        raise self.error

    def close(self) -> None:
        pass


class Ended(threading.Event):
    """Does not wait."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (LinkError("unknown key", again=False), ["connect", "receive", "answer"] * 2),
        (LinkError("expired", too_late=True), ["connect", "receive", "answer"] * 2),
        (LinkError("cut"), ["connect", "receive", "answer", "answer"]),
    ],
)
def test_an_answer_is_sent_again_only_over_a_broken_link(error: LinkError, calls: list[str]) -> None:
    stop = Ended()
    port = Restarted(stop, error)
    assert loop.serve(port, lambda message: message, EventLog("site", None, None), stop, 1)
    assert port.calls == calls
