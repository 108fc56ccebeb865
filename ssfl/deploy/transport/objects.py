"""Transfer of the objects that a Flower message consists of: parallel, with limits on bytes, requests and time.

Flower's own functions wait seconds between polls, hold several copies of an array, and set no limit.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from flwr.app import Array
from flwr.app import Message as FlowerMessage

from ssfl.deploy.transport import internals as flower

BACKOFF_SECONDS = 0.05
"""First wait for an object that is not uploaded yet; flwr's waits of 1 s, 2 s, ... would delay every fast poll."""
BACKOFF_CAP_SECONDS = 0.5


class TooLargeError(ValueError):
    """More objects or bytes than the receiver allows."""


class IncompleteError(flower.ObjectPullError):
    """An object has not reached the SuperLink in time; it may arrive later."""


def bounded_pull(
    object_ids: list[str],
    pull: Callable[[str], bytes],
    max_bytes: int,
    *,
    at_once: int | None = None,
    within_seconds: float | None = None,
    contents: dict[str, bytes] | None = None,
) -> dict[str, bytes]:
    """The contents of an object tree, `at_once` requests at a time; None: Flower's number.

    contents: what has been pulled before; what is pulled now is added to it, also if the pull fails.

    Raises TooLargeError after the object that exceeds the limit: flwr splits arrays into chunks of 5 MiB; each object
    is one request, so the count is checked before the first one. Raises IncompleteError for an object that has not
    reached the SuperLink `within_seconds` (None: PULL_MAX_TIME): the transfer of
    available objects has no limit of time.
    """
    within_seconds = flower.PULL_MAX_TIME if within_seconds is None else within_seconds
    most = 16 + max_bytes // (1 << 20)
    if len(object_ids) > most:
        raise TooLargeError(f"{len(object_ids)} objects; at most {most} are accepted")
    found = {} if contents is None else contents
    total, end = sum(map(len, found.values())), time.monotonic() + within_seconds
    lock, stop = threading.Lock(), threading.Event()

    def one(object_id: str) -> None:
        nonlocal total
        try:
            raw = _available(object_id, pull, stop, end)
            with lock:
                total += len(raw)
                if total > max_bytes + (1 << 20):
                    raise TooLargeError(f"more than {max_bytes} bytes")
                if not stop.is_set():  # a request that is left behind must not change `contents` later
                    found[object_id] = raw
        except IncompleteError:
            raise
        except BaseException:
            stop.set()
            raise

    missing = [object_id for object_id in dict.fromkeys(object_ids) if object_id not in found]
    executor = ThreadPoolExecutor(
        at_once or flower.get_num_workers(flower.FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS)
    )
    try:
        for done in as_completed([executor.submit(one, object_id) for object_id in missing]):
            done.result()
        return found
    except IncompleteError:  # all waits end now; an object that is under way need not be pulled again
        executor.shutdown(cancel_futures=True)
        raise
    finally:
        with lock:
            stop.set()
        executor.shutdown(wait=False, cancel_futures=True)


def _available(object_id: str, pull: Callable[[str], bytes], stop: threading.Event, end: float) -> bytes:
    """An object, which may still be on its way to the SuperLink; no bytes if the pull of another one has failed."""
    pause = BACKOFF_SECONDS
    while not stop.is_set():
        try:
            return pull(object_id)
        except flower.ObjectUnavailableError:
            if time.monotonic() >= end:
                raise IncompleteError(object_id, "it was not sent completely") from None
            stop.wait(pause * random.uniform(0.8, 1.2))
            pause = min(2 * pause, BACKOFF_CAP_SECONDS)
    return b""


def bounded_push(
    objects: dict[str, Any],
    push_object_fn: Callable[[str, bytes], None],
    *,
    object_ids_to_push: set[str] | None = None,
    at_once: int | None = None,
) -> None:
    """Push objects and remove them. Flower's `push_objects` holds the bytes of all of them in memory.

    at_once: requests at a time; None: Flower's number, which is also the limit for the large chunks of arrays.
    """
    few = flower.get_num_workers(flower.FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES)
    room, stop = threading.BoundedSemaphore(few), threading.Event()

    def one(object_id: str, item: Any) -> None:
        with room if isinstance(item, flower.ArrayChunk) else contextlib.nullcontext():
            if not stop.is_set():
                push_object_fn(object_id, item.deflate())

    wanted = objects.keys() if object_ids_to_push is None else object_ids_to_push & objects.keys()
    order = sorted(wanted, key=lambda object_id: isinstance(objects[object_id], flower.ArrayChunk))
    executor = ThreadPoolExecutor(at_once or few)
    try:
        running = [executor.submit(one, object_id, objects.pop(object_id)) for object_id in order]
        objects.clear()
        for done in as_completed(running):
            done.result()
    finally:
        stop.set()
        executor.shutdown(wait=False, cancel_futures=True)


def inflate(number: str, contents: dict[str, bytes], max_bytes: int) -> Any:
    """The message of these objects, which it removes. Raises ValueError if they are not one, or an array is too long.

    Flower's function holds three copies of an array, and repeats a chunk as often as the sender says.
    """
    try:
        head = flower.get_object_head_values_from_object_content
        objects: dict[str, Any] = {}
        for key in [key for key, raw in contents.items() if head(raw)[0] == Array.__qualname__]:
            objects[key] = _array(contents.pop(key), contents, max_bytes)
            max_bytes -= len(objects[key].data)
        message = flower.inflate_object_from_contents(number, contents, objects=objects)
    except TooLargeError:
        raise
    except Exception as error:  # malformed bytes make flwr's readers raise any kind of error
        raise ValueError(f"objects that cannot be read ({type(error).__name__})") from error
    if not isinstance(message, FlowerMessage):
        raise ValueError(f"a {type(message).__name__} instead of a message")
    return message


def _array(raw: bytes, contents: dict[str, bytes], max_bytes: int) -> Array:
    """An array; its chunks are removed one by one as they are added to it, so that there is no second copy."""
    _, children, _ = flower.get_object_head_values_from_object_content(raw)
    about = json.loads(flower.get_object_body(raw, Array))
    order = [children[number] for number in about["arraychunk_ids"]]
    last = {key: number for number, key in enumerate(order)}
    data = io.BytesIO()
    for number, key in enumerate(order):
        chunk = contents.pop(key) if last[key] == number else contents[key]
        kind, _, length = flower.get_object_head_values_from_object_content(chunk)
        if kind != flower.ArrayChunk.__qualname__ or not 0 <= length <= len(chunk):
            raise ValueError(f"{kind} of {length} bytes")
        if data.tell() + length > max_bytes:
            raise TooLargeError(f"more than {max_bytes} bytes")
        data.write(memoryview(chunk)[len(chunk) - length :])
    array = Array(about["dtype"], tuple(about["shape"]), about["stype"], b"")
    array.data = data.getvalue()  # shares the buffer's memory
    return array
