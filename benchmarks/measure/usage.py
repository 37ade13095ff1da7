"""What a process used so far, written down as its program goes, for the benchmark to read afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mpcache.benchmarks.measure.profiler import Profiler
from mpcache.generation.loop import Program

ROLES = ("owner", "dealer")
"""Who runs as a process of its own; the client is the benchmark."""
BEGIN = -1
"""The mark of a program's beginning; each value that it yields has its number."""


@dataclass(frozen=True)
class Used:
    """What a process used. faults: pages that the system had to give it. kinds: CPU seconds by kind of work and
    protocol, with a profiler."""

    user_seconds: float
    system_seconds: float
    faults: int
    kinds: dict[str, dict[str, float]] = field(default_factory=dict)

    def __sub__(self, earlier: Used) -> Used:
        return Used(
            self.user_seconds - earlier.user_seconds,
            self.system_seconds - earlier.system_seconds,
            self.faults - earlier.faults,
            {
                kind: {name: seconds - earlier.kinds.get(kind, {}).get(name, 0.0) for name, seconds in by.items()}
                for kind, by in self.kinds.items()
            },
        )


def used_so_far(profiler: Profiler | None = None) -> Used:
    """By this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    kinds: dict[str, dict[str, float]] = {}
    if profiler is not None:
        for (kind, protocol), seconds in profiler.totals().items():
            kinds.setdefault(kind, {})[protocol] = seconds
    return Used(usage.ru_utime, usage.ru_stime, usage.ru_minflt, kinds)


def peak_memory() -> int | None:
    """Bytes that this process had in memory at most since `forget_peak`; None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def peak_memory_of_roles() -> dict[str, int]:
    """The same of this process's children that run a role's command, by role; empty where the system does not say."""
    peaks: dict[str, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, KeyError):  # one that ended meanwhile, or a thread of the kernel's
            lines = (line.partition(":") for line in (process / "status").read_text().splitlines())
            status = {name: value.split() for name, _, value in lines}
            words = (process / "cmdline").read_text().split("\0")
            role = next((role for role in ROLES if role in words), None)
            if role is not None and int(status["PPid"][0]) == os.getpid():
                peaks[role] = int(status["VmHWM"][0]) * 1024
    return peaks


def forget_peak() -> None:
    """Let the next peak count from now on, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def watched(program: Program, log: Path, profiler: Profiler | None = None) -> Program:
    """The program, noting in `log` what the process used, and its peak memory, after each of its values."""

    def run(*arguments: Any) -> Iterator[int | None]:
        forget_peak()
        _note(log, BEGIN, profiler)
        for i, value in enumerate(program(*arguments)):
            yield value
            _note(log, i, profiler)  # in the dealer's process, whose corrections are made between the plan's parts

    return run


def _note(log: Path, mark: int, profiler: Profiler | None) -> None:
    line = {
        "mark": mark,
        "cpu_seconds": time.process_time(),
        "used": asdict(used_so_far(profiler)),
        "peak_bytes": peak_memory(),
    }
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_notes(log: Path) -> list[dict[str, Any]]:
    """The notes of the last program that the process ran, its beginning first; empty if it ran none."""
    if not log.exists():
        return []
    notes = [json.loads(line) for line in log.read_text().splitlines()]
    begins = [i for i, note in enumerate(notes) if note["mark"] == BEGIN]
    return notes[begins[-1] :] if begins else []


def seconds_between(notes: list[dict[str, Any]], mark: int) -> float | None:
    """CPU seconds from the note before `mark` to it; None if it was not noted."""
    at = {note["mark"]: note["cpu_seconds"] for note in notes}
    return at[mark] - at[mark - 1] if mark in at and mark - 1 in at else None


def used_between(notes: list[dict[str, Any]], mark: int) -> Used | None:
    """From the note before `mark` to it; None if it was not noted."""
    at = {note["mark"]: Used(**note["used"]) for note in notes if note["mark"] in (mark - 1, mark)}
    return at[mark] - at[mark - 1] if len(at) == 2 else None
