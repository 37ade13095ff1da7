"""One end of a call's stream of frames, in bytes: what waits here, what has left, and why no more will come.

`ThreadedStream` uses what gRPC documents for Python: gRPC asks an iterator of ours for what to send, in a thread of its
own, and a thread of ours asks gRPC's iterator for what has come. A frame passes from thread to thread two to three
times at each end. `direct.py` does without.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import grpc

from mpcache.protocols.errors import PeerLost

AHEAD = 16
"""Frames that wait here at most before the peer is made to wait, and for the peer before the next message is."""
TICK = 0.25
"""Seconds after which whoever waits for a frame looks at the clock at least."""
_PAUSE = 0.002

LastWord = Callable[[bytes], str | None]
"""Of a frame that has just come: the reason, if it ends the session."""


class Stream(ABC):
    """Any thread may put and end; one at a time takes.

    lost: why no more frames will come; None as long as they may.
    """

    pushes = False
    """Whether frames leave only while the thread that put them is in here."""

    def __init__(self, last_word: LastWord) -> None:
        self._last_word = last_word
        self._inbox: queue.SimpleQueue[bytes | str] = queue.SimpleQueue()
        self._finished = False
        self._is_lost = threading.Event()
        self.lost: str | None = None

    # ------------------------------------------------------------ what leaves

    @abstractmethod
    def put(self, frame: bytes) -> None:
        """Hand a frame over, without waiting."""

    @abstractmethod
    def waiting(self) -> int:
        """How many of the frames that were put have not left."""

    @abstractmethod
    def drop(self) -> None:
        """What has not left need not any more."""

    @abstractmethod
    def finish(self) -> None:
        """Nothing more will be put, and what comes is dropped. The end is told when all has left."""

    def close(self) -> None:  # noqa: B027
        """The call is of no use any more."""

    def progress(self) -> None:
        """Wait for a moment, while more of what was put leaves."""
        time.sleep(_PAUSE)

    # ------------------------------------------------------------ what comes

    def take(self, seconds: float) -> bytes | None:
        """The next frame; None if none came in so many seconds. Raises PeerLost with the reason if none will."""
        item = self._next(seconds)
        if isinstance(item, str):
            raise PeerLost(item)
        return item

    def _next(self, seconds: float) -> bytes | str | None:
        try:
            return self._inbox.get(timeout=min(seconds, TICK))
        except queue.Empty:
            return None

    def look(self) -> None:  # noqa: B027
        """Bring `lost` up to date."""

    def wait_lost(self, seconds: float) -> bool:
        """Whether no more frames will come, as soon as that shows within so many seconds."""
        return self._is_lost.wait(seconds)

    def interrupt(self, reason: str) -> None:
        """Whoever takes, now or later, is told this reason."""
        self._inbox.put(reason)

    def end(self, reason: str) -> None:
        """No more frames will come. The first reason counts."""
        if self.lost is None:
            self.lost = reason
            self._inbox.put(reason)
        self._is_lost.set()

    def _take_in(self, frame: bytes) -> None:
        """A frame has come."""
        if self._finished or self.lost is not None:
            return
        reason = self._last_word(frame)
        if reason is None:
            self._inbox.put(frame)
        else:
            self.end(reason)


class ThreadedStream(Stream):
    """Frames come from `feed`, go out through `outgoing`."""

    def __init__(self, last_word: LastWord) -> None:
        super().__init__(last_word)
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def put(self, frame: bytes) -> None:
        self._outbox.put(frame)

    def waiting(self) -> int:
        return self._outbox.qsize()

    def drop(self) -> None:
        try:
            while True:
                self._outbox.get_nowait()
        except queue.Empty:
            pass

    def finish(self) -> None:
        self._finished = True
        self._outbox.put(None)

    def outgoing(self) -> Iterator[bytes]:
        while (frame := self._outbox.get()) is not None:
            yield frame

    def feed(self, frames: Iterator[bytes], ended: str, explain: Callable[[grpc.RpcError], str]) -> None:
        """Take the peer's frames in, to their end; for a thread of its own. While AHEAD of them wait, gRPC's iterator
        is not asked: gRPC holds the peer back."""
        try:
            for frame in frames:
                while self._inbox.qsize() >= AHEAD and not self._finished:
                    time.sleep(_PAUSE)
                self._take_in(frame)
                if self.lost is not None:
                    return
            self.end(ended)
        except grpc.RpcError as error:
            self.end(explain(error))
        except Exception as error:  # whatever it was, nobody must be left waiting
            self.end(f"the connection broke: {error}")
