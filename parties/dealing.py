"""The dealer's service and the parties' link to it: corrections stream ahead of the parties, with bounded memory."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc

from mpcache.generate import Program
from mpcache.planning import PROTOCOL_VERSION, PublicParameters, correlations, plan_digest
from parties.calls import LAST_WORD_SECONDS, Call, first_of
from parties.certificates import Identity
from parties.generated import dealer_pb2, dealer_pb2_grpc
from parties.link import REFUSALS, SESSION_BYTES, explain_error, printable, told
from parties.logs import SessionLog
from parties.places import Places
from parties.planning import planning_check
from parties.settings import DealerSettings
from parties.threads import start_thread
from parties.tls import PART_BYTES, REQUEST_BYTES, Peer, on_end, open_channel, open_server, require_peer
from parties.weights import check_size
from protocols.correlation import Dealer
from protocols.errors import Busy, ConfigError, HandshakeError, MpcacheError, PeerLost, ProtocolError
from protocols.randomness import KEY_BYTES

Corrections = dealer_pb2.Corrections
CHUNK_BYTES = PART_BYTES
PARTIES = ("owner", "client")
PATIENCE = 10
"""Time-outs for which a client may take no corrections, or not the last of them: on a slow network a large message
holds them up."""
WAITING = 32
"""Calls, beyond those of sessions, that may wait for their session's other party or their refusal."""
log = logging.getLogger("mpcache.dealer")


def left(role: str) -> str:
    """What the dealer tells a party when the other one has gone."""
    return f"the {role} left"


@dataclass
class _Pairing:
    """A session that waits for its second party, or runs."""

    journal: SessionLog
    ahead: _BoundedChunks
    patience: float
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
            call.finish(self.patience if failure is None else LAST_WORD_SECONDS)
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
                if peer.role == "client":  # at once, so that a client that takes not even a beginning is given up
                    start_thread("dealer: corrections", self._make, pairing)
                yield Corrections(started=True)
                if peer.role == "client":
                    while (chunk := pairing.ahead.get()) is not None:
                        yield Corrections(chunk=chunk)
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
                    journal, _BoundedChunks(self._settings.memory_mib << 20), PATIENCE * self._settings.timeout_seconds
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

    def _make(self, pairing: _Pairing) -> None:
        """A session's corrections, ahead of the client by at most the allowed memory; ends it when all are taken."""
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
                largest = int(self._settings.max_step_gib * 2**30)
                dealer = Dealer((owner.seed, client.seed), owner.weight_key, largest)
                for correlation in correlations(parameters, self._program, pairing.check):
                    data = dealer.correction(correlation)
                    for start in range(0, len(data), CHUNK_BYTES):
                        if not pairing.ahead.put(data[start : start + CHUNK_BYTES], pairing.patience):
                            return
                pairing.ahead.finish(pairing.patience)
            pairing.end()
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
        self._closed = False

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

    def get(self) -> bytes | None:
        """The next bytes; None when the session has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._closed)
            if self._closed:
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
    """The dealer's process: serves until stopped. program: see `mpcache.generate.Program`."""

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


class DealerLink:
    """A party's link to the dealer: a byte stream of corrections, read ahead by at most `memory_bytes`.

    waited_seconds: how long `read` stood still because the dealer was not ahead. told: why the dealer ended it.
    """

    def __init__(
        self,
        address: str,
        identity: Identity | None,
        request: dealer_pb2.DealRequest,
        timeout: float,
        memory_bytes: int = 64 << 20,
    ) -> None:
        self._timeout = timeout
        self._channel, _ = open_channel(address, identity, "dealer", timeout)
        self._chunks: queue.Queue[bytes] = queue.Queue(maxsize=max(2, memory_bytes // CHUNK_BYTES))
        self._current = memoryview(b"")
        self._failure: str | None = None
        self._failure_told: str | None = None
        self.told: str | None = None
        self._closed = False
        self.finished = threading.Event()
        self.started = threading.Event()
        self.received_bytes = 0
        self.waited_seconds = 0.0
        self._stream = dealer_pb2_grpc.DealerStub(self._channel).Deal(iter([request]))

        def explain(error: grpc.RpcError) -> str:
            return explain_error(error, address, "dealer")

        start_thread(f"{request.role}: corrections from the dealer", self._feed, explain)

    def _feed(self, explain: object) -> None:
        try:
            for reply in self._stream:
                kind = reply.WhichOneof("kind")
                if kind == "chunk":
                    if not reply.chunk:
                        raise ProtocolError("the dealer sent a chunk without bytes")
                    self._put(reply.chunk)
                elif kind == "started":
                    self.started.set()
                elif kind == "failure":
                    self.told = printable(reply.failure)
                    self._failure = f"the dealer ended the session: {self.told}"
                    break
            else:
                if self._failure is None and not self._closed:
                    self.finished.set()
        except ProtocolError as error:
            self._failure = str(error)
            self._stream.cancel()
        except grpc.RpcError as error:
            if not self._closed:
                self._failure_told = "lost the dealer"
                if error.code() in REFUSALS:
                    self._failure_told = f"the dealer refused: {printable(error.details() or '')}"
                self._failure = explain(error)  # type: ignore[operator]
        finally:
            self.started.set()

    def _put(self, chunk: bytes) -> None:
        while not self._closed:
            try:
                return self._chunks.put(chunk, timeout=0.5)
            except queue.Full:
                continue

    def check(self) -> None:
        """Raises PeerLost if the dealer has failed or gone."""
        if self._failure is not None:
            raise PeerLost(self._failure, self._failure_told)

    def wait_started(self, check_peer: Callable[[], None] = lambda: None) -> None:
        """Until both parties are there. check_peer: called meanwhile, raises if the other party is gone.

        Raises PeerLost.
        """
        deadline = time.monotonic() + self._timeout
        while not self.started.wait(0.2):
            check_peer()
            if time.monotonic() > deadline:
                raise PeerLost(f"the dealer did not start within {self._timeout:g} seconds")
        self.check()

    def read(self, nbytes: int) -> bytes | memoryview:
        if nbytes <= len(self._current):
            taken, self._current = self._current[:nbytes], self._current[nbytes:]
            return taken
        parts, missing = [self._current], nbytes - len(self._current)
        while missing > 0:
            chunk = memoryview(self._next_chunk())
            parts.append(chunk[:missing])
            self._current = chunk[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def _next_chunk(self) -> bytes:
        try:
            chunk = self._chunks.get_nowait()
        except queue.Empty:
            chunk = self._wait_for_chunk()
        self.received_bytes += len(chunk)
        return chunk

    def _wait_for_chunk(self) -> bytes:
        begun = time.perf_counter()
        while True:
            try:
                chunk = self._chunks.get(timeout=0.2)
            except queue.Empty:
                self.check()
                if self.finished.is_set() and self._chunks.empty():
                    raise PeerLost("the dealer's corrections ended early: is it the same MPCache?") from None
                if time.perf_counter() - begun > self._timeout:
                    raise PeerLost(f"the dealer sent nothing for {self._timeout:g} seconds") from None
            else:
                self.waited_seconds += time.perf_counter() - begun
                return chunk

    def close(self) -> None:
        self._failure = self._failure or "the link to the dealer was closed"
        self._closed = True
        self._stream.cancel()
        self._channel.close()
