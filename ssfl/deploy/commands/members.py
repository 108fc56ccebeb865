"""`ssfl deploy key`, `register`, `revoke` and `renew`: the keys and certificates of a federation in use.

The roster is changed first. A running server receives the change at once; otherwise it reads the roster at its start.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ssfl.deploy.commands.run import control_of
from ssfl.deploy.errors import DeployError, UnreachableError
from ssfl.deploy.federation import keys
from ssfl.deploy.federation.addresses import host_name
from ssfl.deploy.federation.registration import register_site, revoke_site
from ssfl.deploy.federation.roster import fingerprint, load_roster
from ssfl.deploy.transport.control import Control


def make_key(arguments: argparse.Namespace) -> int:
    """Write a site's private key and its public key, at the site. Returns the exit code. Raises DeployError."""
    folder: Path = arguments.site_folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys.make_site_keys(folder, folder.resolve().name)
    public_key = folder / keys.SITE_PUBLIC_KEY
    print(f"wrote {folder / keys.SITE_KEY}: keep it here; send {public_key} to the operator of the server")
    print(f"SHA-256 of the public key: {fingerprint(public_key)}")
    return 0


def register(arguments: argparse.Namespace) -> int:
    """Register a site or a site's new key. Returns the exit code. Raises DeployError."""
    done = register_site(arguments.folder, arguments.name, arguments.public_key, arguments.client)
    member = done.member

    def change(control: Control) -> None:
        control.register(arguments.public_key, member.name)
        control.unregister_others(_keys(arguments.folder))

    _update_server(arguments.folder, change)
    print(f"{member.name} is client {member.client}; SHA-256 of its public key: {member.key}")
    print(f"send {done.handover} to the site, which copies ca.crt and site.json next to its site.key")
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    """Refuse a site from now on. Returns the exit code. Raises DeployError."""
    member = revoke_site(arguments.folder, arguments.name)
    _update_server(arguments.folder, lambda control: control.unregister_others(_keys(arguments.folder)))
    print(f"{member.name} (client {member.client}) is revoked: its key is refused from now on")
    return 0


def renew(arguments: argparse.Namespace) -> int:
    """Renew the server's certificate. Returns the exit code. Raises DeployError."""
    hosts = [host_name(host) for host in arguments.host]
    ca_key = arguments.ca_key or arguments.folder / keys.CA_KEY
    end = keys.renew_server_certificate(arguments.folder, ca_key, hosts)
    print(
        f"the certificate is valid until {end:%Y-%m-%d}; restart the server to use it; sites keep their ca.crt"
    )
    return 0


def _keys(folder: Path) -> set[str]:
    """SHA-256 of the keys on the roster."""
    return {member.key for member in load_roster(folder)}


def _update_server(folder: Path, change: Callable[[Control], object]) -> None:
    """Apply the change at the running server, if there is one. Raises DeployError if it refuses."""
    if not (folder / "flwr" / "config.toml").is_file():
        return  # not started yet
    try:
        with control_of(folder) as control:
            change(control)
    except UnreachableError as error:
        print(f"ssfl: {error}; the change takes effect when the server starts", file=sys.stderr)
    except DeployError as error:
        raise DeployError(
            f"the roster is changed, but the running server refused the change: {error}"
        ) from None
