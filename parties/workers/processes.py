"""Workers that are processes of this machine. They end with the process that started them, however it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from mpcache.parties.workers.pool import State, outcome, settle
from mpcache.protocols.errors import PeerLost

START_SECONDS = 300.0
"""For a process to start: long, as the machine may be busy."""


@dataclass(frozen=True)
class _Bytes:
    """In the place of a result: so many bytes follow."""

    count: int


class LocalProcess:
    """A host that is a process of its own, started anew and not forked, as this one has threads.

    Bytes, which are most of what travels, come as they are: pickled, they would be copied again and again.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="mpcache worker", daemon=True)
        self._process.start()
        theirs.close()
        self._calls: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._open: deque[Future[Any]] = deque()
        self._lock = threading.Lock()
        self._lost: PeerLost | None = None
        self._wait_for_start()
        self._receiver = threading.Thread(target=self._receive, name="worker process", daemon=True)
        self._receiver.start()

    @property
    def lost(self) -> bool:
        return self._lost is not None

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
        future: Future[Any] = Future()
        data = pickle.dumps((function, arguments), pickle.HIGHEST_PROTOCOL)
        with self._lock:
            lost = self._lost
            if lost is None:
                self._open.append(future)
                self._calls.put(data)
        if lost is not None:
            future.set_exception(lost)
        return future

    def stop(self) -> None:
        self._process.kill()
        self._receiver.join()  # which waits for the process: two threads that wait for one disturb each other

    def _wait_for_start(self) -> None:
        """Raises PeerLost."""
        try:
            if self._connection.poll(START_SECONDS) and self._connection.recv():
                return
        except (EOFError, OSError):
            pass
        self._process.kill()
        raise PeerLost(f"a worker process did not start: it {self._ending()}")

    def _send(self) -> None:
        """In a thread of its own: the process reads a call only after it has sent the result of the one before."""
        with contextlib.suppress(OSError):  # `_receive` hears it too
            while (data := self._calls.get()) is not None:
                self._connection.send_bytes(data)

    def _receive(self) -> None:
        sender = threading.Thread(target=self._send, name="worker process", daemon=True)
        sender.start()
        with contextlib.suppress(EOFError, OSError):
            while True:
                well, result = self._connection.recv()
                if isinstance(result, _Bytes):
                    result = _read(self._connection.fileno(), result.count)
                settle(self._open.popleft(), well, result)
        with self._lock:
            self._lost = PeerLost(f"a worker process {self._ending()}", told="the dealer lost one of its processes")
        self._calls.put(None)
        sender.join()
        self._connection.close()
        for future in self._open:
            future.set_exception(self._lost)

    def _ending(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{how}. If nobody stopped it, this machine may lack memory for so many"


def _serve(connection: Connection) -> None:
    """The process: calls, one after another, until the one that started it is gone."""
    os.setsid()  # what a terminal tells all its processes, the one that started this one hears
    threading.Thread(target=_end_with_parent, name="end with the parent", daemon=True).start()
    torch.set_num_threads(1)
    state: State = {}
    connection.send(True)
    with contextlib.suppress(EOFError, OSError):
        while True:
            well, result = outcome(state, _unpickled, (connection.recv_bytes(),))
            if isinstance(result, bytes):
                connection.send((well, _Bytes(len(result))))
                _write(connection.fileno(), result)
            else:
                connection.send((well, result))


def _unpickled(state: State, call: bytes) -> Any:
    """What a call gives; if its function cannot be found here, that is an error like any other."""
    function, arguments = pickle.loads(call)
    return function(state, *arguments)


def _end_with_parent() -> None:
    """At once, in the middle of a call too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _read(file: int, count: int) -> bytes:
    out = bytearray(count)
    view = memoryview(out)
    while view:
        got = os.readv(file, [view])
        if not got:
            raise EOFError
        view = view[got:]
    return bytes(out)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
