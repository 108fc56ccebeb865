"""Keys of sites after `init`: a site's own key, registration, replacement, revocation; a new certificate."""

from __future__ import annotations

import errno
import json
import os
import re
import ssl
import stat
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from cryptography import x509

from ssfl.cli import main
from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation import keys
from ssfl.deploy.federation.folders import make_federation, read_site_folder
from ssfl.deploy.federation.registration import register_site, revoke_site
from ssfl.deploy.federation.roster import fingerprint, load_roster, read_roster
from ssfl.deploy.transport.control import Control


@pytest.fixture
def server(tmp_path: Path) -> Path:
    make_federation(tmp_path / "f", ["a", "b"], "fl.example.org:8443")
    return tmp_path / "f" / "server"


def own_key(folder: Path) -> Path:
    """A public key that a site has made; its private key is beside it."""
    assert main(["deploy", "key", str(folder)]) == 0
    return folder / keys.SITE_PUBLIC_KEY


def names(server: Path) -> list[tuple[int, str]]:
    return [(m.client, m.name) for m in load_roster(server)]


def test_a_site_makes_its_own_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public_key = own_key(tmp_path / "hospital")
    private_key = tmp_path / "hospital" / keys.SITE_KEY
    assert stat.S_IMODE(private_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(private_key.parent.stat().st_mode) == 0o700
    assert fingerprint(public_key) in capsys.readouterr().out
    # ssh-keygen, another implementation, derives the same public key.
    done = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(private_key)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[:2] == public_key.read_text().split()[:2]
    before = private_key.read_bytes()
    assert main(["deploy", "key", str(tmp_path / "hospital")]) == 2
    assert "keys are not overwritten" in capsys.readouterr().err
    assert private_key.read_bytes() == before


def test_a_registered_site_gets_all_that_it_needs_besides_its_key(
    server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hospital = tmp_path / "hospital"
    public_key = own_key(hospital)
    capsys.readouterr()
    assert main(["deploy", "register", "c", str(public_key), "--folder", str(server)]) == 0
    out = capsys.readouterr().out
    assert fingerprint(public_key) in out
    handover = server / "handover" / "c"
    assert str(handover) in out
    assert {p.name for p in handover.iterdir()} == {"ca.crt", "site.json", "README.txt"}
    for name in ("ca.crt", "site.json"):
        (hospital / name).write_bytes((handover / name).read_bytes())
    site = read_site_folder(hospital)
    assert (site.superlink, site.client, site.name) == ("fl.example.org:8443", 2, "c")
    assert names(server) == [(0, "a"), (1, "b"), (2, "c")]
    assert (server / "keys" / "c.pub").read_bytes() == public_key.read_bytes()


def test_a_site_that_lost_its_key_keeps_its_number(server: Path, tmp_path: Path) -> None:
    old = server.parent / "sites" / "b" / keys.SITE_PUBLIC_KEY
    new = own_key(tmp_path / "new")
    done = register_site(server, "b2", new, 1)
    assert names(server) == [(0, "a"), (1, "b2")]
    assert json.loads((done.handover / "site.json").read_text())["client"] == 1
    assert {p.name for p in (server / "keys").iterdir()} == {"a.pub", "b2.pub"}
    before = (server / "roster.json").read_bytes()
    for name, key, client, reason in [
        ("b3", new, None, "is already the key of b2"),
        ("a", new, 1, "a: is the name of client 0"),
        ("c", new, -1, "--client -1"),
        ("b2", old, 1, "was revoked or replaced"),
        ("c", tmp_path / "none.pub", None, "cannot be read as a public key"),
        ("../c", new, None, "a site's name has"),
    ]:
        with pytest.raises(DeployError, match=reason):
            register_site(server, name, key, client)
    assert (server / "roster.json").read_bytes() == before


@pytest.mark.parametrize("blocked", ["handover/c", "keys/c.pub"])
def test_files_that_cannot_be_written_leave_the_roster_as_it_was(
    blocked: str, server: Path, tmp_path: Path
) -> None:
    """A site on the roster without its public key would end the supervisor at its next start."""
    key, before = own_key(tmp_path / "c"), (server / "roster.json").read_bytes()
    in_the_way = server / blocked
    in_the_way.parent.mkdir(exist_ok=True)
    if blocked.startswith("handover"):
        in_the_way.write_text("a file where a folder is needed")
    else:
        in_the_way.mkdir()
    with pytest.raises(OSError, match=re.escape(str(in_the_way))):
        register_site(server, "c", key, None)
    assert (server / "roster.json").read_bytes() == before
    (in_the_way.rmdir if in_the_way.is_dir() else in_the_way.unlink)()
    assert register_site(server, "c", key, None).member.client == 2


def test_files_of_a_replaced_name_are_removed(server: Path, tmp_path: Path) -> None:
    register_site(server, "c", own_key(tmp_path / "c"), None)
    register_site(server, "d", own_key(tmp_path / "d"), 2)
    assert {p.name for p in (server / "handover").iterdir()} == {"d"}
    assert {p.name for p in (server / "keys").iterdir()} == {"a.pub", "b.pub", "d.pub"}


@pytest.mark.parametrize("text", [None, "", "no key", "ssh-unknown AAAA c"])
def test_a_public_key_that_cannot_be_read_is_one_line(text: str | None, server: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.pub"
    if text is not None:
        path.write_text(text)
    control = Control("127.0.0.1:1", None)
    for register in (
        lambda: register_site(server, "c", path, None),
        lambda: control.register(path, "c"),
    ):
        with pytest.raises(DeployError, match=r"c\.pub: cannot be read as a public key") as caught:
            register()
        assert "\n" not in str(caught.value)
    control.close()


def test_a_key_in_the_servers_own_folder_can_be_registered(server: Path, tmp_path: Path) -> None:
    key = server / "keys" / "a.pub"
    key.write_bytes(own_key(tmp_path / "new").read_bytes())
    register_site(server, "a", key, 0)
    assert load_roster(server)[0].key == fingerprint(key)


def test_a_revoked_site_is_no_member_and_its_number_is_not_given_away(
    server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = own_key(tmp_path / "c")
    register_site(server, "c", key, None)
    assert main(["deploy", "revoke", "c", "--folder", str(server)]) == 0
    assert names(server) == [(0, "a"), (1, "b")]
    assert not (server / "keys" / "c.pub").exists()
    assert [m.name for m in read_roster(server).revoked] == ["c"]
    with pytest.raises(
        DeployError, match="was revoked or replaced; the site makes a new one: ssfl deploy key"
    ):
        register_site(server, "c", key, None)
    assert register_site(server, "c", own_key(tmp_path / "c2"), None).member.client == 3
    capsys.readouterr()
    assert main(["deploy", "revoke", "nobody", "--folder", str(server)]) == 2
    assert "nobody: no such site" in capsys.readouterr().err
    with pytest.raises(DeployError, match="registered: a, b, c"):
        revoke_site(server, "nobody")


def test_a_folder_that_is_not_a_servers_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = own_key(tmp_path / "c")
    for words in (["register", "c", str(key)], ["revoke", "c"]):
        capsys.readouterr()
        assert main(["deploy", *words, "--folder", str(tmp_path / "none")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "server.json: cannot be read" in line
        assert "give --folder" in line


def test_a_federation_may_begin_without_sites(tmp_path: Path) -> None:
    assert main(["deploy", "init", str(tmp_path / "f"), "--sites", "0"]) == 0
    assert read_roster(tmp_path / "f" / "server").members == ()
    assert register_site(tmp_path / "f" / "server", "a", own_key(tmp_path / "a"), None).member.client == 0


@pytest.mark.parametrize(
    "text", ["", "[]", '{"sites": [1]}', '{"sites": [{"client": 0}]}', '{"sites": [], "revoked": 3}']
)
def test_a_damaged_roster_is_one_line(server: Path, text: str) -> None:
    (server / "roster.json").write_text(text)
    with pytest.raises(DeployError, match="cannot be read as a roster") as caught:
        read_roster(server)
    assert "\n" not in str(caught.value)


def test_a_renewed_certificate_has_the_old_names_and_is_trusted_by_the_sites(server: Path) -> None:
    first = x509.load_pem_x509_certificate((server / keys.SERVER_CERTIFICATE).read_bytes())
    assert main(["deploy", "renew", "--folder", str(server), "--host", "10.9.8.7"]) == 0
    second = x509.load_pem_x509_certificate((server / keys.SERVER_CERTIFICATE).read_bytes())
    assert second.serial_number != first.serial_number
    found = [c.extensions.get_extension_for_class(x509.SubjectAlternativeName).value for c in (first, second)]
    assert {str(n) for n in found[1]} - {str(n) for n in found[0]} == {"<IPAddress(value=10.9.8.7)>"}
    assert {str(n) for n in found[0]} <= {str(n) for n in found[1]}
    words = ["openssl", "verify", "-CAfile", str(server.parent / "sites" / "a" / keys.CA_CERTIFICATE)]
    subprocess.run([*words, str(server / keys.SERVER_CERTIFICATE)], check=True, capture_output=True)
    assert stat.S_IMODE((server / keys.SERVER_KEY).stat().st_mode) == 0o600
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
        server / keys.SERVER_CERTIFICATE, server / keys.SERVER_KEY
    )
    assert not list(server.glob(".server*"))


def test_a_full_disk_leaves_the_old_certificate_with_its_key(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def full(path: Path, raw: bytes) -> None:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path.name)
        write_private(path, raw)

    files = {path.name for path in server.iterdir()}
    write_private = keys.write_private
    monkeypatch.setattr(keys, "write_private", full)
    with pytest.raises(OSError, match="No space left"):
        keys.renew_server_certificate(server, server / keys.CA_KEY, [])
    assert written
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
        server / keys.SERVER_CERTIFICATE, server / keys.SERVER_KEY
    )
    assert {path.name for path in server.iterdir()} == files


def test_a_certificate_is_renewed_with_the_authoritys_key_only(
    server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_federation(tmp_path / "other", ["a"], "127.0.0.1:8000")
    (server / keys.CA_KEY).rename(tmp_path / "safe.key")
    before = (server / keys.SERVER_CERTIFICATE).read_bytes()
    for words, reason in [
        ([], "--ca-key"),
        (["--ca-key", str(tmp_path / "other" / "server" / keys.CA_KEY)], "is not the key of ca.crt"),
        (["--ca-key", str(server / "roster.json")], "is not a private key"),
    ]:
        assert main(["deploy", "renew", "--folder", str(server), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line
    assert (server / keys.SERVER_CERTIFICATE).read_bytes() == before
    assert main(["deploy", "renew", "--folder", str(server), "--ca-key", str(tmp_path / "safe.key")]) == 0
