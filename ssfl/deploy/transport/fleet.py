"""A site's connection over Flower's Fleet API, without a SuperNode process, an app bundle or code from the server.

flwr's retry invoker is not used: it retries without limit, and on HTTP 401 it sends SIGINT to its own process, which
would be the trainer. This module does its own retries and heartbeats (call `connect` again after a LinkError).
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message as FlowerMessage

from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation.keys import read_authority
from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.answer_upload import AnswerUpload
from ssfl.deploy.transport.fleet_client import fleet_client
from ssfl.deploy.transport.message_download import MessageDownload
from ssfl.deploy.transport.object_connections import ObjectConnections
from ssfl.deploy.transport.port import Delivery, LinkError, Message
from ssfl.deploy.transport.records import RecordsError, to_records

REQUESTS_AT_ONCE = 8
"""Objects of a message that are pulled or pushed at a time, so that small objects do not take a round trip each."""
CONFIRM_AGAIN_SECONDS = (1.0, 5.0, 20.0)
"""Seconds to wait after each failed attempt to confirm a message."""


@dataclass(frozen=True)
class Credentials:
    """Address of the SuperLink, and what authenticates it and the site."""

    superlink: str
    """HOST:PORT."""
    root_certificates: Path | None = None
    """PEM file of the authority that signed the server's certificate; None: no TLS (loopback only)."""
    private_key: Path | None = None
    """The site's private key in OpenSSH format; None: a new one each time (loopback only)."""


@final
class FleetPort:
    """One site's connection. `node_file` keeps the node id, so that a restart can deactivate the previous node."""

    def __init__(self, credentials: Credentials, node_file: Path | None = None) -> None:
        self._self_registered = credentials.private_key is None
        private, public = _keys(credentials.private_key)
        self._public = flower.public_key_to_bytes(public)
        certificates = credentials.root_certificates
        self._connect_client = functools.partial(
            fleet_client,
            credentials.superlink,
            None if certificates is None else read_authority(certificates),
            [
                flower.RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                flower.NodeAuthHttpInterceptor(private, public),
            ],
        )
        self._client = self._connect_client()
        self._objects = ObjectConnections(self._connect_client, REQUESTS_AT_ONCE)
        self._node_file = node_file
        self._registered = False
        self._node: Any = None
        self._incoming: MessageDownload | None = None
        self._beats: _Heartbeat | None = None

    # ── SitePort ─────────────────────────────────────────────────────────────────────────────────────────────────
    def connect(self) -> None:
        """Register (only without a private key), activate the node, start the heartbeat. Raises LinkError."""
        if self._node is not None and self._beats is not None and self._beats.alive:
            return
        self._stop_beating()
        if self._self_registered and not self._registered:
            self._call(self._client.RegisterNode, flower.RegisterNodeFleetRequest(public_key=self._public))
            self._registered = True
        before, self._node = self._node, flower.Node(node_id=self._activate())
        if before != self._node:  # another SuperLink, which does not know the message
            self._incoming = None
        self._remember(self._node.node_id)
        self._beats = _Heartbeat(self._beat)
        self._beats.start()

    def receive(self, max_body_bytes: int) -> Delivery | None:
        """Pull one message with its objects. It is confirmed in the background, while it is worked on.

        After a LinkError, the next call continues with the objects that are missing.
        """
        self._check_beats()
        if self._incoming is None:
            response = self._call(self._client.PullMessages, flower.PullMessagesRequest(node=self._node))
            if not response.messages_list:
                return None
            try:
                self._incoming = MessageDownload(response, REQUESTS_AT_ONCE)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise _unreadable(error) from error
        incoming = self._incoming
        try:
            with self._link_errors():
                received = incoming.receive(self._node, self._objects, max_body_bytes)
        except LinkError as error:
            if not error.again or error.too_late or incoming.seconds_left <= 0:
                self._end_incoming()
            raise
        except (RecordsError, ValueError, KeyError, TypeError) as error:
            self._end_incoming()
            self._refuse(incoming.head, str(error))
            return None
        self._end_incoming()
        if received is None:
            return None
        address = _Address(incoming.head)  # the message would keep its body in memory
        return Delivery(address, str(incoming.run), received, incoming.seconds_left)

    def _end_incoming(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            arguments = (self._node, incoming.run, incoming.number)
            # A daemon thread: the process may end while the link is dead.
            threading.Thread(target=self._confirm, args=arguments, name="confirm", daemon=True).start()

    def answer(self, delivery: Delivery, message: Message | str) -> None:
        """Push the answer and its objects; a repeated call continues what the first one began.

        Raises LinkError, with `too_late` if the SuperLink does not accept the answer any longer.
        """
        address = delivery.address
        assert isinstance(address, _Address)
        if address.upload is None:
            if isinstance(message, str):
                reply = _refusal(address.head, message)
            else:
                reply = FlowerMessage(to_records(message), reply_to=address.head)
            address.upload = AnswerUpload(reply, REQUESTS_AT_ONCE)
        self._push(address.upload)

    def close(self) -> None:
        """Stop the heartbeat and deactivate the node, so that the server knows at once."""
        self._stop_beating()
        node, self._node = self._node, None
        if node is not None:
            with contextlib.suppress(httpx.HTTPError):
                self._client.DeactivateNode(flower.DeactivateNodeRequest(node_id=node.node_id))
                if self._self_registered:
                    self._client.UnregisterNode(flower.UnregisterNodeFleetRequest(node_id=node.node_id))
        self._objects.close()
        self._client.close()

    # ── internals ────────────────────────────────────────────────────────────────────────────────────────────────
    def _activate(self) -> int:
        request = flower.ActivateNodeRequest(
            public_key=self._public, heartbeat_interval=flower.HEARTBEAT_SECONDS
        )
        try:
            return int(self._call(self._client.ActivateNode, request).node_id)
        except LinkError:
            old = self._old_node()
            if old is None:
                raise
        # A killed process of this site counts as online until its heartbeats expire: deactivate it.
        with contextlib.suppress(LinkError):
            self._call(self._client.DeactivateNode, flower.DeactivateNodeRequest(node_id=old))
        return int(self._call(self._client.ActivateNode, request).node_id)

    def _old_node(self) -> int | None:
        if self._node_file is None or self._self_registered:
            return None
        with contextlib.suppress(OSError, ValueError):
            return int(self._node_file.read_text())
        return None

    def _remember(self, node: int) -> None:
        if self._node_file is not None:
            with contextlib.suppress(OSError):  # on a full disk, the previous node times out instead
                self._node_file.write_text(f"{node}\n")

    def _refuse(self, request: Any, reason: str) -> None:
        self._push(AnswerUpload(_refusal(request, reason), REQUESTS_AT_ONCE))

    def _push(self, upload: AnswerUpload) -> None:
        with self._link_errors():
            upload.send(self._node, self._client, self._objects)

    @contextlib.contextmanager
    def _link_errors(self) -> Iterator[None]:
        """Turns connection errors into LinkError. Requests that hang must not keep the next message's connections."""
        try:
            with _link_errors():
                yield
        except LinkError:
            self._objects.close()
            self._objects = ObjectConnections(self._connect_client, REQUESTS_AT_ONCE)
            raise

    def _confirm(self, node: Any, run: int, number: str) -> None:
        """Let the SuperLink delete the message's objects; without this it keeps them until the run ends."""
        request = flower.ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=number)
        for pause in CONFIRM_AGAIN_SECONDS:
            try:
                self._client.ConfirmMessageReceived(request)
                return
            except httpx.TransportError:
                time.sleep(pause)
            except (httpx.HTTPError, ValueError, RuntimeError):  # the run has ended, or the client was closed
                return

    def _call(self, function: Callable[[Any], Any], request: Any) -> Any:
        with _link_errors():
            try:
                return function(request)
            except ValueError as error:  # of flwr's client
                raise _unreadable(error) from error

    def _beat(self) -> bool:
        """Whether the SuperLink still knows this node. Raises LinkError."""
        request = flower.SendNodeHeartbeatRequest(
            node=self._node, heartbeat_interval=flower.HEARTBEAT_SECONDS
        )
        return bool(self._call(self._client.SendNodeHeartbeat, request).success)

    def _check_beats(self) -> None:
        if self._node is None or self._beats is None or not self._beats.alive:
            raise LinkError("not connected")

    def _stop_beating(self) -> None:
        if self._beats is not None:
            self._beats.stop()
            self._beats = None


@dataclass
class _Address:
    """Of a delivery: the message to answer, without its content, and its answer when it is being sent."""

    head: Any
    upload: AnswerUpload | None = None


@final
class _Heartbeat:
    """Sends heartbeats from a separate thread, so that the site counts as online during a long epoch."""

    def __init__(self, beat: Callable[[], bool]) -> None:
        self._beat = beat
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    @property
    def alive(self) -> bool:
        """False once the SuperLink has answered that it does not know this node."""
        return not self._lost

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(flower.HEARTBEAT_SECONDS / 2):
            try:
                self._lost = not self._beat()
            except LinkError as error:
                self._lost = not error.again
            if self._lost:
                return


def _refusal(request: Any, reason: str) -> Any:
    """An answer that is an error."""
    code = flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    return FlowerMessage(flower.Error(code=code, reason=reason[:500]), reply_to=request)


@contextlib.contextmanager
def _link_errors() -> Iterator[None]:
    """Turns connection errors into LinkError."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise _of_status(error) from error
    except httpx.HTTPError as error:
        text = str(error) or type(error).__name__
        if "certificate" in text.lower():
            raise LinkError(f"the server's certificate is not accepted: {text}", again=False) from error
        raise LinkError(f"the SuperLink cannot be reached: {text}") from error
    except (flower.ObjectPushError, flower.ObjectPullError) as error:
        reason = f"the SuperLink has dropped this message (it expired): {error}"
        raise LinkError(reason, too_late=True) from error


def _unreadable(error: Exception) -> LinkError:
    return LinkError(f"the SuperLink's answer cannot be read ({type(error).__name__}: {error})")


def _of_status(error: httpx.HTTPStatusError) -> LinkError:
    code = error.response.status_code
    cause = flower.FlowerError.from_json(error.response.text)
    text = f"[{cause.code}] {cause.message}" if cause is not None else f"HTTP {code}"
    if code == httpx.codes.UNAUTHORIZED:
        return LinkError(
            "the SuperLink does not accept this site's key: the server is starting, the key must be registered there "
            "(ssfl deploy register), or this machine's clock differs from the server's",
            again=False,
        )
    if cause is not None and cause.code == flower.NODE_NOT_ACTIVATED:
        return LinkError(
            f"the SuperLink does not accept this site yet ({text}): its key is not registered, "
            "or an earlier process under the same key still counts as online (up to 60 s)"
        )
    too_late = cause is not None and cause.code == flower.RUN_NOT_ACTIVE
    return LinkError(f"the SuperLink refused a request: {text}", too_late=too_late)


def _keys(path: Path | None) -> tuple[Any, Any]:
    if path is None:
        return flower.generate_key_pairs()
    try:
        private: Any = load_ssh_private_key(path.read_bytes(), None)
        return private, private.public_key()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not a private key in OpenSSH format"
        raise DeployError(f"{path}: {reason}; `ssfl deploy init` or `ssfl deploy key` writes it") from None
