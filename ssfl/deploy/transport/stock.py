"""A site with a stock SuperNode: this process is the executor of `flower-supernode --isolation process`.

The SuperNode keeps the connection; this process requests tasks over its local Runtime API, where Flower's own executor
would start a process (and import torch) for every message. The SuperNode receives the app bundle that the server sends;
it is not executed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Message as FlowerMessage

from ssfl.deploy.errors import DeployError
from ssfl.deploy.log import EventLog
from ssfl.deploy.site.loop import Handler, Pace
from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.patches import free_responses, patch_executor
from ssfl.deploy.transport.port import Message
from ssfl.deploy.transport.records import RecordsError, from_records, to_records

TASK_TYPE = "flwr-clientapp"
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
BEAT_SECONDS = 10.0
"""Heartbeat interval of a task; Flower fails a task 60 s after its last heartbeat."""
AWAY_SECONDS = 2.0


def serve_stock(
    address: str, secret: Path | None, handle: Handler, log: EventLog, stop: threading.Event
) -> int:
    """Work for the SuperNode at HOST:PORT until `stop` is set. Returns the exit code.

    secret: the SuperNode's --superexec-auth-secret-file; None if it has none.
    """
    free_responses()
    patch_executor()
    interceptors = [] if secret is None else [_signer(secret)]
    pace, reported = Pace(), ""
    with _client(address, *interceptors) as client, contextlib.suppress(KeyboardInterrupt):
        log.info("stock_supernode", f"working for {address}")
        while not stop.is_set():
            try:
                answer = client.AcquireTask(flower.AcquireTaskRequest(supported_task_types=[TASK_TYPE]))
                reported = ""
            except httpx.HTTPError as error:
                text = str(error) or type(error).__name__
                if text != reported:
                    log.warning("not_connected", f"the SuperNode at {address}: {text}; trying again")
                    reported = text
                stop.wait(AWAY_SECONDS)
                continue
            if answer.token:
                _task(address, answer.token, handle, log)
                pace.answered()
            else:
                stop.wait(pace.seconds())
    return 0


def _task(address: str, token: str, handle: Handler, log: EventLog) -> None:
    names = flower.patched_module("executor")
    with _client(address, flower.RuntimeTokenHttpInterceptor(token)) as client, _beating(client):
        status, details, context = flower.SubStatus.FAILED, "not finished", None
        try:
            request, context, _, _ = names.pull_task_input(client)
            answer = _answer(request, handle)
            reply = _reply(request, answer)
            names.push_message(client, reply, context)
            status, details = flower.SubStatus.COMPLETED, ""
        except (httpx.HTTPError, flower.ObjectPullError, flower.ObjectPushError, RuntimeError) as error:
            # The task expired or the SuperNode is restarting: the next task may succeed.
            log.warning("task_lost", str(error) or type(error).__name__)
        finally:
            names.push_task_output(client, context, status, details)


def _answer(request: Any, handle: Handler) -> Message | str:
    try:
        return handle(from_records(request.content))
    except RecordsError as error:
        return f"refused: {error}"


def _reply(request: Any, answer: Message | str) -> Any:
    if isinstance(answer, str):
        code = flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return FlowerMessage(flower.Error(code=code, reason=answer[:500]), reply_to=request)
    return FlowerMessage(to_records(answer), reply_to=request)


def _client(address: str, *interceptors: Any) -> Any:
    version = flower.RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
    return flower.RuntimeHttpClient.from_server_address(address, True, None, [version, *interceptors])


def _signer(secret: Path) -> Any:
    try:
        raw = secret.read_bytes()
    except OSError as error:
        raise DeployError(f"--stock-secret {secret}: {error.strerror}") from None
    return flower.SuperExecAuthHttpInterceptor(master_secret=raw, protected_methods={ACQUIRE})


@contextlib.contextmanager
def _beating(client: Any) -> Iterator[None]:
    """Sends heartbeats of one task from a thread."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            with contextlib.suppress(httpx.HTTPError):  # the main thread reports it
                client.SendTaskHeartbeat(flower.SendTaskHeartbeatRequest())

    thread = threading.Thread(target=beat, name="task heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
