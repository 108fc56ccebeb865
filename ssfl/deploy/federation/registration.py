"""Changes of a federation's sites after `ssfl deploy init`: a new site, a new key of a site, a site that leaves."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation.folders import server_address, write_site_files
from ssfl.deploy.federation.roster import (
    Member,
    Roster,
    check_site_name,
    existing_roster,
    fingerprint,
    save_roster,
)
from ssfl.output import write_atomically

HANDOVER = "handover"
"""Folder of the server with one folder for each site registered later: what the site needs besides its own key."""


@dataclass(frozen=True)
class Registration:
    """A site on the roster."""

    member: Member
    handover: Path
    """Files for the site, none of them secret."""


def register_site(server: Path, name: str, public_key: Path, client: int | None) -> Registration:
    """Add a site, or replace the key of client `client`. Raises DeployError, and changes nothing then."""
    check_site_name(name)
    if client is not None and client < 0:
        raise DeployError(f"--client {client}: must be at least 0")
    address, roster, key = server_address(server), existing_roster(server), fingerprint(public_key)
    member = Member(_next_client(roster) if client is None else client, name, key)
    _check_unused(roster, key, member.client, public_key)
    kept = [m for m in roster.members if m.client != member.client]
    same_name = next((m for m in kept if m.name == name), None)
    if same_name is not None:
        raise DeployError(
            f"{name}: is the name of client {same_name.client}; to replace its key: --client {same_name.client}"
        )
    replaced = [m for m in roster.members if m.client == member.client and m.key != key]
    # The roster is written last: a running server needs the key file of every site on it.
    handover = server / HANDOVER / name
    handover.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_site_files(handover, server, member, address)
    path = _public_key(server, name)
    path.parent.mkdir(exist_ok=True, mode=0o700)
    write_atomically(path, public_key.read_bytes())
    save_roster(server, Roster((*kept, member), (*roster.revoked, *replaced)))
    for old in replaced:
        if old.name != name:
            _remove_files(server, old.name)
    return Registration(member, handover)


def revoke_site(server: Path, name: str) -> Member:
    """Remove a site and its key from the roster. Returns it. Raises DeployError for an unknown site or folder."""
    server_address(server)  # refuses a folder that is not a server's
    roster = existing_roster(server)
    member = next((m for m in roster.members if m.name == name), None)
    if member is None:
        names = ", ".join(m.name for m in roster.members) or "none"
        raise DeployError(f"{name}: no such site in {server}; registered: {names}")
    kept = tuple(m for m in roster.members if m is not member)
    save_roster(server, Roster(kept, (*roster.revoked, member)))
    _remove_files(server, name)
    return member


def _remove_files(server: Path, name: str) -> None:
    _public_key(server, name).unlink(missing_ok=True)
    shutil.rmtree(server / HANDOVER / name, ignore_errors=True)


def _public_key(server: Path, name: str) -> Path:
    return server / "keys" / f"{name}.pub"


def _check_unused(roster: Roster, key: str, client: int, public_key: Path) -> None:
    """Raises DeployError for a key of another site, or one that was revoked or replaced."""
    for member in roster.members:
        if member.key == key and member.client != client:
            raise DeployError(
                f"{public_key}: is already the key of {member.name} (client {member.client}); "
                "every site needs its own key: ssfl deploy key"
            )
    for old in roster.revoked:
        if old.key == key:
            raise DeployError(
                f"{public_key}: this key of {old.name} was revoked or replaced; "
                "the site makes a new one: ssfl deploy key"
            )


def _next_client(roster: Roster) -> int:
    return max((m.client for m in (*roster.members, *roster.revoked)), default=-1) + 1
