"""`ssfl deploy status` and `ssfl deploy stop`."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ssfl.deploy.commands.run import control_of
from ssfl.deploy.errors import DeployError, UnreachableError
from ssfl.deploy.federation import keys
from ssfl.deploy.federation.folders import server_address
from ssfl.deploy.server.run_record import RunRecord, load_records, save_record

RENEW_DAYS = 60
"""`status` asks for a renewal this many days before the server's certificate ends."""


def show_status(arguments: argparse.Namespace) -> int:
    """Print runs and sites. Returns the exit code: 1 if the SuperLink is down or refuses. Raises DeployError."""
    status = status_of(arguments.folder)
    print(json.dumps(status, indent=2) if arguments.json else status_text(status, time.time()))
    if status["superlink"] == "up":
        return 0
    print(f"ssfl: the SuperLink is {status['superlink']}", file=sys.stderr)
    return 1


def status_of(folder: Path) -> dict[str, Any]:
    """The server's runs and sites, as a JSON object. Raises DeployError."""
    status: dict[str, Any] = {
        "superlink": "up",
        "sites": [],
        "certificate_ends_utc": _certificate_end(folder),
    }
    with control_of(folder) as control:
        try:
            status["sites"] = [asdict(node) for node in control.nodes()]
            status["flower_runs"] = control.runs()
        except UnreachableError as error:
            status["superlink"] = f"down: {error}; start it: ssfl deploy server --folder {folder}"
        except DeployError as error:
            status["superlink"] = f"refusing: {error}"
    status["runs"] = [asdict(record) for record in load_records(folder)]
    return status


def _certificate_end(folder: Path) -> str | None:
    with contextlib.suppress(DeployError):
        return keys.valid_until(folder).isoformat(timespec="seconds")
    return None


def status_text(status: dict[str, Any], now: float) -> str:
    """The status as text. now: Unix time in seconds."""
    lines = [f"SuperLink: {status['superlink'].partition(':')[0]}"]
    if (end := status["certificate_ends_utc"]) is not None:
        days = int((datetime.datetime.fromisoformat(end).timestamp() - now) // 86400)
        text = f"certificate: valid for {days} days" if days >= 0 else "certificate: expired"
        lines.append(text + ("; renew it: ssfl deploy renew" if days < RENEW_DAYS else ""))
    for site in status["sites"]:
        lines.append(f"site {site['name'] or site['node']}: {'online' if site['online'] else 'offline'}")
    for run in status["runs"]:
        lines.append(_run_text(run, now))
        if run["folder"]:
            lines.append(f"  {run['folder']}")
    return "\n".join(lines)


def _run_text(run: dict[str, Any], now: float) -> str:
    live = run["sites"] or {}
    connected = sum(bool(site["live"]) for site in live.values())
    text = f"run {run['run']}: {run['status']}, round {run['round']} of {run['rounds']}"
    text += f", {connected} of {len(live)} sites, updated {max(0, now - run['updated']):.0f} s ago"
    text += f", resumes: {run['restarts']}" if run["restarts"] else ""
    return text + (f": {run['reason']}" if run["reason"] else "")


def stop_run(arguments: argparse.Namespace) -> int:
    """Stop a run by its name or Flower's number. Returns the exit code. Raises DeployError."""
    before = _record_of(arguments)
    if not before.active:
        raise DeployError(f"{before.run}: is not in progress; it is {before.status}")
    with control_of(arguments.folder) as control:
        ended = control.runs().get(before.flower_run, "finished").startswith("finished")
        record = _record_of(arguments)  # it may have finished, or been started again, in between
        if ended and record.active and record.flower_run == before.flower_run:
            save_record(arguments.folder, replace(record, status="stopped", reason="stopped by a user"))
        else:
            control.stop(record.flower_run)
    folder = record.folder
    if folder:
        print(f"stopped; continue with: ssfl deploy run --resume {shlex.quote(folder)}")
    else:
        print("stopped before its first round; there is nothing to resume")
    return 0


def _record_of(arguments: argparse.Namespace) -> RunRecord:
    """The record of a run by its name or Flower's number. Raises DeployError."""
    found = [r for r in load_records(arguments.folder) if arguments.run in (r.run, r.flower_run)]
    if not found:
        server_address(arguments.folder)  # refuses a folder that is not a server's
        raise DeployError(
            f"{arguments.run}: no such run in {arguments.folder}; `ssfl deploy status` lists them"
        )
    return found[-1]
