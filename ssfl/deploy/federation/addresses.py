"""Network addresses as HOST:PORT; an IPv6 address is written in brackets."""

from __future__ import annotations

import contextlib
import ipaddress
import re

from ssfl.deploy.errors import DeployError

HOST = re.compile(r"\w[\w.-]*")
"""A host name or an IPv4 address."""
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""An address to listen on that means every interface -> the loopback address at which it listens too."""


def split_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT into host (without brackets) and port. Raises DeployError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536 or not _is_host(host):
        raise DeployError(
            f"{address}: must be HOST:PORT with a port from 1 to 65535, such as fl.example.org:8000 or "
            "[2001:db8::1]:8000 (IPv6 in brackets)"
        )
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_name(host: str) -> str:
    """A host name or IP address without brackets. Raises DeployError."""
    if not _is_host(host) and not _is_ipv6(host):
        raise DeployError(f"--host {host}: must be a host name or an IP address, without a port")
    return host.strip("[]")


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT is a loopback address."""
    host = split_address(address)[0]
    return host == "localhost" or host.startswith("127.") or host == "::1"


def network_of(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """The network that `--control-from` names. Raises DeployError."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise DeployError(
            f"--control-from {text}: must be an address or a network, such as 10.1.2.0/24"
        ) from None


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        return _is_ipv6(host[1:-1])
    return HOST.fullmatch(host) is not None


def _is_ipv6(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.IPv6Address(text).scope_id is None
    return False
