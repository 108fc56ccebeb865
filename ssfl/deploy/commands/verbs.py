"""The verbs of `ssfl deploy`; each imports what it needs when it is called."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ssfl.deploy.errors import DeployError
from ssfl.deploy.log import EventLog

if TYPE_CHECKING:
    from ssfl.deploy.server.supervisor import ServerOptions

MOST_SITES = 10_000
"""Largest number of sites that `init` makes keys for."""


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

    root, names = arguments.root, _site_names(arguments.sites)
    make_federation(root, names, arguments.address, arguments.host)
    print(f"wrote {root}: keep {root}/server here")
    if names:
        print(
            f"send each folder of {root}/sites to its site over a secure channel: it contains a private key"
        )
    print(f"next: ssfl deploy server --folder {root}/server")
    print(f"sites that make their own keys: ssfl deploy register NAME site.pub --folder {root}/server")
    return 0


def _site_names(text: str) -> Sequence[str]:
    """The names that `--sites` gives: a number or a list. Raises DeployError."""
    number = text.removeprefix("-")
    if not number.isdecimal():
        return [name for name in text.split(",") if name]
    if number != text or len(text) > 9 or int(text) > MOST_SITES:
        raise DeployError(f"--sites {text}: must be a number from 0 to {MOST_SITES}, or names: a,b")
    return [f"site-{n}" for n in range(int(text))]


def _server(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.processes.locks import one_server_process
    from ssfl.deploy.server.supervisor import options_of

    options = options_of(
        arguments.folder,
        arguments.host,
        arguments.port,
        arguments.insecure,
        arguments.control_from,
        arguments.restarts,
    )
    if not options.folder.is_dir():
        raise DeployError(f"--folder {arguments.folder}: no such folder; `ssfl deploy init` writes one")
    with one_server_process(options.folder):
        _serve(options)
    return 0


def _serve(options: ServerOptions) -> None:
    """Start the server's processes and restart them until a signal arrives."""
    from ssfl.deploy.server.supervisor import Server, new_process_group

    log = EventLog("supervisor", options.folder / "supervisor.jsonl")
    processes = new_process_group(options)
    try:
        server = Server(options, processes, log)
        server.start()
        server.watch(threading.Event())
    finally:
        log.info("stopping")
        processes.close()


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


def _key(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.members import make_key

    return make_key(arguments)


def _register(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.members import register

    return register(arguments)


def _revoke(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.members import revoke

    return revoke(arguments)


def _renew(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.members import renew

    return renew(arguments)


def _stop(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.status import stop_run

    return stop_run(arguments)


def _status(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.status import show_status

    return show_status(arguments)


VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "init": _init,
    "server": _server,
    "site": _site,
    "run": _run,
    "local": _local,
    "key": _key,
    "register": _register,
    "revoke": _revoke,
    "renew": _renew,
    "stop": _stop,
    "status": _status,
}
