"""A pool of workers, wherever they are: calls of functions by name, each worker's one after another.

A call's function is given the worker's own `State` first, which lasts as long as the worker: what one call leaves there
the next one finds. A worker that is lost fails its calls with PeerLost, and another takes its place.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from mpcache.protocols.errors import MpcacheError

log = logging.getLogger("mpcache.workers")
P = ParamSpec("P")
T = TypeVar("T")
State = dict[Any, Any]
Call = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]
RUNNING = 2
"""Calls that a host has at a time: one that it makes, and the next one, so that it never waits. The others wait here,
where they can still be cancelled."""


class Host(Protocol):
    """Where the calls of one worker are made, in order. lost: it has gone, and whatever it held."""

    @property
    def lost(self) -> bool: ...

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
        """Begin a call. It fails with what the function raised, or with PeerLost if the host is lost."""

    def stop(self) -> None:
        """End it, whatever it is doing."""


class InProcess:
    """A host that is this process: a call is made at once, by who calls."""

    lost = False

    def __init__(self) -> None:
        self._state: State = {}

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(self._state, *arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self) -> None:
        self._state.clear()


class Worker:
    """A host, and the calls that wait for it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._lock = threading.RLock()  # a call that ends at once begins the next one within its own begin
        self._waiting: deque[Call] = deque()
        self._running = 0

    @property
    def lost(self) -> bool:
        return self._host.lost

    @property
    def load(self) -> int:
        """Calls that have not ended."""
        return self._running + len(self._waiting)

    def submit(self, function: Callable[Concatenate[State, P], T], *arguments: P.args, **named: P.kwargs) -> Future[T]:
        """function: one that its module has by name. Its result's exception is PeerLost if the worker is lost."""
        assert not named, "calls have no named arguments"
        future: Future[T] = Future()
        with self._lock:
            self._waiting.append((future, function, arguments))
            self._begin()
        return future

    def stop(self) -> None:
        self._host.stop()

    def _begin(self) -> None:
        while self._waiting and self._running < RUNNING:
            future, function, arguments = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                self._running += 1
                self._host.call(function, arguments).add_done_callback(partial(self._end, future))

    def _end(self, future: Future[Any], made: Future[Any]) -> None:
        with self._lock:
            self._running -= 1
            self._begin()
        error = made.exception()
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(made.result())


class Pool:
    """So many workers; close it when they are not needed any more."""

    def __init__(self, host: Callable[[], Host], count: int, close: Callable[[], None] = lambda: None) -> None:
        """host: starts one. close: called when all have been stopped."""
        self._host, self._close = host, close
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        try:
            for _ in range(count):
                self._workers.append(Worker(host()))
        except BaseException:
            self.close()
            raise

    def workers(self) -> list[Worker]:
        """All of them. One that was lost has been replaced."""
        with self._lock:
            for i, worker in enumerate(self._workers):
                if worker.lost:
                    worker.stop()
                    self._workers[i] = Worker(self._host())
            return list(self._workers)

    def close(self) -> None:
        """Ends what still runs."""
        with self._lock:
            for worker in self._workers:
                worker.stop()
            self._workers = []
        self._close()


def outcome(state: State, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """A call as another process makes it: (whether it went well, its result or its error).

    An error that nobody expected is logged here, where it was raised, and told in words: it may fit no pickle.
    """
    try:
        return True, function(state, *arguments)
    except MpcacheError as error:
        return False, error
    except Exception as error:
        log.exception("a worker's call failed")
        return False, RuntimeError(f"{type(error).__name__}: {error}")


def settle(future: Future[Any], well: bool, result: Any) -> None:
    """`outcome`'s, as the future's."""
    if well:
        future.set_result(result)
    else:
        future.set_exception(result)
