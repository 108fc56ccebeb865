"""All names of flwr that are not part of its public API, in one place; an unknown version fails here, in one line.

Known versions: 1.41 and 1.42; the files named here are equal in both, except for tracing. The public API (`flwr.app`,
`flwr.serverapp`, the commands `flwr`, `flower-superlink`, `flower-superexec`, `flower-supernode`) is imported where it
is used. If a release moves a name, importing this module fails, before anything is started.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import random
import ssl
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import metadata
from typing import Any, Literal

KNOWN = ((1, 41), (1, 42))


class FlowerVersionError(ImportError):
    """flwr is missing, or its version is not supported."""


def check_version() -> str:
    """Returns flwr's version. Raises FlowerVersionError."""
    try:
        version = metadata.version("flwr")
    except metadata.PackageNotFoundError:
        raise FlowerVersionError(
            "ssfl deploy needs Flower: `bash setup.sh --deploy`, or pip install 'ssfl[deploy]' (Python 3.11 or newer)"
        ) from None
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers not in KNOWN:
        allowed = ", ".join(".".join(map(str, known)) for known in KNOWN)
        raise FlowerVersionError(
            f"flwr {version} is not supported by this version of ssfl, which needs {allowed}: "
            "pip install 'flwr>=1.41,<1.43'"
        )
    return version


VERSION = check_version()

try:
    import httpx  # of Flower's requirements, so that the missing package is not named in place of Flower
    from flwr.app import Array, Error, Metadata
    from flwr.app import Message as FlowerMessage
    from flwr.app.message import remove_content_from_message
    from flwr.app.message.arraychunk import ArrayChunk
    from flwr.common.constant import ErrorCode, SubStatus
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.fleet_pb2 import (
        ActivateNodeRequest,
        DeactivateNodeRequest,
        PullMessagesRequest,
        PushMessagesRequest,
        RegisterNodeFleetRequest,
        UnregisterNodeFleetRequest,
    )
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
    from flwr.proto.node_pb2 import Node
    from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
    from flwr.supercore.constant import (
        FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS,
        FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES,
        PULL_MAX_TIME,
    )
    from flwr.supercore.error import ApiErrorCode, FlowerError
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_body,
        get_object_head_values_from_object_content,
        get_object_tree,
        iterate_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.inflatable.inflatable_protobuf_utils import (
        make_pull_object_fn_protobuf,
        make_push_object_fn_protobuf,
    )
    from flwr.supercore.inflatable.inflatable_utils import (
        ObjectPullError,
        ObjectPushError,
        ObjectUnavailableError,
        get_num_workers,
        inflate_object_from_contents,
    )
    from flwr.supercore.interceptors import (
        RuntimeTokenHttpInterceptor,
        RuntimeVersionHttpInterceptor,
        SuperExecAuthHttpInterceptor,
    )
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
    from flwr.supercore.protobuf.client import ProtobufClient
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
except ImportError as error:
    raise FlowerVersionError(
        f"flwr {VERSION} has moved names that ssfl deploy needs ({error}); install a supported release: "
        "pip install 'flwr>=1.41,<1.43'"
    ) from None

PATCHED = {
    "grid": (
        "flwr.superlink.grid.http_grid",
        "pull_objects",
        "push_objects",
        "inflate_object_from_contents",
    ),
    "superlink": ("flwr.superlink.cli.flower_superlink", "uvicorn"),
    "executor": ("flwr.supernode.runtime.run_clientapp", "pull_and_inflate_object_from_tree"),
}
"""Modules in which attributes are replaced, by their user; a site imports none of them."""


def patched_module(user: Literal["grid", "superlink", "executor"]) -> Any:
    """The module to patch. Raises FlowerVersionError if it lacks an attribute: a patch would silently do nothing."""
    name, *attributes = PATCHED[user]
    try:
        module = importlib.import_module(name)
        for attribute in attributes:
            getattr(module, attribute)
    except (ImportError, AttributeError) as error:
        raise FlowerVersionError(
            f"flwr {VERSION} has moved {name}.{', '.join(attributes)} ({error}); pip install 'flwr>=1.41,<1.43'"
        ) from None
    return module


def control_names() -> Any:
    """The names that `control.py` needs, imported only when it is used. Raises FlowerVersionError."""
    try:
        from flwr.cli.build import build_fab_from_disk
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto import control_pb2
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.fab import Fab

        requests = (
            "RegisterNode", "UnregisterNode", "ListNodes", "StartRun", "ListRuns", "StopRun", "StreamLogs",
        )  # fmt: skip
        names = {f"{name}Request": getattr(control_pb2, f"{name}Request") for name in requests}
    except (ImportError, AttributeError) as error:
        raise FlowerVersionError(
            f"flwr {VERSION} has moved its Control API ({error}); pip install 'flwr>=1.41,<1.43'"
        ) from None
    return types.SimpleNamespace(
        **names,
        ControlHttpClient=ControlHttpClient,
        Fab=Fab,
        build_fab_from_disk=build_fab_from_disk,
        fab_to_proto=fab_to_proto,
        user_config_to_proto=user_config_to_proto,
    )


BACKOFF_SECONDS = 0.05
"""First wait for an object that is not uploaded yet; flwr's waits of 1 s, 2 s, ... would delay every fast poll."""
BACKOFF_CAP_SECONDS = 0.5
HEARTBEAT_SECONDS = 10
"""Heartbeat interval of a site (the minimum of flwr); a site counts as lost after twice that."""
NODE_NOT_ACTIVATED = ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED


WRITE_SECONDS = 120.0
"""Write timeout of one request; flwr's 30 s need 2.7 Mbit/s, because two chunks of 5 MiB are sent at once."""


def _free_responses() -> None:
    """Make flwr's clients break the cycle in httpx's responses (response, its stream, the response).

    Each would keep an object of 5 MiB until Python's garbage collector looks at old objects, which takes minutes here.
    """
    original = ProtobufClient._send

    @functools.wraps(original)
    def send(self: ProtobufClient, context: Any, *, stream: bool = False) -> httpx.Response:
        response = original(self, context, stream=stream)
        if not stream:
            response.stream = httpx.ByteStream(b"")  # its content has been read
        return response

    ProtobufClient._send = send  # type: ignore[method-assign]


_free_responses()


IDLE_CONNECTION_SECONDS = 60.0
"""How long a site keeps a connection without requests; less than the SuperLink does (`superlink.KEEP_ALIVE_SECONDS`).
httpx's 5 s would make a site connect again after every epoch, which takes two round trips."""


def fleet_client(address: str, certificates: bytes | None, interceptors: list[Any]) -> FleetHttpClient:
    """A client of the Fleet API for slow and long links. certificates: PEM of the authority; None: no TLS."""
    client = FleetHttpClient.from_server_address(address, certificates is None, certificates, interceptors)
    usual = client._client.timeout
    client._client.close()
    verify: ssl.SSLContext | bool = certificates is not None
    if certificates is not None:
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        verify.load_verify_locations(cadata=certificates.decode("ascii"))
    client._client = httpx.Client(
        verify=verify,
        timeout=httpx.Timeout(connect=usual.connect, read=usual.read, write=WRITE_SECONDS, pool=usual.pool),
        limits=httpx.Limits(keepalive_expiry=IDLE_CONNECTION_SECONDS),
        follow_redirects=True,
    )
    return client


class TooLargeError(ValueError):
    """More objects or bytes than the receiver allows."""


def bounded_pull(
    object_ids: list[str],
    pull: Callable[[str], bytes],
    max_bytes: int,
    *,
    at_once: int | None = None,
    within_seconds: float | None = None,
) -> dict[str, bytes]:
    """The contents of an object tree, `at_once` requests at a time; None: as many as flwr's own functions make.

    Raises TooLargeError after the object that exceeds the limit: flwr splits arrays into chunks of 5 MiB; each object
    is one request, so the count is checked before the first one. Raises ObjectPullError for an object that has not
    reached the SuperLink `within_seconds` (None: PULL_MAX_TIME): its sender may send the others as slowly as it likes.
    """
    within_seconds = PULL_MAX_TIME if within_seconds is None else within_seconds
    most = 16 + max_bytes // (1 << 20)
    if len(object_ids) > most:
        raise TooLargeError(f"{len(object_ids)} objects; at most {most} are accepted")
    total, lock, over, end = 0, threading.Lock(), threading.Event(), time.monotonic() + within_seconds

    def one(object_id: str) -> bytes:
        nonlocal total
        try:
            raw = _available(object_id, pull, over, end)
            with lock:
                total += len(raw)
                if total > max_bytes + (1 << 20):
                    raise TooLargeError(f"more than {max_bytes} bytes")
        except BaseException:
            over.set()
            raise
        return raw

    executor = ThreadPoolExecutor(at_once or get_num_workers(FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS))
    try:
        running = {executor.submit(one, object_id): object_id for object_id in object_ids}
        return {running[done]: done.result() for done in as_completed(running)}
    finally:
        over.set()
        executor.shutdown(wait=False, cancel_futures=True)


def _available(object_id: str, pull: Callable[[str], bytes], over: threading.Event, end: float) -> bytes:
    """An object, which may still be on its way to the SuperLink; no bytes if the pull of another one has failed."""
    pause = BACKOFF_SECONDS
    while not over.is_set():
        try:
            return pull(object_id)
        except ObjectUnavailableError:
            if time.monotonic() >= end:
                raise ObjectPullError(object_id, "it was not sent completely") from None
            over.wait(pause * random.uniform(0.8, 1.2))
            pause = min(2 * pause, BACKOFF_CAP_SECONDS)
    return b""


def bounded_push(
    objects: dict[str, Any],
    push_object_fn: Callable[[str, bytes], None],
    *,
    object_ids_to_push: set[str] | None = None,
    at_once: int | None = None,
) -> None:
    """Push objects and remove them, as flwr's `push_objects` does, which makes the bytes of all of them at once.

    at_once: requests at a time; None: as many as flwr makes, which is also the limit for the large chunks of arrays.
    """
    few = get_num_workers(FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES)
    room, over = threading.BoundedSemaphore(few), threading.Event()

    def one(object_id: str, item: Any) -> None:
        with room if isinstance(item, ArrayChunk) else contextlib.nullcontext():
            if not over.is_set():
                push_object_fn(object_id, item.deflate())

    wanted = objects.keys() if object_ids_to_push is None else object_ids_to_push & objects.keys()
    order = sorted(wanted, key=lambda object_id: isinstance(objects[object_id], ArrayChunk))
    executor = ThreadPoolExecutor(at_once or few)
    try:
        running = [executor.submit(one, object_id, objects.pop(object_id)) for object_id in order]
        objects.clear()
        for done in as_completed(running):
            done.result()
    finally:
        over.set()
        executor.shutdown(wait=False, cancel_futures=True)


def inflate(number: str, contents: dict[str, bytes], max_bytes: int) -> Any:
    """The message of these objects, which it removes. Raises ValueError if they are not one, or an array is too long.

    flwr's own function has three copies of an array at once, and repeats a chunk as often as the sender says.
    """
    try:
        head = get_object_head_values_from_object_content
        objects: dict[str, Any] = {}
        for key in [key for key, raw in contents.items() if head(raw)[0] == Array.__qualname__]:
            objects[key] = _array(contents.pop(key), contents, max_bytes)
            max_bytes -= len(objects[key].data)
        message = inflate_object_from_contents(number, contents, objects=objects)
    except TooLargeError:
        raise
    except Exception as error:  # malformed bytes make flwr's readers raise any kind of error
        raise ValueError(f"objects that cannot be read ({type(error).__name__})") from error
    if not isinstance(message, FlowerMessage):
        raise ValueError(f"a {type(message).__name__} instead of a message")
    return message


def _array(raw: bytes, contents: dict[str, bytes], max_bytes: int) -> Array:
    """An array; its chunks are removed one by one as they are added to it, so that there is no second copy."""
    _, children, _ = get_object_head_values_from_object_content(raw)
    about = json.loads(get_object_body(raw, Array))
    order = [children[number] for number in about["arraychunk_ids"]]
    last = {key: number for number, key in enumerate(order)}
    data = io.BytesIO()
    for number, key in enumerate(order):
        chunk = contents.pop(key) if last[key] == number else contents[key]
        kind, _, length = get_object_head_values_from_object_content(chunk)
        if kind != ArrayChunk.__qualname__ or not 0 <= length <= len(chunk):
            raise ValueError(f"{kind} of {length} bytes")
        if data.tell() + length > max_bytes:
            raise TooLargeError(f"more than {max_bytes} bytes")
        data.write(memoryview(chunk)[len(chunk) - length :])
    array = Array(about["dtype"], tuple(about["shape"]), about["stype"], b"")
    array.data = data.getvalue()  # shares the buffer's memory
    return array


def patch_grid(max_bytes: int, within_seconds: float) -> None:
    """Make `HttpGrid.pull_messages` poll objects at short intervals, and limit the bytes and the time of a message."""

    def pull(object_ids: list[str], pull_object_fn: Any) -> dict[str, bytes]:
        try:
            return bounded_pull(object_ids, pull_object_fn, max_bytes, within_seconds=within_seconds)
        except TooLargeError as error:
            raise ObjectPullError(object_ids[-1], f"refused: {error}") from None

    module = patched_module("grid")
    module.pull_objects, module.push_objects = pull, bounded_push
    module.inflate_object_from_contents = functools.partial(inflate, max_bytes=max_bytes)


def patch_executor() -> None:
    """The same intervals for the executor of a stock SuperNode, whose tasks arrive before their objects."""
    module = patched_module("executor")
    original = module.pull_and_inflate_object_from_tree
    if not isinstance(original, functools.partial):
        module.pull_and_inflate_object_from_tree = functools.partial(
            original,
            initial_backoff=BACKOFF_SECONDS,
            backoff_cap=BACKOFF_CAP_SECONDS,
            max_tries_per_object=None,  # 500 short waits are too few for a large model on a slow link
        )


__all__ = [
    "BACKOFF_CAP_SECONDS",
    "BACKOFF_SECONDS",
    "HEARTBEAT_SECONDS",
    "NODE_NOT_ACTIVATED",
    "VERSION",
    "AcquireTaskRequest",
    "ActivateNodeRequest",
    "ConfirmMessageReceivedRequest",
    "DeactivateNodeRequest",
    "Error",
    "ErrorCode",
    "FleetHttpClient",
    "FlowerError",
    "FlowerVersionError",
    "Metadata",
    "Node",
    "NodeAuthHttpInterceptor",
    "ObjectPullError",
    "ObjectPushError",
    "ObjectTree",
    "PullMessagesRequest",
    "PushMessagesRequest",
    "RegisterNodeFleetRequest",
    "RuntimeHttpClient",
    "RuntimeTokenHttpInterceptor",
    "RuntimeVersionHttpInterceptor",
    "SendNodeHeartbeatRequest",
    "SendTaskHeartbeatRequest",
    "SubStatus",
    "SuperExecAuthHttpInterceptor",
    "TaskIdentity",
    "TooLargeError",
    "UnregisterNodeFleetRequest",
    "bounded_pull",
    "bounded_push",
    "check_version",
    "control_names",
    "fleet_client",
    "generate_key_pairs",
    "get_all_nested_objects",
    "get_object_tree",
    "inflate",
    "iterate_object_tree",
    "make_pull_object_fn_protobuf",
    "make_push_object_fn_protobuf",
    "message_from_proto",
    "message_to_proto",
    "no_object_id_recompute",
    "patch_executor",
    "patch_grid",
    "patched_module",
    "public_key_to_bytes",
    "remove_content_from_message",
]
