"""The link between the two parties: one long-lived gRPC stream, one message a round, in order or not at all.

A message travels in parts of PART_BYTES, so that no process accepts a large gRPC message; how many bytes are due is
known before each message. Frames that come before they are due wait, and beyond AHEAD of them the peer does. Frames
that the peer does not take wait as well, and beyond AHEAD of them the next message does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc
from google.protobuf.message import DecodeError

from mpcache.parties.certificates import Identity
from mpcache.parties.direct import client_stream
from mpcache.parties.frames import ABORT_TAG, message_header
from mpcache.parties.generated import owner_pb2
from mpcache.parties.streams import AHEAD, LastWord, Stream
from mpcache.parties.tls import DEFAULT_TIMEOUT, PART_BYTES, open_channel
from mpcache.protocols.errors import Busy, HandshakeError, ModelError, PeerLost, ProtocolError, TooLarge

Frame = owner_pb2.Frame
CONVERSE = "/mpcache.v1.Owner/Converse"
PARTIES = ("owner", "client")
"""By their number in a session."""
SESSION_BYTES = 16
"""Of a session's id, random."""
REFUSALS = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
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


def last_word(peer: str) -> LastWord:
    """Of that peer's frames: its abort, which counts before it is due."""

    def reason(frame: bytes) -> str | None:
        if not frame.startswith(ABORT_TAG):
            return None
        try:
            read = Frame.FromString(frame)
        except DecodeError:  # which is said when it is due
            return None
        if read.WhichOneof("kind") != "abort":
            return None
        return f"the {peer} ended the session: {printable(read.abort.reason)}"

    return reason


class Link:
    """One end of the stream, a `Channel` for a session.

    peer: the other role, for messages. timeout: seconds that any wait may take.
    """

    def __init__(self, role: str, peer: str, session: bytes, timeout: float, stream: Stream) -> None:
        self.role, self.peer, self.session, self.timeout = role, peer, session, timeout
        self._stream = stream
        self._sent = self._received = 0
        self._ended: str | None = None
        self._closed = False
        self.check: Callable[[], None] = lambda: None  # called while waiting: raises if another peer is lost

    # ------------------------------------------------------------ Channel

    def send(self, payload: bytes) -> None:
        if self._ended is not None:
            raise PeerLost(self._ended)
        self._wait_until_taken(AHEAD)
        length = len(payload)
        for start in range(0, max(1, length), PART_BYTES):
            part = payload if length <= PART_BYTES else memoryview(payload)[start : start + PART_BYTES]
            header = message_header(self.session, self._sent, length, len(part))
            self._stream.put(b"".join((header, part)))
        self._sent += 1
        if self._stream.pushes:
            self._wait_until_taken(1)

    def _wait_until_taken(self, most: int) -> None:
        """Until no more than so many frames wait here: a peer may send all that is due, and take nothing. Two honest
        ends never wait so for each other: the one behind has all that it needs. Raises PeerLost."""
        waiting, begun = self._stream.waiting(), time.monotonic()
        while waiting > most:
            self._stream.progress()
            self.check_peer()
            self.check()
            before, waiting = waiting, self._stream.waiting()
            if waiting < before:
                begun = time.monotonic()
            elif time.monotonic() - begun >= self.timeout:
                self._ended = f"the {self.peer} took nothing for {self.timeout:g} seconds"
                raise PeerLost(self._ended)

    def receive(self, expected: int) -> bytes | memoryview:
        parts: list[memoryview] = []
        missing = expected
        while missing > 0 or not parts:
            parts.append(self._part(expected, min(missing, PART_BYTES)))
            missing -= len(parts[-1])
        self._received += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, expected: int, due: int) -> memoryview:
        """The next `due` bytes of a message of `expected`."""
        frame = self._next_frame(self.timeout)
        header = message_header(self.session, self._received, expected, due)
        if len(frame) == len(header) + due and frame.startswith(header):
            return memoryview(frame)[len(header) :]
        return memoryview(self._checked(_read(frame, self.peer), expected, due))

    def _checked(self, frame: owner_pb2.Frame, expected: int, due: int) -> bytes:
        """The payload of a frame that was not written as ours are, if it is what was due. Raises ProtocolError."""
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
        self._stream.put(frame.SerializeToString())

    def next_frame(self, timeout: float | None = None) -> owner_pb2.Frame:
        """The peer's next frame. Raises PeerLost with the reason if there will be none; ProtocolError."""
        return _read(self._next_frame(self.timeout if timeout is None else timeout), self.peer)

    def _next_frame(self, limit: float) -> bytes:
        if self._ended is not None:
            raise PeerLost(self._ended)
        begun = time.monotonic()
        while (frame := self._taken(limit)) is None:
            self.check()
            if time.monotonic() - begun >= limit:
                self._ended = f"the {self.peer} sent nothing for {limit:g} seconds"
                raise PeerLost(self._ended)
        return frame

    def _taken(self, seconds: float) -> bytes | None:
        try:
            return self._stream.take(seconds)
        except PeerLost as lost:
            self._ended = str(lost)
            raise

    def check_peer(self) -> None:
        """While waiting for somebody else. Raises PeerLost if the peer is gone."""
        self._stream.look()
        if self._stream.lost is not None:
            raise PeerLost(self._stream.lost)

    def reason(self, within: float) -> str | None:
        """Why the peer is gone, if that shows within so many seconds."""
        return self._stream.lost if self._stream.wait_lost(within) else None

    def abort(self, reason: str) -> None:
        """Tell the peer why the session ends, and end it: whoever still waits here hears of it, too."""
        if self._closed:
            return
        self._stream.drop()  # what was not sent yet is not wanted any more
        self.put(Frame(abort=owner_pb2.Abort(role=self.role, reason=printable(reason))))
        self._stream.interrupt(reason)
        self.close()

    def close(self) -> None:
        self._closed = True
        self._stream.finish()


def _read(frame: bytes, peer: str) -> owner_pb2.Frame:
    try:
        return Frame.FromString(frame)
    except DecodeError:
        raise ProtocolError(f"the {peer} sent what is no frame") from None


class ClientLink(Link):
    """The client's end: opens the stream to the owner."""

    def __init__(
        self, address: str, identity: Identity | None, session: bytes, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self._channel, self.certificate = open_channel(address, identity, "owner", timeout)

        def explain(code: grpc.StatusCode, details: str) -> str:
            if code == grpc.StatusCode.OK:
                return "the owner closed the connection"
            return explain_status(code, details, address, "owner")

        stream = client_stream(self._channel, CONVERSE, last_word("owner"), explain)
        super().__init__("client", "owner", session, timeout, stream)

    def disconnect(self) -> None:
        """Let the owner end the stream, if it answers, then close the connection."""
        self.close()
        self._stream.wait_lost(2.0)
        self._stream.close()
        self._channel.close()


def explain_error(error: grpc.RpcError, address: str, role: str) -> str:
    """A gRPC error in words that say what to do."""
    return explain_status(error.code(), error.details() or "", address, role)


def explain_status(code: grpc.StatusCode, details: str, address: str, role: str) -> str:
    """How a call ended, in words that say what to do."""
    details = printable(details)
    if code in REFUSALS and code != grpc.StatusCode.RESOURCE_EXHAUSTED:
        return f"the {role} refused: {details}"
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return f"the {role} at {address} refused: {details or 'it has no place left: try again later'}"
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
        return f"lost the {role} at {address}: its process ended or the connection broke ({details or code.name})"
    return f"the {role} failed: {details or code.name}"
