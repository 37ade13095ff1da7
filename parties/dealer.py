"""The dealer's service: corrections stream ahead of the parties, with bounded memory."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc

from mpcache.generation.loop import Program
from mpcache.generation.plan import PROTOCOL_VERSION, PublicParameters, correlations, plan_digest
from mpcache.parties.calls import LAST_WORD_SECONDS, Call, first_of
from mpcache.parties.certificates import Identity
from mpcache.parties.dealer_link import CHUNK_BYTES, left
from mpcache.parties.generated import dealer_pb2, dealer_pb2_grpc
from mpcache.parties.link import SESSION_BYTES, printable, told
from mpcache.parties.logs import SessionLog
from mpcache.parties.places import Places
from mpcache.parties.planning import planning_check
from mpcache.parties.settings import DealerSettings
from mpcache.parties.threads import start_thread
from mpcache.parties.tls import REQUEST_BYTES, Peer, on_end, open_server, require_peer
from mpcache.parties.weights import check_size
from mpcache.protocols.correlation import Dealer
from mpcache.protocols.errors import Busy, ConfigError, HandshakeError, MpcacheError, PeerLost
from mpcache.protocols.randomness import KEY_BYTES

Corrections = dealer_pb2.Corrections
PARTIES = ("owner", "client")
PATIENCE = 10
"""Time-outs for which a client may take no corrections: on a slow network a large message holds them up."""
WAITING = 32
"""Calls, beyond those of sessions, that may wait for their session's other party or their refusal."""
log = logging.getLogger("mpcache.dealer")


@dataclass
class _Pairing:
    """A session that waits for its second party, or runs."""

    journal: SessionLog
    ahead: _BoundedChunks
    timeout: float
    requests: dict[str, dealer_pb2.DealRequest] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    complete: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    failure: str | None = None

    def end(self, failure: str | None = None) -> None:
        """The first call counts."""
        with self.lock:
            if self.ended.is_set():
                return
            self.failure = failure
            self.ended.set()
        self.complete.set()  # whoever waits for the second party hears of it
        self.ahead.close()
        for call in self.calls:
            call.finish(self.timeout if failure is None else LAST_WORD_SECONDS)
        if failure is None:
            self.journal.info("session ends")
        else:
            self.journal.warning("session ends: %s", failure)

    def check(self) -> None:
        """Raises PeerLost if nobody waits any more."""
        if self.ended.is_set():
            raise PeerLost(self.failure or "the session has ended")


class DealerService(dealer_pb2_grpc.DealerServicer):
    """Pairs the two parties of a session and streams party 1 its corrections; party 0 hears only how it goes.

    The settings' memory_mib bounds what is made ahead of the client. The dealer learns public parameters and the two
    seeds.
    """

    def __init__(self, settings: DealerSettings, insecure: bool, program: Program | None = None) -> None:
        self._settings, self._insecure, self._program = settings, insecure, program
        self._pairings: dict[bytes, _Pairing] = {}
        self._lock = threading.Lock()
        total = settings.max_sessions
        self._sessions = Places("dealer", "sessions", total, total)
        self._calls = Places("dealer", "calls", 2 * total + WAITING, settings.max_calls_per_certificate)

    def Deal(
        self, requests: Iterator[dealer_pb2.DealRequest], context: grpc.ServicerContext
    ) -> Iterator[dealer_pb2.Corrections]:
        """What a stranger is refused for is told by the call's status, which needs nobody to take it."""
        peer, call = require_peer(context, PARTIES, self._insecure), Call("dealer", context)
        journal = SessionLog(log, b"")
        try:
            self._calls.take(peer.certificate)
            on_end(context, lambda: self._calls.free(peer.certificate))
            request = first_of("dealer", requests, min(self._settings.hello_seconds, self._settings.timeout_seconds))
            journal = SessionLog(log, request.session[:SESSION_BYTES])
            if self._insecure:
                peer = Peer(request.role, peer.certificate)
            _check_request(peer.role, request)
        except Busy as error:
            journal.warning("refused %s: %s", peer, error)
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except HandshakeError as error:
            journal.warning("refused %s: %s", peer, error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        yield from self._serve(peer, request, call, context, journal)

    def _serve(
        self,
        peer: Peer,
        request: dealer_pb2.DealRequest,
        call: Call,
        context: grpc.ServicerContext,
        journal: SessionLog,
    ) -> Iterator[dealer_pb2.Corrections]:
        pairing = self._join(peer.role, request, call, journal)
        journal.info("%s has come", peer)
        other = next(p for p in PARTIES if p != peer.role)
        on_end(context, lambda: pairing.end(left(peer.role)))
        try:
            if not pairing.complete.wait(self._settings.timeout_seconds):
                pairing.end(f"the {other} did not come within {self._settings.timeout_seconds:g} seconds")
            if pairing.failure is None:
                yield Corrections(started=True)
                if peer.role == "client":
                    yield from self._corrections(pairing)
                else:
                    pairing.ended.wait()
            if pairing.failure is None:
                yield Corrections(finished=True)
            else:
                call.finish()  # it may have come when all had ended
                yield Corrections(failure=pairing.failure)
        finally:
            pairing.end(left(peer.role))
            with self._lock:
                if self._pairings.get(request.session) is pairing:
                    del self._pairings[request.session]

    def _join(self, role: str, request: dealer_pb2.DealRequest, call: Call, journal: SessionLog) -> _Pairing:
        with self._lock:
            if request.session not in self._pairings:
                self._pairings[request.session] = _Pairing(
                    journal, _BoundedChunks(self._settings.memory_mib << 20), self._settings.timeout_seconds
                )
            pairing = self._pairings[request.session]
            pairing.calls.append(call)
            if role in pairing.requests:
                pairing.end(f"two processes came as the {role}")
                return pairing
            pairing.requests[role] = request
            if len(pairing.requests) == 2:
                failure = _disagreement(pairing.requests)
                if failure:
                    pairing.end(failure)
                pairing.complete.set()
        return pairing

    def _corrections(self, pairing: _Pairing) -> Iterator[dealer_pb2.Corrections]:
        """Chunks made by a thread that runs ahead by at most the allowed memory."""
        start_thread("dealer: corrections", self._make, pairing)
        while (chunk := pairing.ahead.get(pairing.ended)) is not None:
            yield Corrections(chunk=chunk)
        if pairing.failure is None:
            pairing.end()

    def _make(self, pairing: _Pairing) -> None:
        owner, client = pairing.requests["owner"], pairing.requests["client"]
        try:
            with self._sessions.taken("any"):
                parameters = self._parameters(owner)
                pairing.journal.info(
                    "session begins: %d prompt tokens, at most %d new ones, policy %s, backend %s",
                    parameters.prompt_tokens, parameters.max_new_tokens, parameters.policy.name, parameters.backend,
                )  # fmt: skip
                check = planning_check(self._settings.planning_seconds, pairing.check)
                if plan_digest(parameters, self._program, check) != owner.plan_digest:
                    raise HandshakeError("the dealer's plan differs from the parties': use the same MPCache everywhere")
                patience = PATIENCE * self._settings.timeout_seconds
                largest = int(self._settings.max_step_gib * 2**30)
                dealer = Dealer((owner.seed, client.seed), owner.weight_key, largest)
                for correlation in correlations(parameters, self._program, pairing.check):
                    data = dealer.correction(correlation)
                    for start in range(0, len(data), CHUNK_BYTES):
                        if not pairing.ahead.put(data[start : start + CHUNK_BYTES], patience):
                            return
                pairing.ahead.finish(patience)
        except Exception as error:  # a thread of its own: whatever it was, the parties must hear of it
            if not isinstance(error, MpcacheError):
                pairing.journal.exception("the dealer failed")
            pairing.end(told(error, "dealer"))

    def _parameters(self, request: dealer_pb2.DealRequest) -> PublicParameters:
        """What both parties sent, checked before anything is planned. Raises HandshakeError, ModelError."""
        s = self._settings
        try:
            parameters = PublicParameters.from_json(request.public_parameters)
        except ConfigError as error:
            raise HandshakeError(str(error)) from None
        parameters.check("dealer", s.max_prompt_tokens, s.max_new_tokens)
        if parameters.backend not in s.backends:
            allowed = ", ".join(s.backends)
            raise HandshakeError(f"the dealer does not allow the backend {parameters.backend!r} (allowed: {allowed})")
        tokens = parameters.prompt_tokens + parameters.max_new_tokens
        check_size(parameters.model, tokens, "dealer", s.max_model_gib)
        return parameters


def _check_request(role: str, request: dealer_pb2.DealRequest) -> None:
    """Raises HandshakeError."""
    if request.role != role or role not in PARTIES:
        raise HandshakeError(f"your certificate is not of the role {printable(request.role[:20])}")
    if request.protocol_version != PROTOCOL_VERSION:
        raise HandshakeError(
            f"the dealer speaks protocol version {PROTOCOL_VERSION}, the {role} {request.protocol_version}: "
            "install the same MPCache everywhere"
        )
    key_bytes = KEY_BYTES if role == "owner" else 0
    sizes = len(request.session), len(request.seed), len(request.weight_key)
    if sizes != (SESSION_BYTES, KEY_BYTES, key_bytes):
        raise HandshakeError("a request's session, seed or weight key is not of its length")


def _disagreement(requests: dict[str, dealer_pb2.DealRequest]) -> str | None:
    a, b = requests["owner"], requests["client"]
    for what in ("public_parameters", "plan_digest"):
        if getattr(a, what) != getattr(b, what):
            return f"the owner and the client gave the dealer different values of {what.replace('_', ' ')}"
    return None


class _BoundedChunks:
    """A queue of chunks, bounded in bytes; small chunks are joined up to CHUNK_BYTES when taken."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._chunks: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._finished = self._closed = False

    def put(self, chunk: bytes, seconds: float) -> bool:
        """False if nobody wants it any more. Raises PeerLost if nothing is taken for so many seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or self._held < self._limit, seconds):
                raise PeerLost(f"the client took no corrections for {seconds:g} seconds")
            self._chunks.append(chunk)
            self._held += len(chunk)
            self._changed.notify_all()
            return not self._closed

    def finish(self, seconds: float) -> None:
        """All is made: return when all is taken, or nobody wants it. Raises PeerLost as `put`."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()
            while self._held and not self._closed:
                before = self._held
                if not self._changed.wait_for(lambda: self._closed or self._held < before, seconds):  # noqa: B023
                    raise PeerLost(f"the client took no corrections for {seconds:g} seconds")

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._chunks.clear()
            self._held = 0
            self._changed.notify_all()

    def get(self, ended: threading.Event) -> bytes | None:
        """The next bytes; None at the end or when the session has ended."""
        with self._changed:
            while not (self._chunks or self._finished or self._closed or ended.is_set()):
                self._changed.wait(timeout=0.5)
            if not self._chunks or ended.is_set():
                return None
            taken: list[bytes] = []
            size = 0
            while self._chunks and (not taken or size + len(self._chunks[0]) <= CHUNK_BYTES):
                taken.append(self._chunks.popleft())
                size += len(taken[-1])
            self._held -= size
            self._changed.notify_all()
        return b"".join(taken)


class DealerServer:
    """The dealer's process: serves until stopped. program: see `mpcache.generation.loop.Program`."""

    def __init__(self, settings: DealerSettings, identity: Identity | None, program: Program | None = None) -> None:
        workers = 2 * settings.max_sessions + WAITING
        self._server, self.port = open_server(
            settings.listen, identity, workers, settings.timeout_seconds, REQUEST_BYTES
        )
        service = DealerService(settings, identity is None, program)
        dealer_pb2_grpc.add_DealerServicer_to_server(service, self._server)
        self._server.start()

    def drain(self, seconds: float) -> threading.Event:
        """Accept no more sessions; running ones may take so long to end. Set when they have."""
        return self._server.stop(grace=seconds)

    def stop(self) -> None:
        self._server.stop(grace=0.5).wait()
