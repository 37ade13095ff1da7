"""A profiler within the process: whose work its CPU seconds were.

A thread looks at all other threads every ten milliseconds. What CPU time a thread had since it was last seen at work
goes to the stack that it is at work on now: over many looks, every stack gets its part. A thread that waits is left
alone. Threads without a Python frame are gRPC's own; what they had is the process's time less everybody else's.

Why not a package: py-spy and austin look from outside, need the right to trace other processes, and count looks, not
CPU time; yappi and cProfile hook every call, which makes small calls look dear.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mpcache.benchmarks.measure.kinds import GRPC, OUTSIDE, Place, kind_of, protocol_of

INTERVAL = 0.01
"""Seconds between two looks, on average: they come at random, so that no rhythm of the program's hides from them."""
SWITCH_INTERVAL = 0.001
"""How long Python lets another thread wait: a look that comes late sees what comes after what it should see."""
PROFILER, UNSEEN = "profiler", "unseen"
"""Kinds of the profiler's own time, and of time that threads had since they were last seen at work."""

_WAITS = {
    ("threading", "wait"),
    ("threading", "wait_for"),
    ("threading", "_wait_for_tstate_lock"),
    ("queue", "get"),
    ("queue", "put"),
    ("concurrent.futures.thread", "_worker"),
    ("mpcache.parties.link", "next_frame"),
    ("mpcache.parties.link", "outgoing"),
    ("mpcache.parties.client", "__iter__"),
    ("mpcache.parties.serving", "_first"),
    ("grpc._common", "wait"),
    ("grpc._common", "_wait_once"),
    ("grpc._server", "_serve"),
    ("grpc._channel", "_next"),
    ("grpc._channel", "channel_spin"),
}
"""Functions whose innermost line waits in C: such a thread is at work only if its clock goes on."""
_DRAWING = {("mpcache.protocols.correlation", "take"), ("mpcache.protocols.correlation", "correction")}

Totals = dict[tuple[str, str], float]
"""CPU seconds by kind and protocol. All together are the process's."""


class Profiler:
    """Start it once; `totals` are those of the whole process since then."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._lock = threading.Lock()
        self._seconds: Totals = defaultdict(float)
        self._clocks: dict[int, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="profiler", daemon=True)
        self._begun = 0.0

    def start(self) -> Profiler:
        self._switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._begun = time.process_time()
        self._clocks = {native: clock for _, native, clock in _clocks()}
        self._before = dict(self._clocks)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        sys.setswitchinterval(self._switch_interval)

    def totals(self) -> Totals:
        """What was seen so far; gRPC's own threads have what no other has."""
        with self._lock:
            out = dict(self._seconds)
            python = 0.0
            for ident, native, clock in _clocks():
                python += clock - self._before.get(native, 0.0)
                key = (PROFILER if ident == self._thread.ident else UNSEEN, OUTSIDE)
                out[key] = out.get(key, 0.0) + clock - self._clocks.get(native, 0.0)
            others = time.process_time() - self._begun - python
            out[GRPC, OUTSIDE] = out.get((GRPC, OUTSIDE), 0.0) + others
        return out

    def _run(self) -> None:
        choice = random.Random(0)
        while not self._stopped.wait(choice.uniform(0.5, 1.5) * self._interval):
            with self._lock:
                self._look()

    def _look(self) -> None:
        clocks = list(_clocks())
        frames = sys._current_frames()
        for ident, native, clock in clocks:
            frame, before = frames.get(ident), self._clocks.get(native, 0.0)
            if frame is None or clock == before or ident == self._thread.ident:
                continue
            stack = list(_places(frame))
            if (stack[0].module, stack[0].function) in _WAITS and not _ran(native, clock):
                continue
            self._clocks[native] = clock
            self._seconds[kind_of(stack), protocol_of(stack)] += clock - before


@contextmanager
def profiled(wanted: bool = True) -> Iterator[Profiler | None]:
    """A profiler for the block, if it is wanted."""
    if not wanted:
        yield None
        return
    profiler = Profiler().start()
    try:
        yield profiler
    finally:
        profiler.stop()


def _clocks() -> Iterator[tuple[int, int, float]]:
    """(Python's number, the system's number, CPU seconds) of every Python thread."""
    for thread in threading.enumerate():
        ident, native = thread.ident, thread.native_id
        if ident is not None and native is not None:
            with contextlib.suppress(OSError):  # it has ended
                yield ident, native, time.clock_gettime(_clock_of(native))


def _clock_of(native: int) -> int:
    """Linux's CPU clock of a thread, by its number (man clock_getcpuclockid); asking for one that ended is an error,
    where time.pthread_getcpuclockid may crash."""
    return (~native << 3) | 6


def _ran(native: int, clock: float) -> bool:
    """Since its clock was read, a moment ago."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(_clock_of(native)) > clock
    return False


def _places(frame: FrameType | None) -> Iterator[Place]:
    """From the innermost outwards."""
    while frame is not None:
        module, function = str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
        drawn = frame.f_locals.get("correlation") if (module, function) in _DRAWING else None
        yield Place(module, function, drawn)
        frame = frame.f_back
