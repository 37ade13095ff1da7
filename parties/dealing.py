"""The dealer's service and the parties' link to it: corrections stream ahead of the parties, with bounded memory."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc

from mpcache.generate import Program
from mpcache.planning import PROTOCOL_VERSION, PublicParameters, correlations, plan_digest
from parties.certificates import Identity
from parties.generated import dealer_pb2, dealer_pb2_grpc
from parties.link import explain_error, printable
from parties.threads import start_thread
from parties.tls import on_end, open_channel, open_server, require_role
from protocols.correlation import Dealer
from protocols.errors import HandshakeError, MpcacheError, PeerLost

Corrections = dealer_pb2.Corrections
CHUNK_BYTES = 1 << 20
PARTIES = ("owner", "client")


def left(role: str) -> str:
    """What the dealer tells a party when the other one has gone."""
    return f"the {role} left"


@dataclass
class _Pairing:
    """A session that waits for its second party, or runs."""

    requests: dict[str, dealer_pb2.DealRequest] = field(default_factory=dict)
    complete: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    failure: str | None = None

    def end(self, failure: str | None = None) -> None:
        if not self.ended.is_set():
            self.failure = failure
            self.ended.set()
            self.complete.set()  # whoever waits for the second party hears of it


class DealerService(dealer_pb2_grpc.DealerServicer):
    """Pairs the two parties of a session and streams party 1 its corrections; party 0 hears only how it goes.

    memory_bytes bounds what is made ahead of the client. The dealer learns public parameters and the two seeds.
    """

    def __init__(self, insecure: bool, timeout: float, memory_bytes: int, program: Program | None = None) -> None:
        self._insecure, self._timeout, self._memory_bytes = insecure, timeout, memory_bytes
        self._program = program
        self._sessions: dict[bytes, _Pairing] = {}
        self._lock = threading.Lock()

    def Deal(self, request: dealer_pb2.DealRequest, context: grpc.ServicerContext) -> Iterator[dealer_pb2.Corrections]:
        role = require_role(context, (request.role,) if request.role in PARTIES else PARTIES, self._insecure)
        pairing = self._join(role, request)
        other = next(p for p in PARTIES if p != role)
        on_end(context, lambda: pairing.end(left(role)))
        try:
            if not pairing.complete.wait(self._timeout):
                pairing.end(f"the {other} did not come within {self._timeout:g} seconds")
            if pairing.failure is None:
                yield Corrections(started=True)
                if role == "client":
                    yield from self._corrections(pairing)
                else:
                    pairing.ended.wait()
            if pairing.failure is None:
                yield Corrections(finished=True)
            else:
                yield Corrections(failure=pairing.failure)
        finally:
            pairing.end(left(role))
            with self._lock:
                self._sessions.pop(request.session, None)

    def _join(self, role: str, request: dealer_pb2.DealRequest) -> _Pairing:
        with self._lock:
            pairing = self._sessions.setdefault(request.session, _Pairing())
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
        ahead = _BoundedChunks(self._memory_bytes)
        start_thread("dealer: corrections", _make, pairing, ahead, self._program)
        try:
            while (chunk := ahead.get(pairing.ended)) is not None:
                yield Corrections(chunk=chunk)
            if pairing.failure is None:
                pairing.ended.set()
        finally:
            ahead.close()


def _disagreement(requests: dict[str, dealer_pb2.DealRequest]) -> str | None:
    a, b = requests["owner"], requests["client"]
    for what in ("protocol_version", "public_parameters", "plan_digest"):
        if getattr(a, what) != getattr(b, what):
            return f"the owner and the client gave the dealer different values of {what.replace('_', ' ')}"
    if a.protocol_version != PROTOCOL_VERSION:
        return f"the dealer speaks protocol version {PROTOCOL_VERSION}, the parties {a.protocol_version}"
    return None


def _make(pairing: _Pairing, ahead: _BoundedChunks, program: Program | None) -> None:
    owner, client = pairing.requests["owner"], pairing.requests["client"]
    try:
        parameters = PublicParameters.from_json(owner.public_parameters)
        parameters.check()
        if plan_digest(parameters, program) != owner.plan_digest:
            raise HandshakeError("the dealer's plan differs from the parties': use the same MPCache everywhere")
        dealer = Dealer((owner.seed, client.seed), owner.weight_key)
        for correlation in correlations(parameters, program):
            data = dealer.correction(correlation)
            for start in range(0, len(data), CHUNK_BYTES):
                if not ahead.put(data[start : start + CHUNK_BYTES]):
                    return
        ahead.finish()
    except Exception as error:  # a thread of its own: whatever it was, the parties must hear of it
        pairing.end(str(error) if isinstance(error, MpcacheError) else f"the dealer failed: {type(error).__name__}")
        ahead.close()


class _BoundedChunks:
    """A queue of chunks, bounded in bytes; small chunks are joined up to CHUNK_BYTES when taken."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._chunks: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._finished = self._closed = False

    def put(self, chunk: bytes) -> bool:
        """False if nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._held < self._limit)
            self._chunks.append(chunk)
            self._held += len(chunk)
            self._changed.notify_all()
            return not self._closed

    def finish(self) -> None:
        with self._changed:
            self._finished = True
            self._changed.notify_all()

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
    """The dealer's process: serves until stopped. program: see `mpcache.generate.Program`."""

    def __init__(
        self,
        address: str,
        identity: Identity | None,
        timeout: float = 60.0,
        memory_bytes: int = 128 << 20,
        program: Program | None = None,
    ) -> None:
        self._server, self.port = open_server(address, identity, workers=32)
        service = DealerService(identity is None, timeout, memory_bytes, program)
        dealer_pb2_grpc.add_DealerServicer_to_server(service, self._server)
        self._server.start()

    def wait(self) -> None:
        self._server.wait_for_termination()

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
        self._channel = open_channel(address, identity, "dealer")
        self._chunks: queue.Queue[bytes] = queue.Queue(maxsize=max(2, memory_bytes // CHUNK_BYTES))
        self._current = memoryview(b"")
        self._failure: str | None = None
        self.told: str | None = None
        self._closed = False
        self.finished = threading.Event()
        self.started = threading.Event()
        self.received_bytes = 0
        self.waited_seconds = 0.0
        self._stream = dealer_pb2_grpc.DealerStub(self._channel).Deal(request)

        def explain(error: grpc.RpcError) -> str:
            return explain_error(error, address, identity, "dealer")

        start_thread(f"{request.role}: corrections from the dealer", self._feed, explain)

    def _feed(self, explain: object) -> None:
        try:
            for reply in self._stream:
                kind = reply.WhichOneof("kind")
                if kind == "chunk":
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
        except grpc.RpcError as error:
            if not self._closed:
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
            raise PeerLost(self._failure)

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
        self._closed = True
        self._stream.cancel()
        self._channel.close()
