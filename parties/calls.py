"""A server's calls: how long a peer may take to say its first word, and to take the last one.

What is sent waits until the peer takes it. A peer that takes nothing would keep the call, and a thread that serves it,
for as long as it likes: so a call whose session has ended is cancelled soon after.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

import grpc

from mpcache.parties.threads import start_thread
from mpcache.parties.tls import on_end
from mpcache.protocols.errors import HandshakeError

T = TypeVar("T")
LAST_WORD_SECONDS = 5.0
"""What a peer is given to take the reason why a session failed."""


class Call:
    """One call, from its begin on."""

    def __init__(self, role: str, context: grpc.ServicerContext) -> None:
        self._role, self._context = role, context
        self._ended = threading.Event()
        on_end(context, self._ended.set)

    def finish(self, seconds: float = LAST_WORD_SECONDS) -> None:
        """Nothing more will be said: cancel the call unless it ends within so many seconds. After a session that went
        well these are many, as the last messages may still be under way."""
        if not self._ended.is_set():
            start_thread(f"{self._role}: end of a call", self._cancel_if_it_lasts, seconds)

    def _cancel_if_it_lasts(self, seconds: float) -> None:
        if not self._ended.wait(seconds):
            self._context.cancel()


def first_of(role: str, messages: Iterator[T], seconds: float) -> T:
    """The first message of a call, within so many seconds. Raises HandshakeError."""
    heard: queue.SimpleQueue[T | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            heard.put(next(messages, None))
        except Exception:  # the call ended
            heard.put(None)

    start_thread(f"{role}: a call's first message", read)
    try:
        message = heard.get(timeout=seconds)
    except queue.Empty:
        raise HandshakeError(f"the {role} was sent no request within {seconds:g} seconds") from None
    if message is None:
        raise HandshakeError(f"the {role} was sent no request")
    return message
