"""The decode steps among the records that figures are about."""

from __future__ import annotations

from collections.abc import Sequence

from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.selection import is_block, is_whole_model

SHAPE = "gpt2"
"""The shape that others' systems, and quality, are set beside."""


def decoded(records: Sequence[Record], backend: str = "mpc", shape: str = SHAPE) -> list[Record]:
    """Decode steps of one block on loopback, without embedding and head."""
    return [r for r in steps_of(records, shape) if r["backend"] == backend and is_block(r)]


def steps_of(records: Sequence[Record], shape: str) -> list[Record]:
    return [r for r in records if r["bench"] == "decode" and r["settings"]["shape"] == shape]


def whole_models(records: Sequence[Record]) -> list[Record]:
    """Decode steps of a whole model on loopback, from the token to the next one."""
    return [r for r in steps_of(records, SHAPE) if r["backend"] == "mpc" and is_whole_model(r)]


def by_policy(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Each policy's in the order of cached tokens."""
    out: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r["tokens"]):
        out.setdefault(record["policy"], []).append(record)
    return out


def total_bytes(record: Record) -> int:
    """Online, and correlations of both parties."""
    return int(record["online_bytes"] + record["correlation_bytes"])
