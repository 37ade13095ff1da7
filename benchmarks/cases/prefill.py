"""What a prefill costs, by prompt tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from mpcache.benchmarks.cases.decode import CONTAINS as STEP
from mpcache.benchmarks.cases.decode import Workload, costs
from mpcache.benchmarks.measure.model import checkpoint
from mpcache.benchmarks.measure.plaintext import run_in_plaintext
from mpcache.benchmarks.measure.processes import ProcessPool, Span
from mpcache.benchmarks.measure.roles import Setup
from mpcache.benchmarks.measure.runner import Case
from mpcache.benchmarks.records.record import Record, cost_figures
from mpcache.benchmarks.records.selection import done
from mpcache.benchmarks.records.tables import PEAKS, Rows, cost_cells, peak_cells, seconds
from mpcache.policies import LabelledPolicy
from mpcache.protocols.session import Cost, Part

CONTAINS = {
    **{key: STEP[key] for key in ("online_bytes", "correlation_bytes", "rounds", "parts", "embedding", "head")},
    "seconds": "wall time of the whole prompt at the client, static eviction included; of several, the middle one",
    "cpu_seconds": "CPU time of the same, all three processes together",
    "peak_memory_bytes": "the most that each process had in memory, interpreter and libraries included",
}


def prefill_cases(
    workload: Workload,
    tokens: Sequence[int],
    policies: Sequence[LabelledPolicy],
    backends: Sequence[str],
    pool: ProcessPool,
    repeat: int = 1,
) -> list[Case]:
    def case(count: int, policy: LabelledPolicy, backend: str) -> Case:
        settings = {
            "bench": "prefill",
            **workload.settings(count),
            "policy": asdict(policy.settings),
            "label": policy.label,
            "backend": backend,
            "repeat": repeat,
        }
        setup = workload.setup(count)
        name = f"prefill {policy.label} {count} tokens {backend}"
        return Case(name, settings, lambda: _measure(setup, count, policy, backend, pool, repeat))

    return [case(n, c, b) for n in tokens for b in backends for c in policies]


def _measure(setup: Setup, tokens: int, policy: LabelledPolicy, backend: str, pool: ProcessPool, repeat: int) -> Record:
    """The prefill of median seconds, and how long each took."""
    runs = [_once(setup, tokens, policy, backend, pool) for _ in range(repeat)]
    middle = sorted(runs, key=lambda run: run["seconds"])[repeat // 2]
    return {**middle, "all_seconds": [run["seconds"] for run in runs]} if repeat > 1 else middle


def _once(setup: Setup, tokens: int, policy: LabelledPolicy, backend: str, pool: ProcessPool) -> Record:
    figures = {"policy": policy.label, "tokens": tokens, "backend": backend, "contains": CONTAINS}
    if backend == "plain":
        with torch.no_grad():
            model = checkpoint(setup.config, setup.model)
            blocks = run_in_plaintext(setup.program, model, tokens, 1, policy.settings)
        wall, cpu = sum(b.seconds for b in blocks), sum(b.cpu_seconds for b in blocks)
        none = {**cost_figures(Cost()), "parts": {}}
        return {**figures, "seconds": wall, "cpu_seconds": cpu, **none}
    with pool.processes(setup) as processes:
        run = processes.run([0] * tokens, 1, policy.settings, backend)
    whole = total(run.spans)
    return {
        **figures,
        **costs(whole),
        "cpu_seconds_by_process": whole.cpu_seconds,
        "dealer": {"waited_seconds": whole.waited_seconds},
        "peak_memory_bytes": run.peak_bytes,
        "setup_bytes": run.setup_bytes,
    }


def total(spans: Sequence[Span]) -> Span:
    """All of them as one."""
    first, *others = spans
    parts = dict(first.parts)
    for other in others:
        for name, part in other.parts.items():
            old = parts.get(name, Part())
            parts[name] = Part(old.cost + part.cost, old.seconds + part.seconds, old.cpu_seconds + part.cpu_seconds)
    return Span(
        sum(s.seconds for s in spans),
        sum((s.cost for s in others), first.cost),
        parts,
        sum(s.waited_seconds for s in spans),
        {role: sum(s.cpu_seconds[role] or 0.0 for s in spans) for role in first.cpu_seconds},
    )


HEADER = (
    "policy",
    "tokens",
    "backend",
    "s",
    "CPU s",
    "online MB",
    "corr. MB",
    "rounds",
    *PEAKS,
    "waited s",
)


def prefill_rows(records: Sequence[Record]) -> Rows:
    out = []
    for r in done(records):
        waited = r.get("dealer", {}).get("waited_seconds", 0.0)
        out.append([*cost_cells(r), *peak_cells(r.get("peak_memory_bytes", {})), seconds(waited)])
    return out
