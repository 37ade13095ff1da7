"""Serve until told to stop: SIGTERM lets running sessions end, SIGINT (or a second signal) ends them."""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import threading
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger("mpcache.serving")


class Server(Protocol):
    """port: where it listens, once made."""

    port: int

    def drain(self, seconds: float) -> threading.Event:
        """Accept nothing more; set when all that runs has ended, or after so many seconds."""

    def stop(self) -> None:
        """End what runs."""


def _allow_many_files() -> None:
    """Every connection is a file: as many as the system lets this process have."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not everywhere
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(server: Server, drain_seconds: float, announce: Callable[[], None]) -> None:
    """Call it in the main thread. Returns when the server has stopped. announce: called once signals are heard."""
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signals.put(number))
    _allow_many_files()
    announce()
    if _first(signals) == signal.SIGTERM:
        log.info("SIGTERM: no new sessions; running ones have %g seconds to end", drain_seconds)
        ended = server.drain(drain_seconds)
        while not ended.wait(0.1) and signals.empty():
            pass
    server.stop()
    log.info("stopped")


def _first(signals: queue.SimpleQueue[int]) -> int:
    """Looks again and again: Python runs a handler between two steps of this thread, and one that comes just before a
    wait without end would never be run."""
    while True:
        with contextlib.suppress(queue.Empty):
            return signals.get(timeout=0.2)
