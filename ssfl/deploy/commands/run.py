"""`ssfl deploy run`, and the connection to the server that other verbs use too."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssfl.config import load_config
from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation import keys
from ssfl.deploy.federation.addresses import split_address
from ssfl.deploy.federation.app_bundle import write_app
from ssfl.deploy.federation.folders import SERVER_FILE
from ssfl.deploy.settings import settings_of, split_words
from ssfl.deploy.transport.control import Control, Value

START_SECONDS = 5.0
"""Seconds between two checks whether a run without a record has ended."""


@contextmanager
def control_of(folder: Path, superlink: str = "", certificates: Path | None = None) -> Iterator[Control]:
    """A connection to the server of this folder, or to the one at `superlink`. Raises DeployError."""
    address, certificates = (superlink, certificates) if superlink else _local_server(folder)
    split_address(address)
    control = Control(address, certificates)
    try:
        yield control
    finally:
        control.close()


def _local_server(folder: Path) -> tuple[str, Path | None]:
    """Address and certificate of the server that was last started with this folder. Raises DeployError."""
    path = folder / "flwr" / "config.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        if (folder / SERVER_FILE).is_file():
            reason = f"the server has not been started; start it: ssfl deploy server --folder {folder}"
        else:
            reason = "is not a server's folder; give --folder, the server's folder from `ssfl deploy init`"
        raise DeployError(f"{folder}: {reason}") from None
    found = re.search(r'^address = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise DeployError(f"{path}: names no address; restart the server, which writes this file")
    address = found.group(1)
    return address, folder / keys.CA_CERTIFICATE if "root-certificates" in text else None


def run_remote(arguments: argparse.Namespace) -> int:
    """Start or resume a run and, unless detached, show it until it ends. Returns the exit code."""
    from ssfl.deploy.commands.follow import follow, follow_log

    config = _run_config(arguments)
    with control_of(arguments.folder, arguments.superlink, arguments.root_certificates) as control:
        with tempfile.TemporaryDirectory() as folder:
            number = control.start(write_app(Path(folder)), config)
        print(f"started Flower run {number}", file=sys.stderr)
        if arguments.detach:
            return 0
        try:
            if arguments.superlink:
                return follow_log(control, number)
            return follow(arguments.folder, number, "auto", StartWatch(control, number, arguments.folder))
        except KeyboardInterrupt:
            text = (
                "the run continues on the server; `ssfl deploy status` shows it, `ssfl deploy stop` ends it"
            )
            print(f"ssfl: {text}", file=sys.stderr)
            raise


def _run_config(arguments: argparse.Namespace) -> dict[str, Value]:
    """The run configuration of the ServerApp. Raises DeployError, ConfigError before anything is sent."""
    if not arguments.resume:
        run_words, ours = split_words(arguments.words)
        settings_of(ours)
        load_config(["training.client_num_in_total=1000000", *run_words])
        return {"words": shlex.join(arguments.words)}
    if arguments.words:
        raise DeployError("--resume takes no KEY=VALUE arguments: the run folder contains the configuration")
    if not arguments.superlink:
        return {"resume": str(Path(arguments.resume).resolve())}
    if not Path(arguments.resume).is_absolute():
        raise DeployError(
            f"--resume {arguments.resume}: with --superlink, give the absolute path of the run folder on the server"
        )
    return {"resume": arguments.resume}


class StartWatch:
    """Detects a run that ended, or was lost by a restart of the server, before its process wrote a record.

    Raises DeployError when Flower reports this twice: the record may appear in between.
    """

    def __init__(self, control: Control, number: str, folder: Path, seconds: float = START_SECONDS) -> None:
        self._control, self._number, self._folder = control, number, folder
        self._seconds, self._next = seconds, time.monotonic() + seconds
        self._ended = False

    def __call__(self, recorded: bool) -> None:
        """Check, at most once in `seconds`; call it regularly. recorded: whether the run's record exists."""
        if recorded or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._seconds
        try:
            status = self._control.runs().get(self._number, "")
        except DeployError:  # the SuperLink may be restarting
            return
        if not status or status.startswith("finished"):
            if self._ended:
                raise DeployError(self._reason(status))
            self._ended = True

    def _reason(self, status: str) -> str:
        if not status:
            return (
                f"Flower run {self._number}: the server was restarted before the run began, and does not know it; "
                "start the run again"
            )
        return f"Flower run {self._number} ended before it began ({status}); see the logs in {self._folder}"
