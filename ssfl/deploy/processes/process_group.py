"""Child processes of a command: marked, logged to files, and ended with the command, even if that is killed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, final

from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation.addresses import join_address
from ssfl.deploy.processes.reaper import MARK, end_marked
from ssfl.deploy.server.run_record import HOME_VARIABLE

STOP_SECONDS = 4.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def flower_environment(home: Path) -> dict[str, str]:
    """Environment for Flower's processes: no telemetry, no update checks, nothing installed at run time."""
    tools = str(Path(sys.executable).parent)
    return {
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}",
        HOME_VARIABLE: str(home),
    }


@final
class ProcessGroup:
    """All child processes of one command. `close` ends them in reverse order.

    If the command is killed, a reaper process ends them.

    remove: a temporary folder to delete with them.
    """

    def __init__(self, environment: Mapping[str, str], remove: Path | None = None) -> None:
        self.mark = secrets.token_hex(16)
        self._environment = {**os.environ, **environment, MARK: self.mark}
        self._children: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "ssfl.deploy.processes.reaper", self.mark, str(remove or "")],
            stdin=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            env={k: v for k, v in os.environ.items() if k != MARK},
        )

    def start(
        self, name: str, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a child whose output is appended to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with _private(log) as out:
            child = subprocess.Popen(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**self._environment, **(environment or {})},
                start_new_session=True,
            )
        self._children.append((name, child))
        return child

    def forget(self, child: subprocess.Popen[bytes]) -> None:
        """Remove a child that has ended and is replaced."""
        self._children = [(n, c) for n, c in self._children if c is not child]

    def stop(self, child: subprocess.Popen[bytes], seconds: float = STOP_SECONDS) -> None:
        """End one child and its process group."""
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    def close(self) -> None:
        """End all children; may be called again."""
        for _, child in reversed(self._children):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        for _, child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.1, end - time.monotonic()))
        end_marked(self.mark, 1.0, but=os.getpid())
        for _, child in self._children:
            child.wait()
        self._children.clear()
        if self._reaper.stdin is not None:
            self._reaper.stdin.close()
        self._reaper.wait()


@contextlib.contextmanager
def _private(path: Path):  # type: ignore[no-untyped-def]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    file: IO[bytes] = os.fdopen(descriptor, "ab")
    with file:
        yield file


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free now; another process may take it later."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_address(host: str, port: int) -> None:
    """Raises DeployError if this machine cannot listen on host and port now."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise DeployError(f"--host {host}: cannot be resolved ({error.strerror}); give an address") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise DeployError(f"{join_address(host, port)}: {_bind_reason(error)}") from None


def _bind_reason(error: OSError) -> str:
    reasons = {
        errno.EADDRINUSE: "another process listens on this port; stop it, or give another --port",
        errno.EADDRNOTAVAIL: "not an address of this machine; give --host an address of this machine, or omit it",
        errno.EACCES: "this user may not listen on this port; give a --port above 1023",
    }
    return reasons.get(error.errno or 0, f"cannot listen ({error.strerror})")


def wait_for_port(host: str, port: int, child: subprocess.Popen[bytes], seconds: float, log: Path) -> None:
    """Wait until the child listens on the port. Raises DeployError if it ends, or after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if child.poll() is not None:
            raise DeployError(
                f"the SuperLink ended with code {child.returncode} ({last_line(log)}); see {log}"
            )
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=0.5):
            return
        time.sleep(0.1)
    raise DeployError(f"the SuperLink does not listen on {host}:{port} after {seconds:g} s; see {log}")


def last_line(log: Path) -> str:
    """The last line of a child's output, without colours, at most 300 characters."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "no output"
    return _COLOURS.sub("", lines[-1])[:300] if lines else "no output"
