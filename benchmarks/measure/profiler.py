"""A profiler within the process: whose work its CPU seconds were.

A thread looks at all other threads every ten milliseconds. What CPU time a thread had since it was last seen at work
goes to the stack that it is at work on now: over many looks, every stack gets its part. A session's thread that waits
is left alone, so what waiting itself costs it shows as its work. Threads without a Python frame are gRPC's own: what
they had is the process's time less everybody else's.

Why not a package: py-spy and austin look from outside, need the right to trace other processes, and count looks, not
CPU time; yappi and cProfile hook every call, which makes small calls look dear.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain, repeat
from types import FrameType
from typing import Any

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
    ("mpcache.parties.link", "next_frame"),
    ("mpcache.parties.dealer_link", "_wait_for_chunk"),
    ("queue", "get"),
}
"""Functions whose innermost line waits."""
_COMPUTING = {("mpcache.protocols.session", "_round"), ("mpcache.parties.dealer", "_make")}
"""Somewhere on the stack of a thread that computes when it does not wait. Other threads that wait carry messages."""
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
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        sys.setswitchinterval(self._switch_interval)

    def totals(self) -> Totals:
        """What was seen so far. What no thread of Python's has is gRPC's."""
        with self._lock:
            out: Totals = defaultdict(float, self._seconds)
            for ident, native, clock in _clocks():
                kind = PROFILER if ident == self._thread.ident else UNSEEN
                out[kind, OUTSIDE] += clock - self._clocks.get(native, 0.0)
            out[GRPC, OUTSIDE] += time.process_time() - self._begun - sum(out.values())
        return out

    def _run(self) -> None:
        choice = random.Random(0)
        while not self._stopped.wait(choice.uniform(0.5, 1.5) * self._interval):
            with self._lock:
                self._look()

    def _look(self) -> None:
        worked = [
            (ident, native, clock)
            for ident, native, clock in _clocks()
            if clock != self._clocks.get(native, 0.0) and ident != self._thread.ident
        ]
        current = sys._current_frames()
        stacks = {ident: _stack(current[ident]) for ident, _, _ in worked if ident in current}
        for ident, native, clock in worked:
            if ident not in stacks:  # it ended
                continue
            stack = [_place(frame) for frame in stacks[ident]]
            if _waits(stack):
                continue
            self._seconds[kind_of(stack), protocol_of(stack)] += clock - self._clocks.get(native, 0.0)
            self._clocks[native] = clock


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


def _waits(stack: Sequence[Place]) -> bool:
    """A thread that computes otherwise. It lets Python go when it begins to wait, which is when the profiler gets its
    turn: to count that as work would count all of its work there."""
    at = [(place.module, place.function) for place in stack]
    return at[0] in _WAITS and not _COMPUTING.isdisjoint(at)


def _stack(frame: FrameType) -> list[FrameType]:
    """The frame and those that called it. In one call into C, so that no thread runs meanwhile: CPython (3.11) follows
    pointers of frames that are gone otherwise."""
    frames: deque[Any] = deque()
    outwards: Iterator[Any] = accumulate(chain([frame], repeat("f_back")), getattr)  # type: ignore[arg-type]
    with contextlib.suppress(AttributeError):  # None has no f_back
        frames.extend(outwards)
    return list(frames)[:-1]


def _place(frame: FrameType) -> Place:
    module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
    return Place(module, function, frame.f_locals.get("correlation") if (module, function) in _DRAWING else None)
