"""Print records of any part of the suite."""

from __future__ import annotations

from collections.abc import Sequence

from mpcache.benchmarks.cases import agreement, drafts, generation, networks, ops, prefill, profile
from mpcache.benchmarks.cases.quality import quality_tables
from mpcache.benchmarks.records import tables
from mpcache.benchmarks.records.ranges import all_ranges
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.selection import done
from mpcache.parties.command.report import show_ranges


def show_records(records: Sequence[Record]) -> None:
    """A table, or several, for each part that there are records of; and how near plaintext twins came to the bounds."""
    shown = {"ops": _ops, "decode": _decode, "prefill": _prefill, "network": _network, "quality": _quality}
    shown |= {"agreement": _agreement, "generate": _generate, "profile": _profile, "drafts": _drafts}
    for bench, show in shown.items():
        chosen = [r for r in records if r["bench"] == bench]
        if chosen:
            show(chosen)
    show_ranges(all_ranges(records))


def _ops(records: list[Record]) -> None:
    tables.show("Protocols alone: medians", ops.HEADER, ops.operation_rows(records), "both parties and the dealer")


def _decode(records: list[Record]) -> None:
    tables.show(
        "A decode step: medians",
        tables.COSTS,
        tables.cost_rows(records),
        "online: both directions; corr.: correlations, both parties; CPU: all three processes",
    )
    tables.show(
        "By part (eviction: once, before the steps)",
        ("policy", "tokens", "", *tables.PARTS, "eviction"),
        tables.part_rows(records),
    )
    tables.show(
        "By process: CPU seconds a step, peak MiB, and how long a step waited for the dealer",
        (
            "policy",
            "tokens",
            "backend",
            *(f"{role} CPU s" for role in tables.PROCESSES),
            *tables.PEAKS,
            "waited s",
        ),
        tables.process_rows(records),
    )


def _prefill(records: list[Record]) -> None:
    tables.show("Prefill of the whole prompt", prefill.HEADER, prefill.prefill_rows(records))


def _profile(records: list[Record]) -> None:
    title = "CPU seconds and page faults of a decode step (mean) and of a prefill, by process"
    tables.show(title, profile.USAGE, profile.usage_rows(records))
    for record in done(records):
        what = f"{record['kind']} {record['policy']}, {record['tokens']:,} tokens"
        for by, note in (("kinds", profile.kinds_explained()), ("parts", "")):
            tables.show(f"CPU seconds by {by}: {what}", profile.SPENT, profile.spent_rows(record, by), note)


def _network(records: list[Record]) -> None:
    tables.show(
        "A decode step on slower networks: medians",
        networks.HEADER,
        networks.network_rows(records),
        "model: rounds x (RTT / 2 + 0.26 ms) + online bytes / bandwidth + CPU of the busier party; both send at once; "
        "messages are held back by the parties, except on a real link",
    )


def _generate(records: list[Record]) -> None:
    tables.show(
        "A whole generation: prefill with the first token, then the median token",
        generation.HEADER,
        generation.generation_rows(records),
        "online: both directions; corr.: correlations, both parties; MiB: each process's peak",
    )


def _drafts(records: list[Record]) -> None:
    tables.show(
        "Tokens a pass with drafts, in plaintext",
        drafts.header(records),
        drafts.draft_rows(records),
        f"seconds: planned for {', '.join({r['settings']['shape'] for r in records})}, first token left out",
    )


def _agreement(records: list[Record]) -> None:
    tables.show("Plaintext and mpc, case by case", agreement.HEADER, agreement.agreement_rows(records))


def _quality(records: list[Record]) -> None:
    for title, header, rows in quality_tables(records):
        tables.show(title, header, rows)
