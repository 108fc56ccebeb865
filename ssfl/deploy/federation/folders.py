"""The folders that `ssfl deploy init` writes: one for the server, one for each site, one for researchers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssfl.deploy.errors import DeployError, reason_of
from ssfl.deploy.federation import keys
from ssfl.deploy.federation.addresses import host_name, join_address, split_address
from ssfl.deploy.federation.app_bundle import write_app
from ssfl.deploy.federation.roster import Member, Roster, check_site_name, fingerprint, save_roster

SITE_FILE, SERVER_FILE = "site.json", "server.json"
CONNECTION = "ssfl"
"""Name of the SuperLink connection in the researcher's Flower configuration."""

SITE_README = """\
This folder is of the site {name}. It needs site.key, the private key of the site: keep that secret (chmod 600). A site
that made its own key (ssfl deploy key) copies ca.crt and site.json next to it. Start with

    ssfl deploy site --folder THIS_FOLDER --data FOLDER_OR_NPZ

Only what the method sends leaves this site: model values, scores, counts of examples and correct predictions.
No code from the server is executed here.
"""
RESEARCHER_README = """\
Files for starting runs: ca.crt and app, and flwr/config.toml for the command flwr. Flower accepts an absolute path
only: if this folder is moved, write the new place of ca.crt into the line root-certificates of flwr/config.toml.
The server accepts runs from its own machine and from the networks given with ssfl deploy server --control-from.
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

    sites: those whose keys are made here; others are registered later. address: HOST:PORT that sites connect to.
    hosts: other names and addresses of the server.
    """
    host, port = split_address(address)
    address, hosts = join_address(host, port), [host_name(other) for other in hosts]
    if root.exists() and any(root.iterdir()):
        raise DeployError(f"{root}: is not empty; give a new folder")
    if len(set(sites)) < len(sites):
        raise DeployError("--sites: site names must be unique")
    for name in sites:
        check_site_name(name)
    server = root / "server"
    for folder in (root, server, server / "keys", root / "sites", root / "researcher"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    keys.make_authority(server)
    keys.make_server_certificate(server, [host, *hosts])
    keys.make_executor_secret(server)
    members = [_make_site(root, n, name, address) for n, name in enumerate(sites)]
    save_roster(server, Roster(tuple(members)))
    (server / SERVER_FILE).write_text(json.dumps({"address": address}, indent=2) + "\n")
    _make_researcher(root, address)


def _make_site(root: Path, number: int, name: str, address: str) -> Member:
    folder = root / "sites" / name
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise DeployError(f"site {name!r}: cannot be used as a folder name ({error.strerror})") from None
    keys.make_site_keys(folder, name)
    public = root / "server" / "keys" / f"{name}.pub"
    shutil.copy(folder / keys.SITE_PUBLIC_KEY, public)
    member = Member(number, name, fingerprint(public))
    write_site_files(folder, root / "server", member, address)
    return member


def write_site_files(folder: Path, server: Path, member: Member, address: str) -> None:
    """Write what a site needs besides its key; nothing of it is secret."""
    shutil.copy(server / keys.CA_CERTIFICATE, folder / keys.CA_CERTIFICATE)
    site = {"superlink": address, "client": member.client, "name": member.name}
    (folder / SITE_FILE).write_text(json.dumps(site, indent=2) + "\n")
    (folder / "README.txt").write_text(SITE_README.format(name=member.name))


def server_address(server: Path) -> str:
    """HOST:PORT that sites connect to, from a server's folder. Raises DeployError."""
    path = server / SERVER_FILE
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeployError(
            f"{path}: cannot be read ({reason_of(error)}); give --folder, the server's folder from `ssfl deploy init`"
        ) from None


def _make_researcher(root: Path, address: str) -> None:
    folder = root / "researcher"
    shutil.copy(root / "server" / keys.CA_CERTIFICATE, folder / keys.CA_CERTIFICATE)
    write_app(folder / "app")
    write_flower_config(folder / "flwr", address, folder / keys.CA_CERTIFICATE)
    (folder / "README.txt").write_text(RESEARCHER_README)


def write_flower_config(home: Path, address: str, root_certificates: Path | None) -> None:
    """FLWR_HOME/config.toml with one connection, for the command `flwr`."""
    home.mkdir(parents=True, exist_ok=True)
    trust = "insecure = true"
    if root_certificates is not None:
        trust = f"root-certificates = {json.dumps(str(root_certificates.resolve()))}"
    lines = ["[superlink]", f'default = "{CONNECTION}"', "", f"[superlink.{CONNECTION}]"]
    lines += [f'address = "{address}"', trust, ""]
    (home / "config.toml").write_text("\n".join(lines), encoding="utf-8")


def read_site_folder(folder: Path) -> SiteFolder:
    """Read a site's folder as `ssfl deploy init` wrote it. Raises DeployError."""
    path = folder / SITE_FILE
    try:
        site = json.loads(path.read_text(encoding="utf-8"))
        superlink, client, name = str(site["superlink"]), int(site["client"]), str(site["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeployError(
            f"{path}: cannot be read ({reason_of(error)}); give --folder, the site's folder from the server's operator "
            "(`ssfl deploy init` or `register`)"
        ) from None
    certificates, key = folder / keys.CA_CERTIFICATE, folder / keys.SITE_KEY
    secure = certificates.is_file()
    if secure:
        keys.check_private(key)
    return SiteFolder(superlink, client, name, certificates if secure else None, key if secure else None)
