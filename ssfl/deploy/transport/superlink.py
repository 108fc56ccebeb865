"""Flower's SuperLink behind the guard; run as `python -m ssfl.deploy.transport.superlink`."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sys
import threading
import time
import types
from collections.abc import Sequence
from typing import Any

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.guard import MAX_BODY_BYTES, Guard
from ssfl.deploy.transport.held_requests import App, HeldRequests
from ssfl.deploy.transport.lean_middleware import patch_middleware
from ssfl.deploy.transport.object_trees import patch_object_trees

KEEP_ALIVE_SECONDS = 960
"""How long an idle connection is kept: longer than a site keeps it, which otherwise could send into a closed one."""
UVICORN: dict[str, Any] = {
    "access_log": False,
    "timeout_keep_alive": KEEP_ALIVE_SECONDS,  # a new connection would cost a TLS handshake for each poll
    "limit_concurrency": 10_000,  # connections; a site has up to ten
    "proxy_headers": False,  # the guard decides by the address of the peer, not by what the peer writes
}
"""Options of the HTTP server."""


def main(argv: Sequence[str] | None = None) -> None:
    """Options of this module, then `--` and the options of flower-superlink."""
    parser = argparse.ArgumentParser("ssfl.deploy.transport.superlink")
    parser.add_argument("--control-from", action="append", default=[], metavar="NETWORK")
    parser.add_argument("--max-body-bytes", type=int, default=MAX_BODY_BYTES)
    parser.add_argument("--parent-pid", type=int, default=0)
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    arguments = parser.parse_args(argv)
    if arguments.parent_pid:
        threading.Thread(target=_end_with, args=(arguments.parent_pid,), daemon=True).start()
    allow_files()
    patch_middleware()
    patch_object_trees()
    module = flower.patched_module("superlink")
    real = module.uvicorn

    def run(app: App, **options: Any) -> None:
        guarded = Guard(HeldRequests(app), arguments.control_from, arguments.max_body_bytes)
        real.run(app=guarded, **(options | UVICORN))

    module.uvicorn = types.SimpleNamespace(run=run)
    rest = arguments.rest[1:] if arguments.rest[:1] == ["--"] else arguments.rest
    sys.argv = ["flower-superlink", *rest]
    with contextlib.suppress(KeyboardInterrupt):
        module.flower_superlink()


def allow_files() -> None:
    """Raise the limit of open files, commonly 1,024, to what the system allows: a site has up to ten connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
