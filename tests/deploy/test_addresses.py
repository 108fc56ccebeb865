"""Addresses as HOST:PORT: IPv6 in brackets in what is read, written and certified."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from cryptography import x509

from ssfl.cli import main
from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation import keys
from ssfl.deploy.federation.addresses import host_name, is_loopback, join_address, split_address
from ssfl.deploy.federation.folders import make_federation, read_site_folder
from ssfl.deploy.server.supervisor import ServerOptions, options_of


@pytest.mark.parametrize(
    "address",
    ["nowhere", "host:", ":80", "host:0", "host:99999", "host:http", "::1:80", "[::1:80", "[fl]:80", "[::1]", "a b:80",
     "https://host:80", "[fe80::1%eth0]:80"],
)  # fmt: skip
def test_an_address_needs_host_and_port(address: str) -> None:
    with pytest.raises(DeployError, match="HOST:PORT") as caught:
        split_address(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["fl.example.org:8000", "10.0.0.1:1", "[2001:db8::1]:8000", "[::1]:65535"]
)
def test_an_address_is_written_as_it_is_read(address: str) -> None:
    assert join_address(*split_address(address)) == address


@pytest.mark.parametrize("host", ["fl.example.org:8000", "[fl]", "a/b", "", "10.0.0.1/8"])
def test_another_host_has_no_port(host: str) -> None:
    with pytest.raises(DeployError, match="without a port"):
        host_name(host)


def test_loopback_addresses_are_recognised() -> None:
    assert all(map(is_loopback, ("127.0.0.1:1", "127.8.9.1:1", "localhost:1", "[::1]:1")))
    assert not any(map(is_loopback, ("10.0.0.1:1", "example.org:1", "0.0.0.0:1", "[::]:1")))


def test_a_federation_at_an_ipv6_address(tmp_path: Path) -> None:
    root = tmp_path / "f"
    make_federation(root, ["a"], "[2001:db8::1]:8443", ["[2001:db8::2]", "fl.example.org"])
    assert read_site_folder(root / "sites" / "a").superlink == "[2001:db8::1]:8443"
    assert 'address = "[2001:db8::1]:8443"' in (root / "researcher" / "flwr" / "config.toml").read_text()
    certificate = x509.load_pem_x509_certificate((root / "server" / keys.SERVER_CERTIFICATE).read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("2001:db8::2") in names.get_values_for_type(x509.IPAddress)
    options = options_of(root / "server", "[2001:db8::1]", 0, False, (), 1)
    assert (options.host, options.port) == ("2001:db8::1", 8443)


@pytest.mark.parametrize("text", [None, "", "[]", "{}"])
def test_without_an_address_in_server_json_the_port_is_8000(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "server.json").write_text(text)
    options = options_of(tmp_path, "", 0, True, (), 1)
    assert (options.host, options.port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("host", "local"),
    [("0.0.0.0", "127.0.0.1:5"), ("::", "[::1]:5"), ("2001:db8::1", "[2001:db8::1]:5")],
)
def test_where_this_machine_reaches_the_server(host: str, local: str, tmp_path: Path) -> None:
    # asyncio listens on :: for IPv6 only.
    assert ServerOptions(tmp_path, host, 5).local_address == local


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--superlink", "2001:db8::1:8000"],
        ["site", "--superlink", "::1:8000", "--insecure", "--data", "."],
        ["init", "new", "--address", "::1:8000"],
    ],
)
def test_a_command_refuses_an_address_without_brackets(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "IPv6 in brackets" in line
