"""What the CPU seconds of owner, client and dealer go to, in a decode step and in a prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from mpcache.benchmarks.cases.ablations import compared_policies
from mpcache.benchmarks.cases.decode import WARM_UP, Workload
from mpcache.benchmarks.cases.prefill import total
from mpcache.benchmarks.measure.kinds import KINDS
from mpcache.benchmarks.measure.processes import ProcessPool, Run, Span
from mpcache.benchmarks.measure.program import Program
from mpcache.benchmarks.measure.runner import Case
from mpcache.benchmarks.measure.usage import Used
from mpcache.benchmarks.records.record import Record, cost_figures
from mpcache.benchmarks.records.selection import done
from mpcache.benchmarks.records.tables import PROCESSES, Rows, mebibytes, seconds
from mpcache.policies import LabelledPolicy
from mpcache.protocols.session import Cost

CONTAINS = {
    "seconds": "wall time at the client; of a decode step the mean, of a prefill the whole",
    "user_seconds": "CPU time of a process outside of the system",
    "system_seconds": "CPU time of a process within the system",
    "faults": "pages that a process was given by the system",
    "dealer": "its steps end where they are planned: what it deals after the last was planned is not counted",
    "kinds": "CPU seconds of both by kind of work; the sum is the process's",
    "parts": "the same by part of a step, and at the dealer by the protocol that it deals for",
}


@dataclass(frozen=True)
class Profiled:
    """A workload to look at. kind: 'decode', a step, or 'prefill', a prompt."""

    kind: str
    layers: int
    tokens: int
    policy: str


PROFILED = (
    Profiled("decode", 1, 1024, "full"),
    Profiled("decode", 1, 2048, "mpcache"),
    Profiled("prefill", 2, 512, "full"),
)


def profile_cases(shape: str, profiled: Sequence[Profiled], repeat: int, pool: ProcessPool) -> list[Case]:
    def case(what: Profiled) -> Case:
        workload = Workload(shape, what.layers, Program(what.kind))
        (policy,) = compared_policies(what.policy)
        settings = {
            "bench": "profile",
            **workload.settings(what.tokens),
            "policy": asdict(policy.settings),
            "label": policy.label,
            "repeat": repeat,
        }
        name = f"profile {what.kind} {policy.label} {what.tokens} tokens"
        return Case(name, settings, lambda: _measure(workload, what, policy, repeat, pool))

    return [case(what) for what in profiled]


def _measure(workload: Workload, what: Profiled, policy: LabelledPolicy, repeat: int, pool: ProcessPool) -> Record:
    decode = what.kind == "decode"
    setup = replace(workload.setup(what.tokens), profile=True)
    with pool.processes(setup) as processes:
        run = processes.run([0] * what.tokens, WARM_UP + repeat if decode else 1, policy.settings)
    spans = run.spans[2 + WARM_UP :] if decode else run.spans  # the cache's filling and its eviction come first
    return {"kind": what.kind, "policy": policy.label, "tokens": what.tokens, **_figures(run, spans, decode)}


def _figures(run: Run, spans: Sequence[Span], decode: bool) -> Record:
    whole = total(spans)
    count = len(spans) if decode else 1
    cost = Cost(*(value // count for value in asdict(whole.cost).values()))
    return {
        "seconds": whole.seconds / count,
        **cost_figures(cost),
        "processes": {role: _of_process([span.used[role] for span in spans], count) for role in PROCESSES},
        "peak_memory_bytes": run.peak_bytes,
        "contains": CONTAINS,
    }


def _of_process(used: Sequence[Used | None], count: int) -> Record:
    kinds: dict[str, float] = {}
    parts: dict[str, float] = {}
    noted = [span for span in used if span is not None]
    for span in noted:
        for kind, by_part in span.kinds.items():
            for part, spent in by_part.items():
                kinds[kind] = kinds.get(kind, 0.0) + spent / count
                parts[part] = parts.get(part, 0.0) + spent / count
    return {
        "user_seconds": sum(span.user_seconds for span in noted) / count,
        "system_seconds": sum(span.system_seconds for span in noted) / count,
        "faults": sum(span.faults for span in noted) / count,
        "kinds": kinds,
        "parts": parts,
    }


USAGE = ("", "policy", "tokens", "s", "process", "user s", "system s", "page faults", "peak MiB")


def usage_rows(records: Sequence[Record]) -> Rows:
    rows = []
    for r in done(records):
        for role in PROCESSES:
            used, peak = r["processes"][role], r["peak_memory_bytes"][role]
            first = role == PROCESSES[0]
            what = [r["kind"], r["policy"], f"{r['tokens']:,}", seconds(r["seconds"])] if first else [""] * 4
            cells = [_short(used["user_seconds"]), _short(used["system_seconds"])]
            rows.append([*what, role, *cells, f"{used['faults']:,.0f}", mebibytes(peak)])
    return rows


def _short(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.2f}"


SPENT = ("", *(f"{role} {unit}" for role in PROCESSES for unit in ("s", "%")))


def spent_rows(record: Record, by: str) -> Rows:
    """CPU seconds and their share of a process's, the most first. by: 'kinds' or 'parts'."""
    spent = {role: record["processes"][role][by] for role in PROCESSES}
    whole = {role: sum(spent[role].values()) for role in PROCESSES}
    names = sorted(
        {name for role in PROCESSES for name in spent[role]},
        key=lambda name: -sum(spent[role].get(name, 0.0) for role in PROCESSES),
    )
    return [
        [name, *(cell for role in PROCESSES for cell in _share(spent[role].get(name, 0.0), whole[role]))]
        for name in names
    ]


def _share(value: float, whole: float) -> tuple[str, str]:
    return (_short(value), f"{100 * value / whole:.0f}") if value > 0 and whole else ("", "")


def kinds_explained() -> str:
    return "; ".join(f"{kind}: {what}" for kind, what in KINDS.items())
