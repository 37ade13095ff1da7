"""What both parties agreed on, and a party's way from there into its private session."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpcache.generation.request import PROTOCOL_VERSION, GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.parties.certificates import Identity
from mpcache.parties.dealer_link import READ_AHEAD, DealerLink
from mpcache.parties.generated import dealer_pb2, purpose_pb2
from mpcache.parties.link import PARTIES, SESSION_BYTES, Link
from mpcache.parties.logs import SessionLog
from mpcache.parties.prepared import at_rest
from mpcache.protocols.correlation import PartyCorrelations
from mpcache.protocols.errors import PeerLost
from mpcache.protocols.lanes import Lanes
from mpcache.protocols.randomness import new_key
from mpcache.protocols.session import Session
from mpcache.protocols.transport import Transport

log = logging.getLogger("mpcache.prepared")


def lane_sessions(session: bytes, count: int) -> list[bytes]:
    """The ids of a session's lanes, of which the first is its own: for the dealer each is a session."""
    further = (hashlib.sha256(b"mpcache lane" + lane.to_bytes(4, "big") + session).digest() for lane in range(1, count))
    return [session, *(digest[:SESSION_BYTES] for digest in further)]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One session's, the same at both parties; of a batch, one lane's."""

    session: bytes
    model: ModelConfig
    request: GenerationRequest
    plan_digest: str


def agreements(
    session: bytes, model: ModelConfig, requests: Sequence[GenerationRequest], digests: Sequence[str]
) -> tuple[Agreement, ...]:
    """Of a session's prompts, each with its plan's digest."""
    of_lanes = zip(lane_sessions(session, len(requests)), requests, digests, strict=True)
    return tuple(
        Agreement(session=lane, model=model, request=request, plan_digest=digest) for lane, request, digest in of_lanes
    )


def largest_bytes(max_step_gib: float) -> int:
    return int(max_step_gib * 2**30)


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """A party's link to the dealer, and the party's seed. prepared: whether corrections come from the dealer's disk."""

    role: str
    seed: bytes
    link: DealerLink
    prepared: bool

    def session(self, agreement: Agreement, link: Link, max_step_gib: float, transport: Transport | None) -> Session:
        """The private session over the parties' link. transport: see `mpcache.protocols.transport.Transport`."""
        channel = transport(link) if transport else link
        return self._set_up(Session(self._party, channel, self._correlations(max_step_gib)), agreement, max_step_gib)

    def in_lane(self, agreement: Agreement, lanes: Lanes, lane: int, max_step_gib: float) -> Session:
        """The same as one of several that share their rounds."""
        session = lanes.session(lane, self._party, self._correlations(max_step_gib))
        return self._set_up(session, agreement, max_step_gib)

    @property
    def _party(self) -> int:
        return PARTIES.index(self.role)

    def _correlations(self, max_step_gib: float) -> PartyCorrelations:
        return PartyCorrelations(self._party, self.seed, self._reader(), largest_bytes(max_step_gib))

    def _set_up(self, session: Session, agreement: Agreement, max_step_gib: float) -> Session:
        session.largest_bytes = largest_bytes(max_step_gib)
        session.round_bytes = agreement.request.round_bytes
        return session

    def _reader(self) -> Callable[[int], bytes | memoryview]:
        if not self.prepared:
            return self.link.read
        decrypt, read = at_rest(self.seed), self.link.read
        return lambda nbytes: decrypt(read(nbytes))


@dataclass(frozen=True, kw_only=True)
class Party:
    """One party before the dealer. watch: is given every link to the dealer that is made; check_peer: raises if the
    other party is gone; weight_key: the owner's; read_ahead: bytes of corrections that each link may hold."""

    role: str
    dealer: str
    identity: Identity | None
    timeout: float
    watch: Callable[[DealerLink], None]
    check_peer: Callable[[], None]
    weight_key: bytes = b""
    read_ahead: int = READ_AHEAD

    def start(self, agreement: Agreement, prepared: bytes | None) -> Dealt:
        """Corrections for an agreed session, begun: from the dealer's disk if it has them there, else made now.

        prepared: the seed of the session, if it was prepared. Raises PeerLost.
        """
        if prepared is not None:
            link = self._ask(agreement, purpose_pb2.PREPARED, b"", b"")
            try:
                link.wait_started(self.check_peer)
                return Dealt(role=self.role, seed=prepared, link=link, prepared=True)
            except PeerLost:
                if link.ending is None or not link.ending.unprepared:
                    raise
                link.close()
                SessionLog(log, agreement.session).warning("%s: it makes the corrections now", link.ending.text)
        seed = new_key()
        link = self._ask(agreement, purpose_pb2.SESSION, seed, self.weight_key)
        link.wait_started(self.check_peer)
        return Dealt(role=self.role, seed=seed, link=link, prepared=False)

    def prepare(self, agreement: Agreement, hear: Callable[[int], None] = lambda nbytes: None) -> tuple[bytes, int]:
        """This party's seed of a session, once the dealer has its corrections on disk, and how many bytes it has there.

        hear: is told again and again how many bytes the dealer has written. Raises PeerLost.
        """
        seed = new_key()
        link = self._ask(agreement, purpose_pb2.PREPARE, seed, self.weight_key)

        def check() -> None:
            hear(link.progress)
            self.check_peer()

        link.wait_finished(check)
        return seed, link.progress

    def _ask(self, agreement: Agreement, purpose: purpose_pb2.Purpose, seed: bytes, weight_key: bytes) -> DealerLink:
        request = dealer_pb2.DealRequest(
            protocol_version=PROTOCOL_VERSION,
            role=self.role,
            session=agreement.session,
            model=agreement.model.to_json(),
            request=agreement.request.to_json(),
            plan_digest=agreement.plan_digest,
            seed=seed,
            weight_key=weight_key,
            purpose=purpose,
        )
        link = DealerLink(self.dealer, self.identity, request, self.timeout, self.read_ahead)
        self.watch(link)
        return link
