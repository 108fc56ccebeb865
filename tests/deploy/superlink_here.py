"""Flower's SuperLink in this process, on a socket of loopback, with the middleware of `ssfl deploy server`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

import uvicorn
from flwr.common.constant import SUPERLINK_NODE_ID, SubStatus
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.run import Run
from flwr.superlink.main import create_app

from ssfl.deploy.processes.process_group import free_port
from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.fleet import Credentials, FleetPort
from ssfl.deploy.transport.grid import GridPort
from ssfl.deploy.transport.guard import Guard
from ssfl.deploy.transport.held_requests import App, HeldRequests, Receive, Scope, Send
from ssfl.deploy.transport.object_trees import patch_object_trees
from ssfl.deploy.transport.port import Answer, Delivery, Failure, LinkError, Message
from ssfl.deploy.transport.superlink import UVICORN

UNAVAILABLE = flower.PullObjectResponse(object_found=True).SerializeToString()
Which = Callable[[str, bytes], bool]
"""Of the requests, by path and body."""


@dataclass
class Here:
    """A SuperLink with one run.

    cut: the requests that are lost, with their connection. cut_answers: those whose answer is lost. broken: those that
    are answered with status 500.
    """

    address: str
    state: Any
    run: int
    task: int
    token: str
    cut: Which = lambda path, body: False
    cut_answers: Which = lambda path, body: False
    broken: Which = lambda path, body: False
    asked: list[str] = field(default_factory=list)
    """The path of every request."""
    served: Counter[str] = field(default_factory=Counter)
    """By path: number of answers with a content."""
    opened: list[Any] = field(default_factory=list)
    """What must be closed at the end."""

    def server(self) -> GridPort:
        """The ServerApp's end."""
        grid: Any = flower.patched_module("grid").HttpGrid(self.address, insecure=True, token=self.token)
        grid._run = Run.create_empty(self.run)
        self.opened.append(grid)
        return GridPort(grid)

    def site(self) -> FleetPort:
        """A connected site."""
        port = FleetPort(Credentials(self.address))
        port.connect()
        self.opened.append(port)
        return port

    def stop_run(self) -> None:
        self.state.finish_task(self.task, SubStatus.STOPPED, "")

    @property
    def objects(self) -> int:
        """Number of objects in the SuperLink's memory."""
        return len(self.state.object_store)


@contextlib.contextmanager
def superlink(hold_seconds: float = 0.5) -> Iterator[Here]:
    """A SuperLink that has one running run and no sites."""
    patch_object_trees()
    app = create_app()
    state = app.state.linkstate_factory.state()
    run = state.create_run("fab", "1", "hash", {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
    (info,) = state.get_run_info(run_ids=[run])
    token = state.claim_task(info.primary_task_id)
    assert state.activate_task(info.primary_task_id)
    number = free_port()
    here = Here(f"127.0.0.1:{number}", state, run, info.primary_task_id, token)
    guarded = Guard(faulty(HeldRequests(app, hold_seconds), here))
    config = uvicorn.Config(guarded, port=number, ws="none", log_level="critical", **UVICORN)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    task = flower.TaskIdentity
    before = task._task_id, task._run_id, task._node_id
    task._task_id, task._run_id, task._node_id = info.primary_task_id, run, SUPERLINK_NODE_ID
    try:
        yield here
    finally:
        task._task_id, task._run_id, task._node_id = before
        here.cut = here.cut_answers = here.broken = lambda path, body: False
        for other in threading.enumerate():
            if other.name == "confirm":  # else it may open a connection after its client is closed
                other.join(20)
        for port in here.opened:
            port.close()
        server.should_exit = True
        thread.join(20)


def faulty(app: App, here: Here) -> App:
    """The app over a link that loses what `here` says."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        body = b""
        while (event := await receive()).get("more_body"):
            body += event["body"]
        body += event.get("body", b"")
        here.asked.append(scope["path"])
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Any:
            return unread.pop() if unread else await receive()

        async def counted(event: Any) -> None:
            if len(event.get("body", b"")) > len(UNAVAILABLE):
                here.served[scope["path"]] += 1
            await send(event)

        async def nowhere(event: Any) -> None:
            pass

        if here.cut(scope["path"], body):
            await cut(send)
        elif here.broken(scope["path"], body):
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        elif here.cut_answers(scope["path"], body):
            await app(scope, replayed, nowhere)
            await cut(send)
        else:
            await app(scope, replayed, counted)

    return call


async def cut(send: Send) -> None:
    """Close the connection before the answer is complete."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
    raise ConnectionResetError


def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until `what()`."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def delivered(site: FleetPort, max_bytes: int = 100_000_000) -> Delivery:
    """The message that is sent to this site."""
    found: list[Delivery] = []

    def receive() -> bool:
        if (delivery := site.receive(max_bytes)) is not None:
            found.append(delivery)
        return bool(found)

    until(receive)
    return found[0]


def received(server: GridPort, tickets: Sequence[str], most: int) -> list[Answer | Failure]:
    """The first answers to these tickets."""
    found: list[Answer | Failure] = []

    def receive() -> bool:
        found.extend(server.receive(tickets, most))
        return bool(found)

    until(receive)
    return found


def sent(server: GridPort, sites: Sequence[FleetPort], seconds: float, body: bytes = b"work") -> list[str]:
    """Send a message to each of these sites; the tickets."""
    to = [(site._node.node_id, Message(b"{}", body)) for site in sites]
    tickets = server.send(to, seconds)
    assert all(tickets)
    return [ticket for ticket in tickets if ticket]


def answered(site: FleetPort, delivery: Delivery, message: Message, again: bool = False) -> threading.Thread:
    """Send an answer from a thread; `again`, over a link that fails, as the site's loop does."""

    def answer() -> None:
        while True:
            try:
                site.answer(delivery, message)
                return
            except LinkError:
                if not again:
                    return
                time.sleep(0.05)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    return thread
