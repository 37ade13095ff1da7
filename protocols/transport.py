"""How bytes move: the interface that the protocols need, and an in-process version of it.

The protocols know messages, not networks. `parties` implements it over gRPC; tests use the one here.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Protocol

from mpcache.protocols.errors import PeerLost, ProtocolError

Received = bytes | bytearray | memoryview


class Channel(Protocol):
    """The link between the two computing parties: whole messages, in order."""

    def send(self, payload: bytes) -> None:
        """Hand one message over. Does not wait for the peer to read it."""

    def receive(self, expected: int) -> Received:
        """The peer's next message, which must be `expected` bytes long.

        Raises ProtocolError if it is of another length, PeerLost if the peer is gone or a deadline passes.
        """


Transport = Callable[[Channel], Channel]
"""Another channel on top of one, such as a slower network's. Both parties must use it."""


_Messages = queue.SimpleQueue[bytes | None]
"""None: no more will come."""


class QueueChannel:
    """One end of an in-process link. Make both ends with `channel_pair`."""

    def __init__(self, outbox: _Messages, inbox: _Messages, timeout: float) -> None:
        self._outbox, self._inbox, self._timeout = outbox, inbox, timeout

    def send(self, payload: bytes) -> None:
        self._outbox.put(payload)

    def receive(self, expected: int) -> bytes:
        try:
            payload = self._inbox.get(timeout=self._timeout)
        except queue.Empty:
            raise PeerLost(f"the other party sent nothing for {self._timeout:g} seconds") from None
        if payload is None:
            raise PeerLost("the other party ended")
        if len(payload) != expected:
            raise ProtocolError(f"expected a message of {expected} bytes, received {len(payload)}")
        return payload

    def close(self) -> None:
        """Send nothing more: the other end is not left waiting."""
        self._outbox.put(None)


def channel_pair(timeout: float = 60.0) -> tuple[QueueChannel, QueueChannel]:
    """Both ends of an in-process link."""
    a: _Messages = queue.SimpleQueue()
    b: _Messages = queue.SimpleQueue()
    return QueueChannel(a, b, timeout), QueueChannel(b, a, timeout)
