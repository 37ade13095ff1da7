"""Identities: a development authority with a certificate for each role, and what is checked before one is used.

A role is the certificate's DNS name, <role>.mpcache.internal: whoever connects refuses a server of another name
(tls.py), and servers read the client's.
"""

from __future__ import annotations

import datetime
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mpcache.files import written_whole
from mpcache.protocols.errors import ConfigError, IdentityError

log = logging.getLogger("mpcache.certificates")
ROLES = ("owner", "client", "dealer")


def host_name(role: str) -> str:
    """The DNS name that stands for a role."""
    return f"{role}.mpcache.internal"


@dataclass(frozen=True)
class Identity:
    """What a process shows (certificate, key) and whom it believes (authority), all PEM."""

    role: str
    authority: bytes
    certificate: bytes
    key: bytes

    def fingerprint(self) -> str:
        return fingerprint(self.certificate)


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a PEM certificate, hexadecimal."""
    return x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256()).hex()


def write_development_certificates(folder: Path, days: int = 30, force: bool = False) -> list[Path]:
    """An authority and the three identities in `folder`; keys are readable by their owner alone.

    Raises ConfigError if any of the files is there already and `force` is not set.
    """
    names = ["ca", *ROLES]
    paths = [folder / f"{name}.{kind}" for name in names for kind in ("pem", "key")]
    present = [p for p in paths if p.exists()]
    if present and not force:
        raise ConfigError(f"{present[0]} is there already: use --force to replace it, or another folder")
    folder.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("MPCache development authority", authority_key, None, authority_key, days)
    _write_pair(folder, "ca", authority, authority_key)
    for role in ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        _write_pair(folder, role, _certificate(role, key, authority, authority_key, days), key)
    return paths


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate | None,
    authority_key: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + datetime.timedelta(days=days)) - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
    )
    if authority is not None:
        names = x509.SubjectAlternativeName([x509.DNSName(host_name(name))])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(authority_key, hashes.SHA256())


def _write_pair(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    _write(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(folder / f"{name}.key", private, 0o600)


def _write(path: Path, data: bytes, mode: int) -> None:
    with written_whole(path, mode) as partial:
        partial.write_bytes(data)


def load_identity(folder: Path, role: str) -> Identity:
    """The identity of `role` in `folder` (ca.pem, <role>.pem, <role>.key). Raises IdentityError with what is wrong."""
    data = []
    for path in (folder / "ca.pem", folder / f"{role}.pem", folder / f"{role}.key"):
        try:
            if path.suffix == ".key":
                require_private(path)
            data.append(path.read_bytes())
        except OSError:
            raise IdentityError(
                f"{path} cannot be read: make development certificates with `mpcache certs`, or set `certificates`"
            ) from None
    identity = Identity(role, *data)
    _check(identity, folder)
    return identity


def require_private(path: Path) -> None:
    """Refuse a secret that every user of this machine can read or change; warn of one that its group can.

    Raises IdentityError, OSError.
    """
    mode = path.stat().st_mode if os.name == "posix" else 0
    if mode & 0o007:
        raise IdentityError(f"{path} can be read or changed by everybody on this machine: chmod 600 {path}")
    if mode & 0o070:
        log.warning("%s can be read or changed by its group: chmod 600 %s", path, path)


def _check(identity: Identity, folder: Path) -> None:
    path = folder / f"{identity.role}.pem"
    try:
        authority = x509.load_pem_x509_certificate(identity.authority)
        certificate = x509.load_pem_x509_certificate(identity.certificate)
        key = serialization.load_pem_private_key(identity.key, None)
    except TypeError:
        raise IdentityError(f"{folder / (identity.role + '.key')} is encrypted: decrypt it for this process") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(
            f"{folder}: a certificate or key of role {identity.role} is not valid PEM: {error}"
        ) from None
    if key.public_key() != certificate.public_key():
        raise IdentityError(f"{folder / (identity.role + '.key')} does not belong to {path}")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise IdentityError(f"{path} was not issued by the authority {folder / 'ca.pem'}") from None
    for what, checked in ((path, certificate), (folder / "ca.pem", authority)):
        now = datetime.datetime.now(datetime.UTC)
        if now > checked.not_valid_after_utc:
            raise IdentityError(f"{what} expired on {checked.not_valid_after_utc:%Y-%m-%d}: make a new one")
        if now < checked.not_valid_before_utc:
            raise IdentityError(f"{what} is not valid before {checked.not_valid_before_utc:%Y-%m-%d}: check the clock")
    if host_name(identity.role) not in names_of(identity.certificate):
        raise IdentityError(f"{path} is not a certificate of the role {identity.role}")


def names_of(certificate: bytes) -> list[str]:
    """The DNS names in a PEM certificate."""
    try:
        extension = x509.load_pem_x509_certificate(certificate).extensions
        names = extension.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.UnsupportedGeneralNameType):
        return []
    return names.get_values_for_type(x509.DNSName)
