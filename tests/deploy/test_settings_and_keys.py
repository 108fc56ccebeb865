"""Words of a deployment, the guard before the SuperLink, keys and folders: refused in one line, secret where secret."""

from __future__ import annotations

import dataclasses
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation import keys
from ssfl.deploy.federation.folders import make_federation, read_site_folder
from ssfl.deploy.federation.roster import load_roster
from ssfl.deploy.settings import DeploySettings, settings_of, split_words


def test_words_become_settings() -> None:
    words = ["deploy.quorum=0.75", "deploy.sites=5", "deploy.scoring=all", "deploy.server_data=true"]
    settings = settings_of(words)
    assert (settings.quorum, settings.sites, settings.scoring, settings.server_data) == (0.75, 5, "all", True)
    assert split_words(["a=1", "deploy.sites=2"]) == (["a=1"], ["deploy.sites=2"])


@pytest.mark.parametrize(
    ("share", "sites", "needed"),
    [("0.55", 100, 55), ("0.28", 25, 7), ("0.14", 50, 7), ("0.5", 5, 3), ("0.01", 3, 1), ("1", 7, 7)],
)
def test_the_quorum_is_rounded_up_from_the_exact_product(share: str, sites: int, needed: int) -> None:
    assert settings_of([f"deploy.quorum={share}"]).quorum_of(sites) == needed


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("deploy.quorom=1", "did you mean deploy.quorum"),
        ("deploy.quorum=0", "must be above 0"),
        ("deploy.quorum=1.5", "at most 1"),
        ("deploy.quorum=nan", "must be above 0"),
        ("deploy.deadline_seconds=soon", "must be a number"),
        ("deploy.sites=1.5", "must be a whole number"),
        (f"deploy.sites=1{'0' * 400}", "at most 1e\\+06"),
        ("deploy.scoring=never", "must be one of quorum, all"),
        ("deploy.server_data=yes", "must be true or false"),
        ("deploy.sites", "no such key"),
    ],
)
def test_bad_words_are_answered_in_one_line(word: str, reason: str) -> None:
    with pytest.raises(DeployError, match=reason) as caught:
        settings_of([word])
    assert "\n" not in str(caught.value)


def test_every_setting_is_documented() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"
    text = page.read_text(encoding="utf-8")
    assert [f.name for f in dataclasses.fields(DeploySettings) if f"`deploy.{f.name}`" not in text] == []


def test_only_the_owner_can_read_a_secret(tmp_path: Path) -> None:
    root = tmp_path / "f"
    make_federation(root, ["a", "b"], "fl.example.org:8443", ["10.1.2.3"])
    secrets = [p for p in root.rglob("*") if p.suffix in (".key", ".secret")]
    assert len(secrets) == 5
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in secrets)
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o700 for p in (root / "server", root / "sites" / "a"))
    for site in ("a", "b"):
        assert not [p for p in (root / "sites" / site).iterdir() if p.name.startswith(("ca.key", "server"))]
    folder = read_site_folder(root / "sites" / "b")
    assert (folder.superlink, folder.client, folder.name) == ("fl.example.org:8443", 1, "b")
    assert [m.name for m in load_roster(root / "server")] == ["a", "b"]
    with pytest.raises(DeployError, match="is not empty"):
        make_federation(root, ["a"], "h:1")


def test_the_certificate_is_for_the_names_given_and_trusted(tmp_path: Path) -> None:
    make_federation(tmp_path / "f", ["a"], "fl.example.org:8443", ["10.1.2.3"])
    server = tmp_path / "f" / "server"
    certificate = x509.load_pem_x509_certificate((server / keys.SERVER_CERTIFICATE).read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"fl.example.org", "localhost"}
    assert {str(a) for a in names.get_values_for_type(x509.IPAddress)} == {"10.1.2.3", "127.0.0.1", "::1"}
    authority = x509.load_pem_x509_certificate((server / keys.CA_CERTIFICATE).read_bytes())
    certificate.verify_directly_issued_by(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / keys.SERVER_CERTIFICATE, server / keys.SERVER_KEY)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    make_federation(tmp_path / "f", ["a"], "127.0.0.1:8000")
    key = tmp_path / "f" / "sites" / "a" / keys.SITE_KEY
    key.chmod(0o640)
    with pytest.raises(DeployError, match="chmod 600"):
        read_site_folder(key.parent)


@pytest.mark.parametrize("name", ["../b", "..", "a/b", "-a", ".a", "a b", "a\n", "", "x" * 65])
def test_a_sites_name_is_the_name_of_a_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="a site's name has"):
        make_federation(tmp_path / "f", ["a", name], "127.0.0.1:8000")
    assert not (tmp_path / "f").exists()
