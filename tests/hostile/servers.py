"""Owner and dealer in this process, with an authority of their own, for misbehaving peers to meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpcache.generation.loop import Program
from mpcache.parties.certificates import load_identity, write_development_certificates
from mpcache.parties.client import Connection, Generation
from mpcache.parties.dealer import DealerServer
from mpcache.parties.handshake import Wanted
from mpcache.parties.owner import OwnerServer
from mpcache.parties.preparing import prepare_session
from mpcache.parties.settings import DealerSettings, OwnerSettings
from mpcache.protocols.transport import Transport
from tests.asking import asked, asking
from tests.hostile.identities import issued

PATIENT = 600.0
"""Seconds of every wait that a test does not set: a busy machine is given its time."""
PROMPT = [5, 17, 90, 3, 3, 41, 77]


@dataclass
class Servers:
    owner: OwnerServer
    dealer: DealerServer
    connection: Connection
    certificates: Path

    def client(self, new_tokens: int = 2, **changes: Any) -> Generation:
        """An honest client's generation. changes: of its connection."""
        return Generation(replace(self.connection, **changes), asking(PROMPT, new_tokens))

    def prepare(self, new_tokens: int = 2, **changes: Any) -> bytes:
        """An honest client's preparation of such a session. changes: of its connection."""
        wanted = Wanted(request=asked(len(PROMPT), new_tokens))
        return prepare_session(replace(self.connection, **changes), wanted)[0]

    def another_client(self, new_tokens: int = 2) -> Generation:
        """With a certificate of its own."""
        return self.client(new_tokens, identity=issued(self.certificates, "client"))


@contextmanager
def serving(
    model: Path,
    folder: Path,
    owner_settings: dict[str, Any] | None = None,
    dealer_settings: dict[str, Any] | None = None,
    program: Program | None = None,
    transport: Transport | None = None,
    dealer_program: Program | None = None,
) -> Iterator[Servers]:
    """program, transport: the owner's."""
    certificates = folder / "certificates"
    write_development_certificates(certificates)
    identities = {role: load_identity(certificates, role) for role in ("owner", "client", "dealer")}
    patient = {"timeout_seconds": PATIENT}
    own = {**patient, "state": folder / "dealer-state", **(dealer_settings or {})}
    dealing = DealerSettings("127.0.0.1:0", **own)
    dealer = DealerServer(dealing, identities["dealer"], dealer_program)
    patient = {**patient, "hello_seconds": PATIENT, "state": folder / "owner-state"}
    settings = OwnerSettings("127.0.0.1:0", f"127.0.0.1:{dealer.port}", model, **{**patient, **(owner_settings or {})})
    owner = OwnerServer(settings, identities["owner"], program=program, transport=transport)
    where = (f"127.0.0.1:{owner.port}", f"127.0.0.1:{dealer.port}")
    try:
        connection = Connection(*where, identities["client"], folder / "client-state", PATIENT)
        yield Servers(owner, dealer, connection, certificates)
    finally:
        owner.stop()
        dealer.stop()
