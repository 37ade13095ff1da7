"""The link between the two parties: one long-lived gRPC stream, one message a round, in order or not at all.

A message travels in parts of PART_BYTES, so that no process accepts a large gRPC message; how many bytes are due is
known before each message. Frames that come before they are due wait, and beyond AHEAD of them the peer does. Frames
that the peer does not take wait as well, and beyond AHEAD of them the next message does.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator

import grpc

from mpcache.parties.certificates import Identity
from mpcache.parties.generated import owner_pb2, owner_pb2_grpc
from mpcache.parties.threads import start_thread
from mpcache.parties.tls import DEFAULT_TIMEOUT, PART_BYTES, open_channel
from mpcache.protocols.errors import Busy, HandshakeError, ModelError, PeerLost, ProtocolError, TooLarge

Frame = owner_pb2.Frame
PARTIES = ("owner", "client")
"""By their number in a session."""
SESSION_BYTES = 16
"""Of a session's id, random."""
REFUSALS = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
AHEAD = 16
"""Frames that wait here at most before the peer is made to wait, and for the peer before the next message is."""
_END = object()
_REASON_LENGTH = 300


def printable(text: str) -> str:
    """A peer's text, fit to be shown: no control characters, not too long."""
    return "".join(c if c.isprintable() else " " for c in text)[:_REASON_LENGTH]


def told(error: Exception, role: str) -> str:
    """What a peer is told of an error: what concerns both, not this machine's files and settings."""
    if isinstance(error, PeerLost):
        return error.told
    if isinstance(error, HandshakeError | Busy | TooLarge | ProtocolError | ModelError):
        return str(error)
    return f"the {role} failed: its own log says why"


class Link:
    """One end of the stream, a `Channel` for a session. Frames come from `feed`, go out through `outgoing`.

    peer: the other role, for messages. timeout: seconds that any wait may take.
    """

    def __init__(self, role: str, peer: str, session: bytes, timeout: float) -> None:
        self.role, self.peer, self.session, self.timeout = role, peer, session, timeout
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._sent = self._received = 0
        self._ended: str | None = None
        self._lost: str | None = None
        self._is_lost = threading.Event()
        self._closed = False
        self.check: Callable[[], None] = lambda: None  # called while waiting: raises if another peer is lost

    # ------------------------------------------------------------ Channel

    def send(self, payload: bytes) -> None:
        if self._ended is not None:
            raise PeerLost(self._ended)
        self._wait_until_taken()
        for start in range(0, max(1, len(payload)), PART_BYTES):
            part = payload if len(payload) <= PART_BYTES else payload[start : start + PART_BYTES]
            message = owner_pb2.Message(session=self.session, sequence=self._sent, length=len(payload), payload=part)
            self._outbox.put(Frame(message=message))
        self._sent += 1

    def _wait_until_taken(self) -> None:
        """Until no more than AHEAD frames of earlier messages wait here: a peer may send all that is due, and take
        nothing. Two honest ends never wait so for each other: the one behind has all that it needs. Raises PeerLost."""
        waiting, begun = self._outbox.qsize(), time.monotonic()
        while waiting > AHEAD:
            self.check_peer()
            self.check()
            time.sleep(0.002)
            before, waiting = waiting, self._outbox.qsize()
            if waiting < before:
                begun = time.monotonic()
            elif time.monotonic() - begun >= self.timeout:
                self._ended = f"the {self.peer} took nothing for {self.timeout:g} seconds"
                raise PeerLost(self._ended)

    def receive(self, expected: int) -> bytes:
        parts: list[bytes] = []
        missing = expected
        while missing > 0 or not parts:
            parts.append(self._part(expected, min(missing, PART_BYTES)))
            missing -= len(parts[-1])
        self._received += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, expected: int, due: int) -> bytes:
        """The next `due` bytes of a message of `expected`."""
        frame = self.next_frame()
        kind = frame.WhichOneof("kind")
        if kind != "message":
            raise ProtocolError(f"the {self.peer} sent a {kind} where message {self._received} was due")
        message = frame.message
        if message.session != self.session:
            raise ProtocolError(f"the {self.peer} sent a message of another session")
        if message.sequence != self._received:
            raise ProtocolError(
                f"the {self.peer} sent message {message.sequence} where message {self._received} was due"
            )
        if message.length != expected or len(message.payload) != due:
            raise ProtocolError(
                f"the {self.peer}'s message {self._received} has {message.length} bytes, of which "
                f"{len(message.payload)} came at once, where {expected} and {due} were due"
            )
        payload: bytes = message.payload
        return payload

    # ------------------------------------------------------------ frames

    def put(self, frame: owner_pb2.Frame) -> None:
        self._outbox.put(frame)

    def next_frame(self, timeout: float | None = None) -> owner_pb2.Frame:
        """The peer's next frame. Raises PeerLost with the reason if there will be none."""
        if self._ended is not None:
            raise PeerLost(self._ended)
        begun = time.monotonic()
        while True:
            limit = self.timeout if timeout is None else timeout
            try:
                frame = self._inbox.get(timeout=min(0.5, limit))
                break
            except queue.Empty:
                self.check()
                if time.monotonic() - begun >= limit:
                    self._ended = f"the {self.peer} sent nothing for {limit:g} seconds"
                    raise PeerLost(self._ended) from None
        if isinstance(frame, str):
            self._ended = frame
            raise PeerLost(frame)
        assert isinstance(frame, Frame)
        return frame

    def check_peer(self) -> None:
        """While waiting for somebody else. Raises PeerLost if the peer is gone."""
        if self._lost is not None:
            raise PeerLost(self._lost)

    def reason(self, within: float) -> str | None:
        """Why the peer is gone, if that shows within so many seconds."""
        return self._lost if self._is_lost.wait(within) else None

    def abort(self, reason: str) -> None:
        """Tell the peer why the session ends, and end it: whoever still waits here hears of it, too."""
        if self._closed:
            return
        with contextlib.suppress(queue.Empty):  # what was not sent yet is not wanted any more
            while True:
                self._outbox.get_nowait()
        self._outbox.put(Frame(abort=owner_pb2.Abort(role=self.role, reason=printable(reason))))
        self._inbox.put(reason)
        self.close()

    def close(self) -> None:
        self._closed = True
        self._outbox.put(_END)

    def lost(self, reason: str) -> None:
        """No more frames will come, for this reason."""
        if self._lost is None:
            self._lost = reason
            self._inbox.put(reason)
        self._is_lost.set()

    def feed(self, frames: Iterator[owner_pb2.Frame], explain: Callable[[grpc.RpcError], str]) -> None:
        """Read the stream to its end; runs in a thread of its own."""
        try:
            for frame in frames:
                if frame.WhichOneof("kind") == "abort":
                    return self.lost(f"the {self.peer} ended the session: {printable(frame.abort.reason)}")
                self._take_in(frame)
            self.lost(f"the {self.peer} closed the connection")
        except grpc.RpcError as error:
            self.lost(explain(error))
        except Exception as error:  # whatever it was, nobody must be left waiting
            self.lost(f"the connection to the {self.peer} broke: {error}")

    def _take_in(self, frame: owner_pb2.Frame) -> None:
        """Keep a frame until it is due. While AHEAD of them wait, the stream is not read: gRPC holds the peer back."""
        while self._inbox.qsize() >= AHEAD and not self._closed:
            time.sleep(0.002)
        if not self._closed:
            self._inbox.put(frame)

    def outgoing(self) -> Iterator[owner_pb2.Frame]:
        while (frame := self._outbox.get()) is not _END:
            assert isinstance(frame, Frame)
            yield frame


class ClientLink(Link):
    """The client's end: opens the stream to the owner."""

    def __init__(
        self, address: str, identity: Identity | None, session: bytes, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        super().__init__("client", "owner", session, timeout)
        self._channel, self.certificate = open_channel(address, identity, "owner", timeout)
        frames = owner_pb2_grpc.OwnerStub(self._channel).Converse(self.outgoing())

        def explain(error: grpc.RpcError) -> str:
            return explain_error(error, address, "owner")

        start_thread("client: frames from the owner", self.feed, frames, explain)

    def disconnect(self) -> None:
        """Let the owner end the stream, if it answers, then close the connection."""
        self.close()
        self._is_lost.wait(2.0)
        self._channel.close()


def explain_error(error: grpc.RpcError, address: str, role: str) -> str:
    """A gRPC error in words that say what to do."""
    code, details = error.code(), printable(error.details() or "")
    if code in REFUSALS and code != grpc.StatusCode.RESOURCE_EXHAUSTED:
        return f"the {role} refused: {details}"
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return f"the {role} at {address} refused: {details or 'it has no place left: try again later'}"
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
        return f"lost the {role} at {address}: its process ended or the connection broke ({details or code.name})"
    return f"the {role} failed: {details or code.name}"
