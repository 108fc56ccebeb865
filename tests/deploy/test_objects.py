"""Flower's objects are put together and sent with one copy in memory; hostile ones are refused."""

from __future__ import annotations

import gc
import json
import tracemalloc
import weakref
from collections.abc import Callable, Mapping

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

import httpx
from flwr.app import Message as FlowerMessage
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, push_objects
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.runtime import RuntimeHttpClient

from ssfl.deploy.transport.objects import TooLargeError, bounded_pull, bounded_push, inflate
from ssfl.deploy.transport.patches import free_responses
from ssfl.deploy.transport.port import Message
from ssfl.deploy.transport.records import from_records
from tests.deploy.flower_messages import contents_of, flower_message

CHUNK = 5 << 20
BODIES: Mapping[str, bytes] = {
    "empty": b"",
    "inline": b"short",
    "one_chunk": bytes(range(256)) * 8_000,
    "many_chunks": b"".join(bytes([n]) * CHUNK for n in range(4)) + b"end",
    "equal_chunks": bytes(3 * CHUNK + 7),
}


@pytest.mark.parametrize("body", BODIES)
def test_a_message_is_the_one_that_flowers_own_function_makes(body: str) -> None:
    number, contents = contents_of(flower_message(BODIES[body]))
    expected = inflate_object_from_contents(number, dict(contents))
    found = inflate(number, contents, len(BODIES[body]))
    assert not contents
    assert isinstance(expected, FlowerMessage)
    assert found.metadata == expected.metadata
    assert from_records(found.content) == from_records(expected.content) == Message(b"{}", BODIES[body])


def peak_of(make: Callable[[], object]) -> float:
    """Largest memory in bodies of "many_chunks" beyond what is there before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        made = make()
        assert made is not None
        return (tracemalloc.get_traced_memory()[1] - before) / len(BODIES["many_chunks"])
    finally:
        tracemalloc.stop()


def test_a_message_is_put_together_without_a_second_copy() -> None:
    """The chunks are there before; Flower's function needs them twice more."""

    def pulled(inflate: Callable[[str, dict[str, bytes]], object]) -> float:
        number, contents = contents_of(flower_message(BODIES["many_chunks"]))
        return peak_of(lambda: inflate(number, contents))

    # Memory of the chunks was taken before the trace, so that freeing them counts as nothing.
    assert pulled(inflate_object_from_contents) > 2
    assert pulled(lambda number, contents: inflate(number, contents, 1 << 30)) < 1.2


def array_of(contents: Mapping[str, bytes]) -> str:
    (key,) = (key for key, raw in contents.items() if raw.startswith(b"Array "))
    return key


def with_array(contents: dict[str, bytes], **fields: object) -> dict[str, bytes]:
    """The objects, with other fields in the array's body: what an honest site would not write."""
    key = array_of(contents)
    head, _, body = contents[key].partition(b"\0")
    body = json.dumps(json.loads(body) | fields).encode()
    kind, children, _ = head.split(b" ")
    return contents | {key: b" ".join((kind, children, str(len(body)).encode())) + b"\0" + body}


def test_a_chunk_that_is_repeated_counts_as_often_as_it_is_repeated() -> None:
    """5 MiB are sent; 5 GB would be in memory."""
    number, contents = contents_of(flower_message(BODIES["equal_chunks"]))
    bomb = with_array(contents, arraychunk_ids=[0] * 1_000)
    tracemalloc.start()
    with pytest.raises(TooLargeError, match="more than 20000000 bytes"):
        inflate(number, bomb, 20_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


HOSTILE: Mapping[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "index": lambda c: with_array(c, arraychunk_ids=[99]),
    "no_list": lambda c: with_array(c, arraychunk_ids=5),
    "texts": lambda c: with_array(c, arraychunk_ids=["a"]),
    "shape": lambda c: with_array(c, shape=7),
    "type": lambda c: with_array(c, dtype=[1]),
    "missing_chunk": lambda c: {k: v for k, v in c.items() if not v.startswith(b"ArrayChunk")},
    "not_json": lambda c: c | {array_of(c): c[array_of(c)].replace(b"{", b"[", 1)},
    "unknown_kind": lambda c: c | {array_of(c): c[array_of(c)].replace(b"Array ", b"Other ")},
    "no_head": lambda c: c | {array_of(c): b"xyz"},
    "length": lambda c: {k: v.replace(b" 2048000\0", b" 9999999\0") for k, v in c.items()},
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_objects_that_are_no_message_are_refused_in_one_way(fault: str) -> None:
    number, contents = contents_of(flower_message(BODIES["one_chunk"]))
    damaged = HOSTILE[fault](contents)
    assert damaged != contents
    with pytest.raises(ValueError, match="objects that cannot be read"):
        inflate(number, damaged, 1 << 30)


def pulled(contents: Mapping[str, bytes], max_bytes: int) -> tuple[dict[str, bytes], list[str]]:
    """What `bounded_pull` returns, and which objects it asked for."""
    asked: list[str] = []

    def pull(object_id: str) -> bytes:
        asked.append(object_id)
        return contents[object_id]

    try:
        return bounded_pull(list(contents), pull, max_bytes), asked
    except TooLargeError as error:
        error.add_note(f"asked for {len(asked)}")
        raise


@pytest.mark.parametrize("body", BODIES)
def test_the_objects_of_a_message_are_pulled_within_a_limit_of_its_size(body: str) -> None:
    number, contents = contents_of(flower_message(BODIES[body]))
    found, asked = pulled(contents, len(BODIES[body]))
    assert found == contents
    assert sorted(asked) == sorted(contents)
    assert from_records(inflate(number, found, len(BODIES[body])).content).body == BODIES[body]


def test_a_message_over_the_limit_is_not_pulled_to_its_end() -> None:
    """200 MB are announced, the limit is 20 MB: at most the objects that are under way at once are read."""
    blob = b"x" * CHUNK
    contents = {f"{n:064x}": blob for n in range(34)}
    with pytest.raises(TooLargeError, match="more than 20000000 bytes") as caught:
        pulled(contents, 20_000_000)
    asked = int(caught.value.__notes__[0].split()[-1])
    assert asked * CHUNK < 20_000_000 + 12 * CHUNK


@pytest.mark.parametrize(("max_bytes", "most"), [(0, 16), (1_000_000, 16), (20_000_000, 35)])
def test_too_many_objects_are_refused_before_the_first_is_pulled(max_bytes: int, most: int) -> None:
    """Each is one request; an array of this size needs a quarter of them."""
    assert len(pulled({f"{n:064x}": b"x" for n in range(most)}, max_bytes)[0]) == most
    with pytest.raises(TooLargeError, match=f"{most + 1} objects; at most {most} are accepted") as caught:
        pulled({f"{n:064x}": b"x" for n in range(most + 1)}, max_bytes)
    assert caught.value.__notes__ == ["asked for 0"]


def test_another_object_than_a_message_is_refused() -> None:
    _, contents = contents_of(flower_message(b"short"))
    record = next(key for key, raw in contents.items() if raw.startswith(b"ConfigRecord"))
    with pytest.raises(ValueError, match="a ConfigRecord instead of a message"):
        inflate(record, contents, 1 << 30)


class Counted:
    """An object whose bytes are counted as long as they exist."""

    alive = most = 0

    def deflate(self) -> bytes:
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)
        return b"x"


@pytest.mark.parametrize("wanted", [None, {"3", "5"}])
def test_objects_are_pushed_as_flower_does_with_few_in_memory(wanted: set[str] | None) -> None:
    Counted.alive = Counted.most = 0
    pushed: list[str] = []

    def push(key: str, raw: bytes) -> None:
        pushed.append(key)
        Counted.alive -= 1

    objects: dict[str, object] = {str(n): Counted() for n in range(40)}
    expected: list[str] = []
    push_objects(
        dict(objects),  # type: ignore[arg-type]
        lambda key, raw: expected.append(key),
        object_ids_to_push=wanted,
    )
    Counted.alive = Counted.most = 0
    bounded_push(objects, push, object_ids_to_push=wanted)
    assert sorted(pushed) == sorted(expected)
    assert not objects
    assert Counted.most <= 2


def test_an_object_that_cannot_be_pushed_ends_the_push() -> None:
    def push(key: str, raw: bytes) -> None:
        if key == "3":
            raise OSError("cut")

    with pytest.raises(OSError, match="cut"):
        bounded_push({str(n): Counted() for n in range(1_000)}, push)


def test_an_answers_bytes_are_freed_with_it() -> None:
    """Not when the garbage collector comes: each has 5 MiB."""
    content = PullObjectResponse(object_found=True, object_content=b"x").SerializeToString()
    answers: list[weakref.ref[httpx.Response]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        found = httpx.Response(200, content=content, request=request)
        answers.append(weakref.ref(found))
        return found

    for _ in range(2):  # the second call changes nothing
        free_responses()
        send = ProtobufClient._send
    assert not hasattr(send.__wrapped__, "__wrapped__")  # type: ignore[attr-defined]
    client = RuntimeHttpClient.from_server_address("127.0.0.1:1", True, None, [])
    client._client = httpx.Client(transport=httpx.MockTransport(answer))
    gc.collect()
    gc.disable()
    try:
        assert client.PullObject(PullObjectRequest()).object_content == b"x"
        assert len(answers) == 1
        assert answers[0]() is None
    finally:
        gc.enable()
        client.close()
