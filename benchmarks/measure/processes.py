"""Run a benchmark's program over three real processes, and gather what each part of it took.

Owner and dealer are processes of their own, the client is this one; links, sessions and the dealer's stream are those
of a generation, gRPC with mutual TLS on loopback.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mpcache.benchmarks.measure.profiler import Profiler, profiled
from mpcache.benchmarks.measure.roles import UNLIMITED, Setup
from mpcache.benchmarks.measure.usage import (
    ROLES,
    Used,
    forget_peak,
    peak_memory,
    read_notes,
    seconds_between,
    used_between,
    used_so_far,
)
from mpcache.generation.request import ClientRequest, GenerationRequest
from mpcache.parties.client import Connection, Generation
from mpcache.parties.launcher import launched
from mpcache.policies import PolicySettings
from mpcache.protocols.session import Cost, Part


@dataclass(frozen=True)
class Span:
    """What the program took from one of its values to the next. Cost and parts are the client's.

    cpu_seconds: by process. The dealer's is what it took to make this span's corrections, ahead of the parties;
    waited_seconds is how long the client stood still for them. used: as cpu_seconds, in more detail.
    """

    seconds: float
    cost: Cost
    parts: dict[str, Part]
    waited_seconds: float
    cpu_seconds: dict[str, float | None] = field(default_factory=dict)
    used: dict[str, Used | None] = field(default_factory=dict)

    @property
    def all_cpu_seconds(self) -> float:
        return sum(seconds or 0.0 for seconds in self.cpu_seconds.values())


@dataclass(frozen=True)
class Run:
    """A program's spans in order, and each process's peak memory in bytes."""

    spans: list[Span]
    peak_bytes: dict[str, int | None]
    setup_bytes: int


@dataclass(frozen=True)
class Processes:
    """The other two processes, as long as `local_processes` lasts."""

    setup: Setup
    connection: Connection
    logs: dict[str, Path]

    def run(self, prompt: list[int], steps: int, policy: PolicySettings, backend: str = "mpc") -> Run:
        """One session. Raises MpcacheError if a process fails."""
        public = GenerationRequest(prompt_tokens=len(prompt), max_new_tokens=steps, policy=policy, backend=backend)
        request = ClientRequest(prompt=prompt, public=public)
        spans: list[Span] = []

        def noted(*arguments: Any) -> Iterator[Any]:
            """The program in its own thread, which does not wait for this one; while planning, there is no session."""
            before = None if generation.session is None else _Snapshot(generation, profiler)
            for value in self.setup.program(*arguments):
                if before is not None:
                    spans.append(_Snapshot(generation, profiler).since(before))
                    before = _Snapshot(generation, profiler)
                yield value

        generation = Generation(self.connection, request, program=noted, transport=self.setup.transport)
        for log in self.logs.values():
            log.unlink(missing_ok=True)
        forget_peak()
        with profiled(self.setup.profile) as profiler:
            for _ in generation:
                pass
        notes = {role: read_notes(log) for role, log in self.logs.items()}
        cpu = [{role: seconds_between(notes[role], i) for role in ROLES} for i in range(len(spans))]
        used = [{role: used_between(notes[role], i) for role in ROLES} for i in range(len(spans))]
        spans = [
            replace(span, cpu_seconds={**span.cpu_seconds, **seconds}, used={**span.used, **more})
            for span, seconds, more in zip(spans, cpu, used, strict=True)
        ]
        peaks = {role: notes[role][-1]["peak_bytes"] if notes[role] else None for role in ROLES}
        return Run(spans, {**peaks, "client": peak_memory()}, generation.setup_bytes)


class _Snapshot:
    """Where a session stands."""

    def __init__(self, generation: Generation, profiler: Profiler | None) -> None:
        session = generation.session
        assert session is not None
        self.seconds, self.cpu_seconds = time.perf_counter(), time.process_time()
        self.cost, self.parts = session.cost.copy(), copy.deepcopy(session.parts)
        self.waited, self.used = generation.waited_for_dealer, used_so_far(profiler)

    def since(self, before: _Snapshot) -> Span:
        parts = {}
        for name, part in self.parts.items():
            old = before.parts.get(name, Part())
            parts[name] = Part(part.cost - old.cost, part.seconds - old.seconds, part.cpu_seconds - old.cpu_seconds)
        return Span(
            self.seconds - before.seconds,
            self.cost - before.cost,
            {name: part for name, part in parts.items() if part.seconds},
            self.waited - before.waited,
            {"client": self.cpu_seconds - before.cpu_seconds},
            {"client": self.used - before.used},
        )


@contextmanager
def local_processes(setup: Setup) -> Iterator[Processes]:
    """Dealer and owner, here or in the setup's namespace, with certificates of their own; ended with the block."""
    with tempfile.TemporaryDirectory(prefix="mpcache-bench-") as name:
        folder = Path(name)
        logs = {role: folder / f"{role}.jsonl" for role in ROLES}

        def write(role: str, values: dict[str, object]) -> Path:
            path = folder / f"{role}.json"
            path.write_text(json.dumps({"setup": setup.to_dict(), "log": logs[role], **values}, default=str))
            return path

        with launched(folder, write, _MODULE, setup.namespace.prefix if setup.namespace else ()) as parties:
            patient = replace(parties.connection, timeout=setup.timeout_seconds)
            yield Processes(setup, replace(patient, max_model_gib=UNLIMITED, max_step_gib=UNLIMITED), logs)


_MODULE = "mpcache.benchmarks.measure.roles"


class ProcessPool:
    """The processes of the setup used last; others are started when another setup, or a failure, asks for them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._setup: Setup | None = None
        self._processes: Processes | None = None

    @contextmanager
    def processes(self, setup: Setup) -> Iterator[Processes]:
        if self._processes is None or self._setup != setup:
            self.close()
            self._processes = self._stack.enter_context(local_processes(setup))
            self._setup = setup
        try:
            yield self._processes
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stack.close()
        self._processes = None
