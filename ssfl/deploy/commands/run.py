"""`ssfl deploy run` and `ssfl deploy status`."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssfl.config import load_config
from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation import keys
from ssfl.deploy.federation.app_bundle import write_app
from ssfl.deploy.server.run_record import load_records
from ssfl.deploy.settings import settings_of, split_words
from ssfl.deploy.transport.control import Control, Value

START_SECONDS = 5.0
"""Between two questions whether a run without a record has ended."""


def control_of(folder: Path, superlink: str = "", certificates: Path | None = None) -> Control:
    """A connection to the server of this folder, or to the one at `superlink`. Raises DeployError."""
    if superlink:
        return Control(superlink, certificates)
    try:
        text = (folder / "flwr" / "config.toml").read_text(encoding="utf-8")
    except OSError:
        raise DeployError(
            f"{folder}: no server has been started here; give the server's --folder, or --superlink HOST:PORT"
        ) from None
    address = next(line.split('"')[1] for line in text.splitlines() if line.startswith("address"))
    secure = "root-certificates" in text
    return Control(address, folder / keys.CA_CERTIFICATE if secure else None)


def run_remote(arguments: argparse.Namespace) -> int:
    """Start or resume a run and, unless detached or remote, show it until it ends."""
    from ssfl.deploy.commands.follow import follow

    config: dict[str, Value] = {"resume": str(Path(arguments.resume).resolve())} if arguments.resume else {}
    if not arguments.resume:
        run_words, ours = split_words(arguments.words)
        settings_of(ours)
        load_config(["training.client_num_in_total=1000000", *run_words])
        config["words"] = shlex.join(arguments.words)
    elif arguments.words:
        raise DeployError("--resume takes no KEY=VALUE arguments: the run folder contains the configuration")
    control = control_of(arguments.folder, arguments.superlink, arguments.root_certificates)
    with tempfile.TemporaryDirectory() as folder:
        number = control.start(write_app(Path(folder)), config)
    print(f"started Flower run {number}", file=sys.stderr)
    try:
        if arguments.detach or arguments.superlink:
            return 0
        return follow(arguments.folder, number, "auto", StartWatch(control, number, arguments.folder))
    finally:
        control.close()


class StartWatch:
    """Asks Flower, while a run has no record, whether it has ended already: its process may die before it writes one.

    Raises DeployError then, at the second time, since the record may appear in between.
    """

    def __init__(self, control: Control, number: str, folder: Path, seconds: float = START_SECONDS) -> None:
        self._control, self._number, self._folder = control, number, folder
        self._seconds, self._next = seconds, time.monotonic() + seconds
        self._ended = False

    def __call__(self, recorded: bool) -> None:
        """To be called regularly. recorded: whether the run's record exists."""
        if recorded or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._seconds
        try:
            status = self._control.runs().get(self._number, "")
        except DeployError:  # the SuperLink may be restarting
            return
        if status.startswith("finished"):
            if self._ended:
                raise DeployError(
                    f"Flower run {self._number} ended before it began ({status}); see the logs in {self._folder}"
                )
            self._ended = True


def status_of(folder: Path) -> dict[str, Any]:
    """The server's runs and sites, as a JSON object. Raises DeployError."""
    status: dict[str, Any] = {"runs": [asdict(record) for record in load_records(folder)]}
    control = control_of(folder)
    try:
        status["sites"] = [asdict(node) for node in control.nodes()]
        status["superlink"] = "up"
        with contextlib.suppress(DeployError):
            status["flower_runs"] = control.runs()
    except DeployError as error:
        status["superlink"] = f"down: {error}"
        status["sites"] = []
    finally:
        control.close()
    return status


def status_text(status: dict[str, Any], now: float) -> str:
    """The same as text."""
    lines = [f"SuperLink: {status['superlink']}"]
    for site in status["sites"]:
        lines.append(f"site {site['name'] or site['node']}: {'online' if site['online'] else 'offline'}")
    for run in status["runs"]:
        live = run["sites"] or {}
        here = sum(bool(site["live"]) for site in live.values())
        text = f"run {run['run']}: {run['status']}, round {run['round']} of {run['rounds']}"
        text += f", {here} of {len(live)} sites, updated {max(0, now - run['updated']):.0f} s ago"
        text += f", resumed {run['restarts']} times" if run["restarts"] else ""
        lines.append(text + (f": {run['reason']}" if run["reason"] else ""))
        if run["folder"]:
            lines.append(f"  {run['folder']}")
    return "\n".join(lines)
