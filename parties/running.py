"""A session of the client in a thread of its own, and what comes out of it where it is iterated."""

from __future__ import annotations

import queue
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

from mpcache.parties.connection import Connection, Links
from mpcache.parties.link import ClientLink
from mpcache.parties.threads import start_thread

T = TypeVar("T")
_JOIN_SECONDS = 10.0
"""How long an iteration that ends waits for its session's thread, which may still be connecting."""
_END = object()


class Running(ABC, Generic[T]):
    """Iterate once. The thread waits for nobody but its peers: neither a slow consumer nor the decoding of text shows
    in the messages."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._links = Links(connection)
        self._found: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.setup_bytes = 0

    def __iter__(self) -> Iterator[T]:
        """Raises MpcacheError; the other processes are told why."""
        done = start_thread("client: a session", self._work)
        try:
            while (item := self._found.get()) is not _END:
                if isinstance(item, Exception):
                    raise item
                yield item  # type: ignore[misc]  # what `_session` gave
        finally:
            self.stop()
            done.join(_JOIN_SECONDS)

    @property
    def waited_for_dealer(self) -> float:
        """Seconds for which the session stood still as the dealer was not ahead."""
        return self._links.dealers.waited_seconds

    def stop(self) -> None:
        """Nobody wants more tokens: the others are told, and the session's thread ends. Any thread may call it."""
        self._links.stop()

    @abstractmethod
    def _session(self, link: ClientLink) -> None:
        """All of it, from the handshake on; gives each item to `_give`."""

    def _give(self, item: T) -> None:
        """To whoever iterates. Any thread may call it."""
        self._found.put(item)

    def _work(self) -> None:
        """The session, from its begin to its end; what went wrong goes where its tokens go."""
        try:
            with self._links.to_owner() as link:
                self._session(link)
        except Exception as error:  # a thread of its own: whatever it was, it is raised where tokens are awaited
            self._found.put(error)
        else:
            self._found.put(_END)

    def _received(self, nbytes: int) -> None:
        """Of masked weights."""
        self.setup_bytes += nbytes
