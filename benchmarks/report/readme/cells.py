"""What the README's tables have in common: the names of policies, and how a cell and the text below are written."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.tables import PROCESSES

WIDTH = 120
POLICIES = {"full": "full cache", "mpcache": "mpcache"}
COSTS = ("seconds", "online", "correlations", "rounds")


def prose(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def all_tokens(records: Sequence[Record]) -> str:
    return ",".join(str(tokens) for tokens in sorted({r["tokens"] for r in records}))


def all_policies(records: Sequence[Record]) -> str:
    return ",".join(dict.fromkeys(r["policy"] for r in records))


def costs(record: Record) -> list[str]:
    """Seconds, online and correlation bytes, and rounds, or messages where a system counts no rounds."""
    correlations = record["correlation_bytes"]
    return [
        seconds(record["seconds"]),
        data_size(record["online_bytes"]),
        "" if correlations is None else data_size(correlations),
        f"{record['messages_per_party']:,} messages" if record["rounds"] is None else f"{record['rounds']:,}",
    ]


def seconds(value: float) -> str:
    return f"{value:.{0 if value >= 10 else 1 if value >= 1 else 2 if value >= 0.1 else 3}f}"


def data_size(count: float) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    megabytes = count / 1e6
    return f"{megabytes:.{0 if megabytes >= 100 else 1 if megabytes >= 10 else 2}f} MB"


def peak_memory(record: Record) -> str:
    peaks = record["peak_memory_bytes"]
    return ", ".join(f"{role} {peaks[role] / 2**30:.1f} GiB" for role in PROCESSES if peaks.get(role))
