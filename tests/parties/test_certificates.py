import ssl
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from mpcache.parties.certificates import host_name, load_identity, names_of, write_development_certificates
from mpcache.parties.tls import _context
from mpcache.protocols.errors import ConfigError, IdentityError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_development_certificates(tmp_path)
    return tmp_path


def test_every_role_gets_an_identity_of_its_own(folder: Path) -> None:
    for role in ("owner", "client", "dealer"):
        identity = load_identity(folder, role)
        assert names_of(identity.certificate) == [host_name(role)]


def test_keys_are_for_their_owner_alone(folder: Path) -> None:
    for path in folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_certificates_are_not_replaced_by_accident(folder: Path) -> None:
    before = (folder / "ca.pem").read_bytes()
    with pytest.raises(ConfigError, match="use --force"):
        write_development_certificates(folder)
    assert (folder / "ca.pem").read_bytes() == before
    write_development_certificates(folder, force=True)
    assert (folder / "ca.pem").read_bytes() != before


def test_what_is_wrong_with_an_identity_is_said(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write_development_certificates(other)
    expired = tmp_path_factory.mktemp("expired")
    write_development_certificates(expired, days=-1)

    with pytest.raises(IdentityError, match="expired on"):
        load_identity(expired, "owner")
    with pytest.raises(IdentityError, match=r"mpcache certs"):
        load_identity(folder / "nowhere", "owner")
    (folder / "owner.pem").write_bytes((other / "owner.pem").read_bytes())
    with pytest.raises(IdentityError, match="does not belong"):
        load_identity(folder, "owner")
    (folder / "owner.key").write_bytes((other / "owner.key").read_bytes())
    with pytest.raises(IdentityError, match="not issued by the authority"):
        load_identity(folder, "owner")
    for kind in ("pem", "key"):
        (folder / f"owner.{kind}").write_bytes((folder / f"client.{kind}").read_bytes())
    with pytest.raises(IdentityError, match="not a certificate of the role owner"):
        load_identity(folder, "owner")
    (folder / "owner.pem").write_text("nonsense")
    with pytest.raises(IdentityError, match="not valid PEM"):
        load_identity(folder, "owner")


def test_keys_that_everybody_can_read_are_refused_and_a_groups_are_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = folder / "owner.key"
    key.chmod(0o640)
    load_identity(folder, "owner")
    assert f"chmod 600 {key}" in caplog.text
    for mode in (0o604, 0o602):
        key.chmod(mode)
        with pytest.raises(IdentityError, match=r"by everybody on this machine: chmod 600 .*owner\.key"):
            load_identity(folder, "owner")


def test_an_encrypted_key_and_comments_in_any_encoding(folder: Path) -> None:
    authority = folder / "ca.pem"
    authority.write_bytes("# Zertifizierungsstelle für Prüfung\n".encode("latin-1") + authority.read_bytes())
    identity = load_identity(folder, "owner")
    assert isinstance(_context(identity), ssl.SSLContext)
    path = folder / "owner.key"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    encrypted = serialization.BestAvailableEncryption(b"secret")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encrypted)
    path.write_bytes(pem)
    with pytest.raises(IdentityError, match=r"owner\.key is encrypted"):
        load_identity(folder, "owner")
