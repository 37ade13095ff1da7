"""A slower network than the real one: messages arrive when its round-trip time and bandwidth let them."""

from __future__ import annotations

import struct
import time

from mpcache.generation.network import Network
from mpcache.protocols.transport import Channel, Transport

_STAMP = struct.Struct("<d")


class DelayedChannel:
    """Delivers a message no earlier than half a round trip, and its time on the line, after it was sent.

    Both processes must be on one machine: each message carries the time on its clock. Where the real network is slower,
    that counts.
    """

    def __init__(self, channel: Channel, network: Network) -> None:
        self._channel, self._network = channel, network
        self._line_free = 0.0

    def send(self, payload: bytes) -> None:
        self._channel.send(_STAMP.pack(time.monotonic()) + payload)

    def receive(self, expected: int) -> memoryview:
        message = memoryview(self._channel.receive(expected + _STAMP.size))
        (sent,) = _STAMP.unpack(message[: _STAMP.size])
        self._line_free = max(self._line_free, sent) + expected / self._network.bandwidth
        wait = self._line_free + self._network.round_trip / 2 - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        return message[_STAMP.size :]


def delaying(network: Network) -> Transport:
    """The transport of both parties on a network."""
    return lambda channel: DelayedChannel(channel, network)
