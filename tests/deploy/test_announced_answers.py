"""The server asks for all answers with one request, and pulls a large one when the previous one has been used."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

import httpx
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.grid import ONE_BY_ONE_BYTES, GridPort
from ssfl.deploy.transport.port import Answer, Failure, Message
from tests.deploy.flower_messages import contents_of, flower_message

HttpGrid: Any = flower.patched_module("grid").HttpGrid
LARGE = ONE_BY_ONE_BYTES + 1


class Client:
    """The Runtime API of a SuperLink with one answer for each of some tickets; records what it was asked."""

    def __init__(self, **bodies: bytes | flower.Error) -> None:
        self.waiting = {ticket: flower_message(body, ticket) for ticket, body in bodies.items()}
        self.objects: dict[str, bytes] = {}
        self.polls: list[list[str]] = []
        self.confirmed: list[str] = []
        self.broken: type[Exception] | None = None
        self.named = ""
        """The ticket that the objects of an answer name, if not that of its head."""
        self.status = 200

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:
        response = httpx.Response(self.status, request=httpx.Request("POST", "http://superlink"))
        response.raise_for_status()
        self.polls.append(list(request.message_ids))
        heads, trees = [], []
        for ticket in request.message_ids:
            if ticket in self.waiting:
                message = self.waiting.pop(ticket)
                if self.named:
                    message.metadata.__dict__["_reply_to_message_id"] = self.named
                number, contents = contents_of(message)
                self.objects |= contents
                message.metadata.__dict__["_message_id"] = number
                trees.append(flower.get_object_tree(message))
                message.metadata.__dict__["_reply_to_message_id"] = ticket
                bare = flower.remove_content_from_message(message) if message.has_content() else message
                heads.append(flower.message_to_proto(bare))
        return PullAppMessagesResponse(messages_list=heads, message_object_trees=trees)

    def PullObject(self, request: Any) -> PullObjectResponse:
        if self.broken is not None:
            raise self.broken("broken")
        found = self.objects.get(request.object_id)
        return PullObjectResponse(
            object_found=found is not None, object_available=True, object_content=found or b""
        )

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed.append(request.message_object_id)


def port_on(client: Client) -> GridPort:
    grid = HttpGrid(token="token")
    grid._client, grid._run = client, types.SimpleNamespace(run_id=7)
    return GridPort(grid)


@pytest.fixture(autouse=True)
def run_of_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HttpGrid, "run", property(lambda grid: grid._run))


def bodies(found: Sequence[Answer | Failure]) -> list[bytes]:
    return [answer.message.body for answer in found if isinstance(answer, Answer)]


def test_small_answers_come_together_and_large_ones_alone_and_are_asked_for_once() -> None:
    client = Client(a=b"one", c=b"two")
    port = port_on(client)
    assert bodies(port.receive(["a", "b", "c"], 1_000)) == [b"one", b"two"]
    assert port.receive(["b"], 1_000) == ()
    assert client.polls == [["a", "b", "c"], ["b"]]
    assert len(client.confirmed) == 2

    client = Client(a=b"one", c=b"two")
    port = port_on(client)
    assert bodies(port.receive(["a", "b", "c"], LARGE)) == [b"one"]
    assert len(client.confirmed) == 1
    assert bodies(port.receive(["b", "c"], LARGE)) == [b"two"]
    assert port.receive(["b"], LARGE) == ()
    assert client.polls == [["a", "b", "c"], ["b"], ["b"]]
    assert port.receive([], LARGE) == ()


def test_an_answer_that_is_no_longer_expected_is_dropped() -> None:
    client = Client(a=b"one", b=b"two")
    port = port_on(client)
    assert bodies(port.receive(["a", "b"], LARGE)) == [b"one"]
    assert port.receive(["c"], LARGE) == ()
    assert client.polls == [["a", "b"], ["c"]]


def test_an_answer_that_cannot_be_read_fails_alone() -> None:
    client = Client(a=b"one", b=b"two")
    port = port_on(client)
    client.broken = ValueError
    (failure,) = port.receive(["a", "b"], LARGE)
    assert isinstance(failure, Failure)
    assert (failure.ticket, failure.kind) == ("a", "refused")
    client.broken = None
    assert bodies(port.receive(["b"], LARGE)) == [b"two"]
    assert len(client.confirmed) == 2, "the SuperLink keeps neither"


def test_a_fault_of_the_superlink_is_not_one_of_the_answer() -> None:
    client = Client(a=b"one", b=b"two")
    port = port_on(client)
    client.broken = httpx.ReadTimeout
    assert port.receive(["a", "b"], LARGE) == ()
    client.broken = None
    assert bodies(port.receive(["a", "b"], LARGE)) == [b"one"]
    assert bodies(port.receive(["b"], LARGE)) == [b"two"]


def test_an_answer_counts_although_its_confirmation_fails() -> None:
    client = Client(a=b"one")
    port = port_on(client)

    def failing(request: Any) -> None:
        raise httpx.ReadTimeout("no answer")

    client.ConfirmMessageReceived = failing  # type: ignore[method-assign]
    assert bodies(port.receive(["a"], LARGE)) == [b"one"]


def test_an_answer_over_the_limit_is_refused_and_one_without_its_objects_has_expired() -> None:
    client = Client(a=bytes(3_000_000))
    (failure,) = port_on(client).receive(["a"], 1_000)
    assert isinstance(failure, Failure)
    assert failure.kind == "refused"
    assert "more than 1000 bytes" in failure.reason

    client = Client(a=b"one")
    port = port_on(client)
    client.objects = _Nothing()
    (failure,) = port.receive(["a"], 1_000)
    assert isinstance(failure, Failure)
    assert failure.kind == "expired"


class _Nothing(dict[str, bytes]):
    def __ior__(self, other: Any) -> _Nothing:  # type: ignore[override, misc]
        return self


def test_a_reply_that_names_another_ticket_is_the_answer_to_its_own() -> None:
    """The SuperLink checks the announced head, not the objects."""
    client = Client(a=b"one")
    client.named = "b"
    assert port_on(client).receive(["a", "b"], 1_000) == (Answer("a", Message(b"{}", b"one")),)


def test_a_poll_is_repeated_after_a_fault_of_the_server_and_ends_the_run_when_it_is_refused() -> None:
    client = Client(a=b"one")
    port = port_on(client)
    client.status = 500
    assert port.receive(["a"], 1_000) == ()
    client.status = 401
    with pytest.raises(httpx.HTTPStatusError):
        port.receive(["a"], 1_000)
    client.status = 200
    assert bodies(port.receive(["a"], 1_000)) == [b"one"]


def test_an_error_of_the_transport_is_a_failure() -> None:
    client = Client(a=flower.Error(code=flower.ErrorCode.NODE_UNAVAILABLE, reason="gone"))
    assert port_on(client).receive(["a"], 1_000) == (Failure("a", "offline", "gone"),)


def test_messages_of_flowers_simulation_runtime_are_handed_over_in_memory() -> None:
    class Memory:
        def pull_messages(self, tickets: Sequence[str]) -> list[Any]:
            return [flower_message(b"body", "a")]

    assert GridPort(Memory()).receive(["a"], 1_000) == (Answer("a", Message(b"{}", b"body")),)
