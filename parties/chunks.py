"""What is made ahead of its reader, bounded in bytes."""

from __future__ import annotations

import threading
from collections import deque

from mpcache.parties.tls import PART_BYTES
from mpcache.protocols.errors import PeerLost

CHUNK_BYTES = PART_BYTES


class BoundedChunks:
    """A queue of chunks, bounded in bytes; small chunks are joined up to CHUNK_BYTES when taken."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._chunks: deque[bytes | memoryview] = deque()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def held(self) -> int:
        """Bytes that wait to be taken."""
        return self._held

    def put(self, chunk: bytes | memoryview, seconds: float) -> bool:
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

    def get(self) -> bytes | memoryview | None:
        """The next bytes; None when it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._closed)
            if self._closed:
                return None
            taken: list[bytes | memoryview] = []
            size = 0
            while self._chunks and (not taken or size + len(self._chunks[0]) <= CHUNK_BYTES):
                taken.append(self._chunks.popleft())
                size += len(taken[-1])
            self._held -= size
            self._changed.notify_all()
        return taken[0] if len(taken) == 1 else b"".join(taken)
