"""The roster: keys and client numbers of the registered sites, in a file in the server's folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from ssfl.deploy.errors import DeployError, reason_of
from ssfl.output import write_atomically

FILE = "roster.json"
LONGEST_NAME = 64
SITE_NAME = re.compile(rf"(?!_)\w[\w.-]{{0,{LONGEST_NAME - 1}}}")


@dataclass(frozen=True)
class Member:
    """A registered site."""

    client: int
    name: str
    key: str
    """SHA-256 of its public key, hex."""


@dataclass(frozen=True)
class Roster:
    """The sites of a federation, in the order of clients."""

    members: tuple[Member, ...] = ()
    revoked: tuple[Member, ...] = ()
    """Keys that were replaced or revoked: they are not registered again, and their client numbers are not reused."""


def fingerprint(public_key: Path) -> str:
    """SHA-256 (hex) of a public key as Flower sees it (PEM). Raises DeployError."""
    pem = read_public_key(public_key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def read_public_key(path: Path) -> Any:
    """A public key in OpenSSH format, as an object of `cryptography`. Raises DeployError."""
    try:
        return load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise DeployError(
            f"{path}: cannot be read as a public key ({reason_of(error)}); give the site's site.pub"
        ) from None


def load_roster(folder: Path | None) -> tuple[Member, ...]:
    """The members in the order of clients; empty without a roster. Raises DeployError."""
    return read_roster(folder).members


def read_roster(folder: Path | None) -> Roster:
    """The roster in a server's folder; empty without one. Raises DeployError."""
    path = None if folder is None else folder / FILE
    if path is None or not path.is_file():
        return Roster()
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        members, revoked = _members(fields["sites"]), _members(fields.get("revoked", []))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeployError(
            f"{path}: cannot be read as a roster ({reason_of(error)}); restore it from a backup"
        ) from None
    return Roster(_checked(members, path), revoked)


def existing_roster(folder: Path) -> Roster:
    """The roster in a server's folder, where it must exist: a new one would give client numbers away twice.

    Raises DeployError.
    """
    if not (folder / FILE).is_file():
        raise DeployError(f"{folder / FILE}: is missing; restore it from a backup of the server's folder")
    return read_roster(folder)


def _members(items: Sequence[Any]) -> tuple[Member, ...]:
    return tuple(Member(int(i["client"]), str(i["name"]), str(i["key"])) for i in items)


def _checked(members: Sequence[Member], path: Path) -> tuple[Member, ...]:
    """The members in the order of clients. Raises DeployError."""
    numbers, keys = {m.client for m in members}, {m.key for m in members}
    if len(numbers) < len(members) or len(keys) < len(members):
        raise DeployError(f"{path}: two sites have one client number or one key")
    return tuple(sorted(members, key=lambda member: member.client))


def check_site_name(name: str) -> None:
    """Raises DeployError for a name that cannot be the name of a folder and of a key file."""
    if not SITE_NAME.fullmatch(name):
        raise DeployError(
            f"site {name!r:.80}: a site's name has 1 to {LONGEST_NAME} letters, digits, '_', '-' and '.', "
            "and begins with a letter or digit"
        )


def save_roster(folder: Path, roster: Roster) -> None:
    """Write the roster atomically. Raises DeployError, and writes nothing, if two sites have one number or key."""
    checked = _checked(roster.members, folder / FILE)
    lists = {"sites": checked, "revoked": roster.revoked}
    fields = {
        name: [{"client": m.client, "name": m.name, "key": m.key} for m in members]
        for name, members in lists.items()
    }
    write_atomically(folder / FILE, (json.dumps(fields, indent=2) + "\n").encode())
