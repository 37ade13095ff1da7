"""Streams without a thread of gRPC's, or ours, between a session and the network.

What gRPC documents for Python hands a message from thread to thread: a queue of ours, a thread that asks our iterator,
one that waits for events, a thread that asks gRPC's iterator, a queue again. That was two thirds of what a round cost.
Below lies `cygrpc`, by which gRPC's own Python files work, and which it does not document. Here

- whoever puts a frame starts its way itself, at either end;
- a client's session waits for the call's events itself. There is no wait with an end for that: a thread that sleeps
  adds an empty event four times a second (`TICK`), and whoever interrupts adds one as well;
- a server's events come in gRPC's one serving thread, which puts frames into the session's queue.

All that is not documented is in this file. Where a release of gRPC has it otherwise, `ThreadedStream` does the work.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from mpcache.parties.streams import AHEAD, TICK, LastWord, Stream, ThreadedStream
from mpcache.parties.threads import start_thread
from mpcache.parties.tls import on_end

try:
    from grpc._cython import cygrpc as _cygrpc
except ImportError:
    _cygrpc = None

cygrpc: Any = _cygrpc
"""None where this gRPC has no such file."""
log = logging.getLogger("mpcache.network")
Explain = Callable[[grpc.StatusCode, str], str]
"""Why a call ended, in words."""
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_CLOSED = object()
_CLOSED_SECONDS = 1.0
"""In which a call that has ended says so, after its last frame."""


class _DirectStream(Stream):
    """One frame is on its way at a time, and one awaited: so gRPC wants it."""

    def __init__(self, last_word: LastWord) -> None:
        super().__init__(last_word)
        self._lock = threading.Lock()
        self._outbox: deque[bytes] = deque()
        self._sending = self._receiving = self._all_came = self._end_told = False

    @abstractmethod
    def _start(self, operations: tuple[Any, ...], done: Callable[[Any], None]) -> bool:
        """Start these operations; `done` is called with the event of their end. False if the call has ended."""

    @abstractmethod
    def _tell_end(self) -> None:
        """All has left."""

    def put(self, frame: bytes) -> None:
        with self._lock:
            self._outbox.append(frame)
            self._send()

    def waiting(self) -> int:
        return len(self._outbox) + self._sending

    def drop(self) -> None:
        with self._lock:
            self._outbox.clear()

    def finish(self) -> None:
        with self._lock:
            self._finished = True
            self._send()
            self._receive()

    # ------------------------------------------------------------ with the lock

    def _send(self) -> None:
        if self._outbox and not self._sending:
            self._sending = self._start((cygrpc.SendMessageOperation(self._outbox.popleft(), 0),), self._sent)
            if not self._sending:  # nobody is there any more
                self._outbox.clear()
        if self._finished and not (self._sending or self._outbox or self._end_told):
            self._end_told = True
            self._tell_end()

    def _receive(self) -> None:
        """Ask for the next frame, unless enough of them wait here: gRPC holds the peer back then."""
        wanted = self._finished or (self.lost is None and self._inbox.qsize() < AHEAD)
        if wanted and not (self._receiving or self._all_came):
            self._receiving = self._start((cygrpc.ReceiveMessageOperation(0),), self._came)

    # ------------------------------------------------------------ events

    def _sent(self, event: Any) -> None:
        with self._lock:
            self._sending = False
            self._send()

    def _came(self, event: Any) -> None:
        frame = event.batch_operations[0].message()
        with self._lock:
            self._receiving = False
            if frame is None:
                self._all_came = True
            else:
                self._take_in(frame)
                self._receive()


class ServerStream(_DirectStream):
    """The server's end. Its handler returns `outgoing`, which yields nothing and keeps the call."""

    def __init__(self, context: grpc.ServicerContext, last_word: LastWord, closed: str) -> None:
        """closed: why no more frames come, where the client says that it has no more."""
        super().__init__(last_word)
        self._call, self._closed = context._rpc_event.call, closed  # type: ignore[attr-defined]
        self._left = threading.Event()
        context.send_initial_metadata(())
        on_end(context, self._left.set)
        with self._lock:
            self._receive()

    def outgoing(self) -> Iterator[bytes]:
        self._left.wait()
        yield from ()

    def _start(self, operations: tuple[Any, ...], done: Callable[[Any], None]) -> bool:
        def ended(event: Any) -> tuple[None, tuple[()]]:
            try:
                done(event)
            except Exception as error:  # in the thread that serves all calls
                self.end(f"the connection broke: {error}")
            return None, ()

        try:
            return not self._call.start_server_batch(operations, ended)
        except ValueError:  # of a call that has ended
            return False

    def _tell_end(self) -> None:
        self._left.set()

    def _came(self, event: Any) -> None:
        super()._came(event)
        if self._all_came:
            self._inbox.put(_CLOSED)  # type: ignore[arg-type]

    def _next(self, seconds: float) -> bytes | str | None:
        item = super()._next(seconds)
        if not self._receiving:
            with self._lock:
                self._receive()
        if item is not _CLOSED:
            return item
        if not self._is_lost.wait(_CLOSED_SECONDS):
            self.end(self._closed)
        return self.lost


class ClientStream(_DirectStream):
    """The client's end, and the call. Close it, or gRPC keeps the call."""

    pushes = True

    def __init__(self, channel: grpc.Channel, method: str, last_word: LastWord, explain: Explain) -> None:
        super().__init__(last_word)
        self._explain = explain
        self._polling = threading.Lock()
        self._awaited = self._woken = False
        self._over = threading.Event()
        to_the_end = cygrpc.SendInitialMetadataOperation((), 0), cygrpc.ReceiveStatusOnClientOperation(0)
        begin = (cygrpc.ReceiveInitialMetadataOperation(0),)
        self._due = 2
        self._call = channel._channel.segregated_call(  # type: ignore[attr-defined]
            cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            method.encode(),
            None,  # another host
            None,  # a deadline
            (),
            None,  # other credentials
            ((to_the_end, self._ended), (begin, _ignore)),
            cygrpc.build_census_context(),
            None,  # a registered method
        )
        with self._lock:
            self._receive()
        start_thread("client: the clock of a link", self._tick)

    def progress(self) -> None:
        self._wait_for_event()

    def look(self) -> None:
        """Events come in order: what there was before this one has been noted when it comes."""
        seen = False

        def mark(event: Any) -> None:
            nonlocal seen
            seen = True

        with self._lock:
            started = self._start((), mark)
        while started and not seen:
            self._poll()

    def wait_lost(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self._is_lost.is_set() and time.monotonic() < end and self._wait_for_event():
            pass
        return self._is_lost.is_set()

    def interrupt(self, reason: str) -> None:
        super().interrupt(reason)
        if self._awaited:
            self._wake()
        else:  # its session is busy elsewhere: what was put leaves without it
            self.look()

    def close(self) -> None:
        """End the call if it has not ended."""
        self._call.cancel(cygrpc.StatusCode.cancelled, "the client left")
        while self._poll():
            pass

    # ------------------------------------------------------------ what gRPC wants

    def _start(self, operations: tuple[Any, ...], done: Callable[[Any], None]) -> bool:
        started: bool = self._call.operate(operations, done)
        self._due += started
        return started

    def _tell_end(self) -> None:
        self._start((cygrpc.SendCloseFromClientOperation(0),), _ignore)

    def _ended(self, event: Any) -> None:
        status = event.batch_operations[1]
        details = status.details() or ""
        text = details if isinstance(details, str) else details.decode(errors="replace")
        self._over.set()
        self.end(self._explain(_CODES.get(status.code(), grpc.StatusCode.UNKNOWN), text))

    # ------------------------------------------------------------ waiting for events

    def _next(self, seconds: float) -> bytes | str | None:
        self._woken = False
        while self._inbox.empty():
            if not self._wait_for_event():
                return self.lost
            if self._woken and self._inbox.empty():
                return None
        item = self._inbox.get_nowait()
        if not self._receiving:
            with self._lock:
                self._receive()
        return item

    def _wait_for_event(self) -> bool:
        """As `_poll`, not much longer than TICK."""
        self._awaited = True
        try:
            return self._poll()
        finally:
            self._awaited = False

    def _poll(self) -> bool:
        """Wait for one event of the call and act on it. False if there will be none: gRPC has freed the call."""
        with self._polling:
            with self._lock:
                if not self._due:
                    return False
            event = self._call.next_event()
            with self._lock:
                self._due -= 1
            event.tag(event)
        return True

    def _wake(self) -> None:
        with self._lock:
            self._start((), self._woke)

    def _woke(self, event: Any) -> None:
        self._woken = True

    def _tick(self) -> None:
        while not self._over.wait(TICK):
            if self._awaited:
                self._wake()


def _ignore(event: Any) -> None:
    pass


# ---------------------------------------------------------------- either kind


def server_stream(
    frames: Iterator[bytes], context: grpc.ServicerContext, last_word: LastWord, closed: str, gone: str
) -> ServerStream | ThreadedStream:
    """The stream of a call's handler. frames: what gRPC gave it; closed, gone: why no more come, where the client says
    that it has no more, and where the call has ended."""
    stream: ServerStream | ThreadedStream
    try:
        stream = ServerStream(context, last_word, closed)
    except (AttributeError, TypeError) as error:
        _note(error)
        stream = ThreadedStream(last_word)
        start_thread("owner: frames from a client", stream.feed, frames, closed, lambda error: gone)
    on_end(context, lambda: stream.end(gone))
    return stream


def client_stream(
    channel: grpc.Channel, method: str, last_word: LastWord, explain: Explain
) -> ClientStream | ThreadedStream:
    """The stream of a new call of a method '/service/name'."""
    try:
        return ClientStream(channel, method, last_word, explain)
    except (AttributeError, TypeError) as error:
        _note(error)
    stream = ThreadedStream(last_word)
    frames = channel.stream_stream(method, bytes, bytes)(stream.outgoing())
    closed = explain(grpc.StatusCode.OK, "")

    def explained(error: grpc.RpcError) -> str:
        return explain(error.code(), error.details() or "")

    start_thread("client: frames from the owner", stream.feed, frames, closed, explained)
    return stream


def _note(error: Exception) -> None:
    log.info("gRPC %s is otherwise inside than it was (%s): messages take more threads", grpc.__version__, error)
