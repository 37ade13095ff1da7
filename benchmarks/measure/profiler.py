"""A profiler within the process: what kind of work its CPU seconds went to, and for which part of the computation.

While it is on, the functions of `kinds.all_work` are replaced by ones that read the thread's CPU clock when they begin
and when they end. What a thread spends goes to the innermost of these that it is in, and to the innermost part. What no
such thread spends, the threads that carry messages do.

Why not one that looks at stacks: a thread that looks gets its turn when another one lets Python go, which is at some
places more than at others; here that showed waits where work was. py-spy and austin look from outside, and need the
right to trace other processes. yappi and cProfile hook every call, which makes small ones look dear.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mpcache.benchmarks.measure.kinds import GRPC, OUTSIDE, Work, all_work

Totals = dict[tuple[str, str], float]
"""CPU seconds by kind and part. All together are the process's."""


class Profiler:
    """Start it once; `totals` are those of the whole process since then."""

    def __init__(self) -> None:
        self._threads: list[_Thread] = []
        self._local = threading.local()
        self._replaced: list[tuple[Any, str, Any]] = []
        self._begun = 0.0

    def start(self) -> Profiler:
        for work in (work for work in all_work() if work.module in sys.modules):
            owner: Any = sys.modules[work.module]
            *classes, name = work.function.split(".")
            for part in classes:
                owner = getattr(owner, part)
            original = vars(owner)[name]
            replacement = self._measured(original, work)
            self._replace(owner, name, replacement)
            if not classes:  # it may have been imported by name
                for module in [m for n, m in list(sys.modules.items()) if n.partition(".")[0] == "mpcache"]:
                    for alias in [key for key, value in list(vars(module).items()) if value is original]:
                        self._replace(module, alias, replacement)
        self._begun = time.process_time()
        return self

    def stop(self) -> None:
        for owner, name, original in reversed(self._replaced):
            setattr(owner, name, original)

    def totals(self) -> Totals:
        """What was spent so far. What no measured thread has, the threads that carry messages have."""
        out: Totals = defaultdict(float)
        for thread in list(self._threads):
            for key, seconds in list(thread.seconds.items()):
                out[key] += seconds
        out[GRPC, OUTSIDE] += time.process_time() - self._begun - sum(out.values())
        return out

    def _replace(self, owner: Any, name: str, replacement: Any) -> None:
        self._replaced.append((owner, name, vars(owner)[name]))
        setattr(owner, name, replacement)

    def _measured(self, original: Any, work: Work) -> Callable[..., Any]:
        @functools.wraps(original)
        def measured(*arguments: Any, **named: Any) -> Any:
            thread = self._thread()
            kind = work.kind if isinstance(work.kind, str) else work.kind(arguments)
            thread.enter(kind, work.part(arguments, named) if work.part else None)
            try:
                return original(*arguments, **named)
            finally:
                thread.leave()

        return measured

    def _thread(self) -> _Thread:
        thread: _Thread | None = getattr(self._local, "thread", None)
        if thread is None:
            thread = self._local.thread = _Thread()
            self._threads.append(thread)
        return thread


class _Thread:
    """Of one thread: what it is in, innermost last, and what it spent so far. Time outside of all is not counted."""

    def __init__(self) -> None:
        self.seconds: Totals = defaultdict(float)
        self._inside: list[tuple[str, str]] = []
        self._since = 0.0

    def enter(self, kind: str, part: str | None) -> None:
        self._count()
        self._inside.append((kind, part or (self._inside[-1][1] if self._inside else OUTSIDE)))

    def leave(self) -> None:
        self._count()
        self._inside.pop()

    def _count(self) -> None:
        now = time.thread_time()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now


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
