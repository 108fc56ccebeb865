"""The verbs of `ssfl deploy`; each imports what it needs when it is called."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping

from ssfl.deploy.errors import DeployError
from ssfl.deploy.log import EventLog


def main(arguments: argparse.Namespace) -> int:
    """Run one verb. Returns the exit code. Raises UserError."""
    if sys.version_info < (3, 11):
        raise DeployError(
            "ssfl deploy needs Python 3.11 or newer, as Flower does; the rest of ssfl runs on 3.10"
        )
    try:
        from ssfl.deploy.transport import internals

        internals.check_version()
    except ImportError as error:
        raise DeployError(str(error)) from None
    return VERBS[arguments.deploy_verb](arguments)


def _init(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.federation.folders import make_federation

    text = arguments.sites
    names = [f"site-{n}" for n in range(int(text))] if text.isdigit() else [n for n in text.split(",") if n]
    make_federation(arguments.root, names, arguments.address, arguments.host)
    root = arguments.root
    print(
        f"wrote {root}: keep {root}/server here; send each folder of {root}/sites to its site over a secure channel"
    )
    print(f"next: ssfl deploy server --folder {root}/server")
    return 0


def _server(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.server.supervisor import Server, new_process_group, options_of

    options = options_of(
        arguments.folder,
        arguments.host,
        arguments.port,
        arguments.insecure,
        arguments.control_from,
        arguments.restarts,
    )
    log = EventLog("supervisor", options.folder / "supervisor.jsonl")
    processes = new_process_group(options)
    over = threading.Event()
    try:
        server = Server(options, processes, log)
        server.start()
        server.watch(over)
    finally:
        log.info("stopping")
        processes.close()
    return 0


def _site(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.site import run_site

    return run_site(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.run import run_remote

    return run_remote(arguments)


def _local(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.local import run_local

    return run_local(
        arguments.words,
        arguments.sites,
        arguments.insecure,
        arguments.keep,
        arguments.console,
        arguments.seconds,
    )


def _register(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.run import control_of
    from ssfl.deploy.federation.folders import add_member

    member = add_member(arguments.folder, arguments.public_key, arguments.name, arguments.client)
    control = control_of(arguments.folder)
    try:
        control.register(arguments.public_key, arguments.name)
    except DeployError as error:
        print(
            f"ssfl: on the roster as client {member.client}; the server is not running ({error})",
            file=sys.stderr,
        )
        return 0
    finally:
        control.close()
    print(f"{member.name} is client {member.client}")
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.run import control_of
    from ssfl.deploy.server.run_record import load_records

    found = [r for r in load_records(arguments.folder) if arguments.run in (r.run, r.flower_run)]
    if not found:
        raise DeployError(
            f"{arguments.run}: no such run in {arguments.folder}; `ssfl deploy status` lists them"
        )
    control = control_of(arguments.folder)
    try:
        control.stop(found[-1].flower_run)
    finally:
        control.close()
    print(f"stopped; continue with: ssfl deploy run --resume {shlex.quote(str(found[-1].folder))}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.run import status_of, status_text

    status = status_of(arguments.folder)
    print(json.dumps(status, indent=2) if arguments.json else status_text(status, time.time()))
    return 0


VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "init": _init,
    "server": _server,
    "site": _site,
    "run": _run,
    "local": _local,
    "register": _register,
    "stop": _stop,
    "status": _status,
}
