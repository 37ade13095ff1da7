import socket
from pathlib import Path

import pytest
from cryptography import x509

from mpcache.parties.certificates import Identity, host_name, load_identity, write_development_certificates
from mpcache.parties.link import ClientLink
from mpcache.parties.tls import open_channel, open_server
from mpcache.protocols.errors import ConfigError, PeerLost
from tests.hostile.identities import issued
from tests.parties.test_link import SESSION, owner_that


def refusal(address: str, identity: Identity | None) -> str:
    with pytest.raises(PeerLost) as error:
        link = ClientLink(address, identity, SESSION, 600)
        try:
            link.receive(1)
        finally:
            link.disconnect()
    return str(error.value)


def test_a_port_in_use_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="port is in use"):
            open_server(address, None, 1)


@pytest.mark.parametrize("address", ["192.0.2.1:7000", "example.org:7000"])
def test_plaintext_is_refused_off_this_machine(address: str) -> None:
    with pytest.raises(ConfigError, match="only a loopback address"):
        open_server(address, None, 1)
    with pytest.raises(ConfigError, match="only a loopback address"):
        open_channel(address, None, "owner")


@pytest.mark.parametrize("address", ["7000", "localhost:", "localhost:port", "localhost:70000"])
def test_an_address_that_is_none_is_an_error(address: str) -> None:
    with pytest.raises(ConfigError, match="not an address"):
        open_channel(address, None, "owner")


def test_nobody_at_the_address_is_said(identities: dict[str, Identity]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert "is the owner running there?" in refusal(address, identities["client"])


def test_a_server_of_another_role_is_refused(identities: dict[str, Identity]) -> None:
    with owner_that(lambda frames: iter([]), {"owner": identities["dealer"]}) as address:
        assert "certificate of the owner" in refusal(address, identities["client"])


@pytest.mark.parametrize(
    "name",
    [
        x509.UniformResourceIdentifier(host_name("owner")),
        x509.UniformResourceIdentifier(f"spiffe://{host_name('owner')}"),
        x509.RFC822Name(host_name("owner")),
        x509.RFC822Name(f"owner@{host_name('owner')}"),
        x509.DNSName("*.mpcache.internal"),
        x509.DNSName(f"{host_name('owner')}.example.org"),
    ],
    ids=repr,
)
def test_a_server_whose_role_is_no_dns_name_of_its_certificate_is_refused(
    identities: dict[str, Identity], certificates: Path, name: x509.GeneralName
) -> None:
    """Though its common name is the role's."""
    with owner_that(lambda frames: iter([]), {"owner": issued(certificates, "owner", [name])}) as address:
        assert "certificate of the owner" in refusal(address, identities["client"])


def test_another_server_behind_the_same_address_is_refused(
    identities: dict[str, Identity], certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection trusts the certificate that was checked, and no other of the authority."""
    other = issued(certificates, "owner").certificate
    monkeypatch.setattr("mpcache.parties.tls._server_certificate", lambda *arguments: other)
    with owner_that(lambda frames: iter([]), identities) as address:
        assert "lost the owner" in refusal(address, identities["client"])


def test_a_client_of_another_role_is_refused(identities: dict[str, Identity]) -> None:
    with owner_that(lambda frames: iter([]), identities) as address:
        assert "your certificate is not of the role client" in refusal(address, identities["dealer"])


def test_another_authority_is_refused(identities: dict[str, Identity], tmp_path: Path) -> None:
    write_development_certificates(tmp_path)
    with owner_that(lambda frames: iter([]), identities) as address:
        assert "is refused" in refusal(address, load_identity(tmp_path, "client"))


def test_an_expired_server_certificate_is_refused(identities: dict[str, Identity], tmp_path: Path) -> None:
    write_development_certificates(tmp_path, days=-1)
    expired = Identity("owner", *[(tmp_path / n).read_bytes() for n in ("ca.pem", "owner.pem", "owner.key")])
    client = Identity("client", *[(tmp_path / n).read_bytes() for n in ("ca.pem", "client.pem", "client.key")])
    with owner_that(lambda frames: iter([]), {"owner": expired}) as address:
        assert "expired" in refusal(address, client)


def test_plaintext_to_a_tls_server_is_said(identities: dict[str, Identity]) -> None:
    with owner_that(lambda frames: iter([]), identities) as address:
        assert refusal(address, None)
