"""Certificates and keys of a federation; every secret is a file of mode 600."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ssfl.deploy.errors import DeployError
from ssfl.output import whole_file

CA_CERTIFICATE, CA_KEY = "ca.crt", "ca.key"
SERVER_CERTIFICATE, SERVER_KEY = "server.crt", "server.key"
SITE_KEY, SITE_PUBLIC_KEY = "site.key", "site.pub"
EXECUTOR_SECRET = "superexec.secret"
VALID_DAYS = 825
"""Days for which a server certificate is valid: the longest time that common TLS implementations accept."""


def write_private(path: Path, raw: bytes) -> None:
    """Create a file of mode 600. Raises DeployError if it exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise DeployError(f"{path}: already exists; keys are not overwritten") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(raw)


def check_private(path: Path) -> None:
    """Raises DeployError if a secret is missing or other users can read it."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DeployError(f"{path}: {error.strerror}; `ssfl deploy init` writes it") from None
    if mode & 0o077:
        raise DeployError(f"{path}: others can read this secret; chmod 600 {path}")


def make_authority(folder: Path) -> None:
    """Write a certificate authority, ca.crt and ca.key, into `folder`."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ssfl federation authority")])
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _unsigned(name, name, key.public_key(), 3650)
        .add_extension(constraints, critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    write_private(folder / CA_KEY, _pem(key))
    (folder / CA_CERTIFICATE).write_bytes(certificate.public_bytes(Encoding.PEM))


def make_server_certificate(folder: Path, hosts: Sequence[str]) -> None:
    """Write server.crt and server.key for these hosts and loopback, signed by the authority in `folder`."""
    key, certificate = _server_pair(folder, folder / CA_KEY, hosts)
    write_private(folder / SERVER_KEY, key)
    (folder / SERVER_CERTIFICATE).write_bytes(certificate)


def renew_server_certificate(folder: Path, ca_key: Path, hosts: Sequence[str]) -> datetime.datetime:
    """Replace server.crt and server.key, for the same hosts and `hosts`. Returns the new end. Raises DeployError."""
    names = [*_hosts_of(_certificate(folder / SERVER_CERTIFICATE)), *hosts]
    key, certificate = _server_pair(folder, ca_key, names)
    with (
        whole_file(folder / SERVER_CERTIFICATE) as new_certificate,
        whole_file(folder / SERVER_KEY) as new_key,
    ):
        write_private(new_key, key)
        write_private(new_certificate, certificate)
    return valid_until(folder)


def valid_until(folder: Path) -> datetime.datetime:
    """When the server's certificate ends. Raises DeployError."""
    return _certificate(folder / SERVER_CERTIFICATE).not_valid_after_utc


def _server_pair(folder: Path, ca_key: Path, hosts: Sequence[str]) -> tuple[bytes, bytes]:
    """A new private key and its certificate, both PEM. Raises DeployError."""
    authority = _certificate(folder / CA_CERTIFICATE)
    signer = _authority_key(ca_key, authority)
    key = ec.generate_private_key(ec.SECP384R1())
    names = list(dict.fromkeys((*hosts, "localhost", "127.0.0.1", "::1")))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        _unsigned(subject, authority.subject, key.public_key(), VALID_DAYS, authority.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([_alternative(n) for n in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA384())
    )
    return _pem(key), certificate.public_bytes(Encoding.PEM)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not a certificate in PEM format"
        raise DeployError(
            f"{path}: {reason}; give --folder, the server's folder from `ssfl deploy init`"
        ) from None


def read_authority(path: Path) -> bytes:
    """The PEM bytes of an authority's certificate, checked. Raises DeployError."""
    remedy = "it must be the ca.crt of the server, from its operator"
    try:
        raw = path.read_bytes()
        x509.load_pem_x509_certificate(raw)
    except OSError as error:
        raise DeployError(f"{path}: {error.strerror}; {remedy}") from None
    except ValueError:
        raise DeployError(f"{path}: is not a certificate in PEM format; {remedy}") from None
    return raw


def check_server_files(folder: Path) -> None:
    """Raises DeployError if a key or the certificate of the server is missing, damaged, or readable by other users."""
    for name in (SERVER_KEY, EXECUTOR_SECRET):
        check_private(folder / name)
    certificate, path = _certificate(folder / SERVER_CERTIFICATE), folder / SERVER_KEY
    read_authority(folder / CA_CERTIFICATE)
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise DeployError(f"{path}: is not a private key in PEM format; restore it from a backup") from None
    if key.public_key() != certificate.public_key():
        raise DeployError(f"{path}: is not the key of {SERVER_CERTIFICATE}; restore both from one backup")


def _authority_key(path: Path, authority: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    """The private key of the authority. Raises DeployError."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not a private key in PEM format"
        raise DeployError(
            f"{path}: {reason}; give the authority's key, from `ssfl deploy init`, with --ca-key"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
        raise DeployError(
            f"{path}: is not the key of {CA_CERTIFICATE}, so sites would not accept the certificate"
        )
    return key


def _hosts_of(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = names.get_values_for_type(x509.DNSName)
    return [*hosts, *map(str, names.get_values_for_type(x509.IPAddress))]


def make_site_keys(folder: Path, name: str) -> None:
    """Write site.key and site.pub (P-384, OpenSSH format). Raises DeployError if there is a key."""
    key = ec.generate_private_key(ec.SECP384R1())
    raw = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write_private(folder / SITE_KEY, raw)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (folder / SITE_PUBLIC_KEY).write_bytes(public + f" {name}\n".encode())


def make_executor_secret(folder: Path) -> None:
    """Write the secret with which Flower's SuperExec authenticates to the SuperLink."""
    write_private(folder / EXECUTOR_SECRET, secrets.token_bytes(32))


def _unsigned(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    latest: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(end if latest is None else min(end, latest))
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _alternative(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)
