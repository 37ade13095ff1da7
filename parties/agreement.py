"""What both parties agreed on, and a party's way from there into its private session."""

from __future__ import annotations

from dataclasses import dataclass

from mpcache.generation.request import PROTOCOL_VERSION, GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.parties.certificates import Identity
from mpcache.parties.dealer_link import DealerLink
from mpcache.parties.generated import dealer_pb2
from mpcache.parties.link import PARTIES, Link
from mpcache.protocols.correlation import PartyCorrelations
from mpcache.protocols.randomness import new_key
from mpcache.protocols.session import Session
from mpcache.protocols.transport import Transport


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One session's, the same at both parties."""

    session: bytes
    model: ModelConfig
    request: GenerationRequest
    plan_digest: str


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """A party's link to the dealer, and the seed that only these two know."""

    role: str
    seed: bytes
    link: DealerLink

    def session(self, agreement: Agreement, link: Link, max_step_gib: float, transport: Transport | None) -> Session:
        """The private session over the parties' link. transport: see `mpcache.protocols.transport.Transport`."""
        party, largest = PARTIES.index(self.role), int(max_step_gib * 2**30)
        channel = transport(link) if transport else link
        session = Session(party, channel, PartyCorrelations(party, self.seed, self.link.read, largest))
        session.largest_bytes = largest
        session.round_bytes = agreement.request.round_bytes
        return session


def ask_dealer(
    role: str, agreement: Agreement, address: str, identity: Identity | None, timeout: float, weight_key: bytes = b""
) -> Dealt:
    """Ask for the corrections of an agreed session. weight_key: the owner's. Raises PeerLost."""
    seed = new_key()
    request = dealer_pb2.DealRequest(
        protocol_version=PROTOCOL_VERSION,
        role=role,
        session=agreement.session,
        model=agreement.model.to_json(),
        request=agreement.request.to_json(),
        plan_digest=agreement.plan_digest,
        seed=seed,
        weight_key=weight_key,
    )
    return Dealt(role=role, seed=seed, link=DealerLink(address, identity, request, timeout))
