"""The folders that `ssfl deploy init` writes: one for the server, one for each site, one for researchers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation import keys
from ssfl.deploy.federation.app_bundle import write_app
from ssfl.deploy.federation.roster import Member, check_site_name, fingerprint, load_roster, save_roster

SITE_FILE = "site.json"
CONNECTION = "ssfl"
"""Name of the SuperLink connection in the researcher's Flower configuration."""

SITE_README = """\
site.key in this folder identifies the site {name}. Keep it secret (chmod 600). Start with

    ssfl deploy site --folder THIS_FOLDER --data FOLDER_OR_NPZ

Only what the method sends leaves this site: model values, scores, counts of examples and correct predictions.
No code from the server is executed here.
"""


@dataclass(frozen=True)
class SiteFolder:
    """The contents of a site's folder."""

    superlink: str
    client: int
    name: str
    root_certificates: Path | None
    private_key: Path | None


def make_federation(root: Path, sites: Sequence[str], address: str, hosts: Sequence[str] = ()) -> None:
    """Write everything below `root`, which must be new or empty. Raises DeployError.

    address: HOST:PORT that sites connect to; hosts: other names and addresses of the server.
    """
    host, port = split_address(address)
    if root.exists() and any(root.iterdir()):
        raise DeployError(f"{root}: is not empty; give a new folder")
    if not sites or len(set(sites)) < len(sites):
        raise DeployError("site names must be unique and not empty; give at least one")
    for name in sites:
        check_site_name(name)
    server = root / "server"
    for folder in (root, server, server / "keys", root / "sites", root / "researcher"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    keys.make_authority(server)
    keys.make_server_certificate(server, [host, *hosts])
    keys.make_executor_secret(server)
    members = [_make_site(root, n, name, f"{host}:{port}") for n, name in enumerate(sites)]
    save_roster(server, members)
    (server / "server.json").write_text(json.dumps({"address": f"{host}:{port}"}, indent=2) + "\n")
    _make_researcher(root, f"{host}:{port}")


def _make_site(root: Path, number: int, name: str, address: str) -> Member:
    folder = root / "sites" / name
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise DeployError(f"site {name!r}: cannot be used as a folder name ({error.strerror})") from None
    keys.make_site_keys(folder, name)
    shutil.copy(root / "server" / keys.CA_CERTIFICATE, folder / keys.CA_CERTIFICATE)
    site = {"superlink": address, "client": number, "name": name}
    (folder / SITE_FILE).write_text(json.dumps(site, indent=2) + "\n")
    (folder / "README.txt").write_text(SITE_README.format(name=name))
    public = root / "server" / "keys" / f"{name}.pub"
    shutil.copy(folder / keys.SITE_PUBLIC_KEY, public)
    return Member(number, name, fingerprint(public))


def _make_researcher(root: Path, address: str) -> None:
    folder = root / "researcher"
    shutil.copy(root / "server" / keys.CA_CERTIFICATE, folder / keys.CA_CERTIFICATE)
    write_app(folder / "app")
    write_flower_config(folder / "flwr", address, folder / keys.CA_CERTIFICATE)


def write_flower_config(home: Path, address: str, root_certificates: Path | None) -> None:
    """FLWR_HOME/config.toml with one connection, for the command `flwr`."""
    home.mkdir(parents=True, exist_ok=True)
    trust = "insecure = true"
    if root_certificates is not None:
        trust = f"root-certificates = {json.dumps(str(root_certificates.resolve()))}"
    lines = ["[superlink]", f'default = "{CONNECTION}"', "", f"[superlink.{CONNECTION}]"]
    lines += [f'address = "{address}"', trust, ""]
    (home / "config.toml").write_text("\n".join(lines), encoding="utf-8")


def add_member(server: Path, public_key: Path, name: str, client: int | None) -> Member:
    """Add a site to the roster, or replace the key of client `client`. Raises DeployError, and changes nothing then."""
    check_site_name(name)
    if client is not None and client < 0:
        raise DeployError(f"--client {client}: must be at least 0")
    members = list(load_roster(server))
    key = fingerprint(public_key)
    number = client if client is not None else max((m.client for m in members), default=-1) + 1
    member = Member(number, name, key)
    members = [m for m in members if m.client != number]
    namesake = next((m for m in members if m.name == name), None)
    if namesake is not None:
        raise DeployError(
            f"--name {name}: is the name of client {namesake.client}; to replace its key: --client {namesake.client}"
        )
    save_roster(server, [*members, member])
    kept = server / "keys" / f"{name}.pub"
    kept.parent.mkdir(exist_ok=True)
    if kept.resolve() != public_key.resolve():
        shutil.copy(public_key, kept)
    return member


def read_site_folder(folder: Path) -> SiteFolder:
    """Read a site's folder as `ssfl deploy init` wrote it. Raises DeployError."""
    path = folder / SITE_FILE
    try:
        site = json.loads(path.read_text(encoding="utf-8"))
        superlink, client, name = str(site["superlink"]), int(site["client"]), str(site["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeployError(
            f"{path}: cannot be read ({error}); `ssfl deploy init` writes the folder of a site"
        ) from None
    certificates, key = folder / keys.CA_CERTIFICATE, folder / keys.SITE_KEY
    secure = certificates.is_file()
    if secure:
        keys.check_private(key)
    return SiteFolder(superlink, client, name, certificates if secure else None, key if secure else None)


def split_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT into host and port. Raises DeployError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise DeployError(f"{address}: must be HOST:PORT, such as fl.example.org:8000")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT is a loopback address."""
    host = split_address(address)[0]
    return host == "localhost" or host.startswith("127.") or host == "::1"
