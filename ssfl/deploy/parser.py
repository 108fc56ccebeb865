"""The command line of `ssfl deploy`: verbs, options, help. `commands` implements them."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLES = """\
on the server:
  ssfl deploy init federation --sites 3 --address fl.example.org:8000   certificates, keys, a folder for each site
  ssfl deploy server --folder federation/server                         start the SuperLink with TLS and node keys
  ssfl deploy run --folder federation/server preset=digits training.frac=1.0   start a run, with the keys of main.py
  ssfl deploy register NAME site.pub --folder federation/server         a site that made its key itself, or a new key
at each site:
  ssfl deploy key my_site                                               make a private key at the site
  ssfl deploy site --folder federation/sites/site-0 --data my_data.npz  join with local data
everything on this machine, with embedded data:
  ssfl deploy local --sites 3 preset=digits training.frac=1.0

Guide, faults and threat model: docs/deployment.md.
"""


def add_deploy(verbs: Any) -> None:
    """`ssfl deploy` and its verbs."""
    shape = argparse.RawDescriptionHelpFormatter
    deploy = verbs.add_parser(
        "deploy", help="a federation between real sites, on Flower", epilog=EXAMPLES, formatter_class=shape
    )
    inside = deploy.add_subparsers(dest="deploy_verb", required=True)
    _add_init(inside.add_parser("init", help="write certificates, keys and a folder for each site"))
    _add_server(inside.add_parser("server", help="start and supervise the server"))
    _add_site(inside.add_parser("site", help="join a federation with local data"))
    _add_run(inside.add_parser("run", help="start a run"))
    _add_local(inside.add_parser("local", help="run a server and sites on this machine"))
    _add_key(inside.add_parser("key", help="at a site: make its private and public key"))
    _add_register(inside.add_parser("register", help="register another site, or a new key for a site"))
    _add_revoke(inside.add_parser("revoke", help="remove a site: its key is refused from now on"))
    _add_renew(inside.add_parser("renew", help="renew the server's certificate"))
    _add_stop(inside.add_parser("stop", help="stop a run; `ssfl deploy run --resume` continues it"))
    status = inside.add_parser("status", help="show the server's runs and sites; code 1 if it is down")
    _add_folder(status)
    status.add_argument("--json", action="store_true", help="print JSON")


def _whole(low: int, high: int = 1 << 31) -> Callable[[str], int]:
    """An argparse type: a whole number from `low` to `high`."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if low <= (value := int(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from {low} to {high}")

    return read


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text}: must be a number of at least 0")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=Path("server"), help="the server's folder")


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="FOLDER", help="folder to create")
    parser.add_argument(
        "--sites", default="1", help="number of sites whose keys are made here, or names: a,b"
    )
    parser.add_argument("--address", default="127.0.0.1:8000", help="HOST:PORT that sites will connect to")
    parser.add_argument(
        "--host", action="append", default=[], help="another host name or address of the server"
    )


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=Path("server"), help="the server's folder, from init")
    parser.add_argument(
        "--host",
        default="",
        help="address to listen on (default: all IPv4 addresses, 127.0.0.1 if insecure; '::' for all IPv6 addresses)",
    )
    parser.add_argument(
        "--port", type=_whole(0, 65535), default=0, help="default: the port of --address at init"
    )
    parser.add_argument("--insecure", action="store_true", help="no TLS and no node keys; loopback only")
    parser.add_argument(
        "--control-from",
        action="append",
        default=[],
        metavar="NETWORK",
        help="hosts that may start runs besides this machine; they can execute code on this machine",
    )
    parser.add_argument(
        "--restarts", type=_whole(0), default=20, help="how many times a run is resumed after crashes"
    )


def _add_site(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, help="the site's folder, from init")
    parser.add_argument("--superlink", default="", help="HOST:PORT (default: the address in --folder)")
    parser.add_argument("--data", required=True, help="image folder or .npz (docs/data.md)")
    parser.add_argument("--check", action="store_true", help="read the data, print its sizes, and end")
    parser.add_argument("--test", choices=("auto", "none"), default="auto", help="none: train on all rows")
    parser.add_argument(
        "--class-names", default="", help="common label order, such as cat,dog; default: the run's"
    )
    parser.add_argument("--model", default="", help="allow this local network class: package.module:Class")
    parser.add_argument("--algorithm", default="", help="allow this local method: package.module:NAME")
    parser.add_argument(
        "--state", type=Path, help="folder for client state: masks, codec feedback (default: FOLDER/state)"
    )
    parser.add_argument("--threads", type=_whole(1), default=1, help="number of PyTorch threads")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--client", type=_whole(-1), default=-1, help="client number, if the server has no roster; -1: any"
    )
    parser.add_argument("--insecure", action="store_true", help="no TLS and no key; loopback only")
    parser.add_argument(
        "--max-message-mb", type=_whole(1), default=2000, help="largest message accepted, in MB"
    )
    parser.add_argument(
        "--give-up-seconds",
        type=_seconds,
        default=0.0,
        help="stop after so long without a connection; 0: never",
    )
    parser.add_argument(
        "--stock-supernode",
        default="",
        metavar="HOST:PORT",
        help="work for a stock `flower-supernode --isolation process` at this address",
    )
    parser.add_argument("--stock-secret", type=Path, help="the SuperNode's --superexec-auth-secret-file")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="as `ssfl run`, and deploy.KEY=VALUE")
    _add_folder(parser)
    parser.add_argument(
        "--superlink", default="", help="HOST:PORT of a remote server whose --control-from includes this host"
    )
    parser.add_argument("--root-certificates", type=Path, help="CA certificate of that server")
    parser.add_argument("--resume", default="", metavar="RUN_FOLDER", help="continue a run that stopped")
    parser.add_argument("--detach", action="store_true", help="return at once instead of showing the run")


def _add_local(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="as `ssfl run`; default: preset=digits")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--insecure", action="store_true", help="without TLS and node keys")
    parser.add_argument("--keep", type=Path, help="keep logs, keys and data here")
    parser.add_argument("--console", choices=("auto", "rich", "plain", "quiet", "json"), default="auto")
    parser.add_argument(
        "--seconds", type=_seconds, default=0.0, help="stop after this number of seconds; 0: never"
    )


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "site_folder", type=Path, metavar="FOLDER", help="the site's folder; created if it does not exist"
    )


def _add_register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the site's name")
    parser.add_argument("public_key", type=Path, metavar="PUBLIC_KEY", help="its site.pub")
    _add_folder(parser)
    parser.add_argument("--client", type=int, help="client number, to replace the key of a known site")


def _add_revoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the site's name")
    _add_folder(parser)


def _add_renew(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("--ca-key", type=Path, help="the authority's key (default: ca.key in --folder)")
    parser.add_argument(
        "--host", action="append", default=[], help="another host name or address of the server"
    )


def _add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the run's name, from `ssfl deploy status`")
    _add_folder(parser)
