"""A party's link to the dealer: corrections, read ahead with bounded memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from mpcache.parties.certificates import Identity
from mpcache.parties.generated import dealer_pb2, dealer_pb2_grpc
from mpcache.parties.link import REFUSALS, explain_error, printable
from mpcache.parties.threads import start_thread
from mpcache.parties.tls import PART_BYTES, open_channel
from mpcache.protocols.errors import PeerLost, ProtocolError

Failure = dealer_pb2.Failure
READ_AHEAD = 64 << 20
"""Bytes of corrections that wait at a party, of all prompts of a batch together."""


@dataclass(frozen=True)
class Ending:
    """Why the dealer ended the session; other_left: because the other party did, which may say itself why; unprepared:
    because it has no such prepared session, of which nothing was sent."""

    text: str
    other_left: bool
    unprepared: bool = False


class DealerLinks:
    """Those of one party for one call of the other: one, or of a batch one for each prompt."""

    def __init__(self) -> None:
        self._made: list[DealerLink] = []

    def add(self, link: DealerLink) -> None:
        self._made.append(link)

    def check(self) -> None:
        """Raises PeerLost if the dealer has failed or gone; a link that was closed here says nothing."""
        for link in self._made:
            if not link.closed:
                link.check()

    def close(self) -> None:
        for link in self._made:
            link.close()

    @property
    def other_left(self) -> bool:
        """Whether the dealer ended as the other party had gone."""
        return any(link.ending is not None and link.ending.other_left for link in self._made)

    @property
    def waited_seconds(self) -> float:
        """The longest that a reader stood still: readers of a batch wait for each other."""
        return max((link.waited_seconds for link in self._made), default=0.0)


class DealerLink:
    """A party's link to the dealer: a byte stream of corrections, read ahead by at most `memory_bytes`.

    waited_seconds: how long `read` stood still because the dealer was not ahead. ending: why the dealer ended it.
    progress: bytes of a prepared session that are on the dealer's disk, or checked there, so far.
    """

    def __init__(
        self,
        address: str,
        identity: Identity | None,
        request: dealer_pb2.DealRequest,
        timeout: float,
        memory_bytes: int = READ_AHEAD,
    ) -> None:
        self._timeout = timeout
        self._channel, _ = open_channel(address, identity, "dealer", timeout)
        self._chunks: queue.Queue[bytes] = queue.Queue(maxsize=max(2, memory_bytes // PART_BYTES))
        self._current = memoryview(b"")
        self._failure: str | None = None
        self._failure_told: str | None = None
        self.ending: Ending | None = None
        self._closed = False
        self.finished = threading.Event()
        self.started = threading.Event()
        self.progress = 0
        self._moved = time.monotonic()
        self._done = False
        self.received_bytes = 0
        self.waited_seconds = 0.0
        self._stream = dealer_pb2_grpc.DealerStub(self._channel).Deal(iter([request]))

        def explain(error: grpc.RpcError) -> str:
            return explain_error(error, address, "dealer")

        start_thread(f"{request.role}: corrections from the dealer", self._feed, explain)

    def _feed(self, explain: Callable[[grpc.RpcError], str]) -> None:
        try:
            for reply in self._stream:
                kind = reply.WhichOneof("kind")
                if kind == "chunk":
                    if not reply.chunk:
                        raise ProtocolError("the dealer sent a chunk without bytes")
                    self._put(reply.chunk)
                elif kind == "started":
                    self._moved = time.monotonic()
                    self.started.set()
                elif kind == "progress":
                    self._move(reply.progress)
                elif kind == "finished":
                    self._done = True
                elif kind == "failure":
                    why = reply.failure.kind
                    self.ending = Ending(printable(reply.failure.text), why == Failure.LEFT, why == Failure.UNPREPARED)
                    self._failure = f"the dealer ended the session: {self.ending.text}"
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
                self._failure = explain(error)
        finally:
            self.started.set()

    def _move(self, progress: int) -> None:
        """What does not move is no sign of life."""
        if progress > self.progress:
            self.progress, self._moved = progress, time.monotonic()

    def _put(self, chunk: bytes) -> None:
        while not self._closed:
            try:
                return self._chunks.put(chunk, timeout=0.5)
            except queue.Full:
                continue

    @property
    def closed(self) -> bool:
        """Whether it was closed here."""
        return self._closed

    def check(self) -> None:
        """Raises PeerLost if the dealer has failed or gone."""
        if self._failure is not None:
            raise PeerLost(self._failure, self._failure_told)

    def wait_started(self, check_peer: Callable[[], None] = lambda: None) -> None:
        """Until both parties are there, and what was prepared is found whole.

        check_peer: called meanwhile, raises if the other party is gone. Raises PeerLost.
        """
        self._wait(self.started, check_peer, "start")
        self.check()

    def wait_finished(self, check_peer: Callable[[], None]) -> None:
        """Until the dealer says that all is done: without chunks, of a session that it prepares. Raises PeerLost."""
        self._wait(self.finished, check_peer, "go on")
        if not self._done:
            raise PeerLost("the dealer ended without a word")

    def _wait(self, awaited: threading.Event, check_peer: Callable[[], None], what: str) -> None:
        while not awaited.wait(0.2):
            self.check()
            check_peer()
            if time.monotonic() > self._moved + self._timeout:
                raise PeerLost(f"the dealer did not {what} within {self._timeout:g} seconds")

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
