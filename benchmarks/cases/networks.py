"""Decode steps on slower networks, and whether what they take is what a model of three terms says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpcache.benchmarks.cases.decode import Workload, decode_cases
from mpcache.benchmarks.measure.processes import ProcessPool
from mpcache.benchmarks.measure.runner import Case
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.selection import done
from mpcache.benchmarks.records.tables import Rows, megabytes, seconds
from mpcache.generation.network import LOOPBACK, Network
from mpcache.policies import LabelledPolicy


def network_cases(
    workload: Workload,
    networks: Sequence[Network],
    tokens: Sequence[int],
    policies: Sequence[LabelledPolicy],
    repeat: int,
    pool: ProcessPool,
) -> list[Case]:
    """Loopback is the real one; others are delayed in both parties (see delay.py), unless the workload has a namespace,
    the link to which is the one network there is. The dealer's link is not delayed."""
    cases = []
    for network in networks:
        delayed = replace(workload, network=None if network == LOOPBACK else network)
        cases += decode_cases(delayed, tokens, policies, ("mpc",), repeat, pool, "network")
    return cases


def model_seconds(record: Record, on: Network | None = None) -> dict[str, float]:
    """What a step should take: for each round half a round trip (both parties send at the same time) and what gRPC
    takes for a message, online bytes / bandwidth, and CPU: the busier party's, as the two work side by side.

    on: another network than that on which the record was measured; what decides the seconds there is the same.
    """
    network = on or network_of(record)
    cpu = record["cpu_seconds_by_process"]
    return {
        "latency": record["rounds"] * (network.round_trip / 2 + MESSAGE_SECONDS),
        "bytes": record["online_bytes"] / network.bandwidth,
        "CPU": max(cpu["owner"], cpu["client"]),
    }


def network_of(record: Record) -> Network:
    raw = record["settings"]["network"]
    return Network(**raw) if raw else LOOPBACK


def network_name(record: Record) -> str:
    """And whether the link was a real one, to a namespace, or loopback with messages held back."""
    return network_of(record).name + (" (real link)" if is_real(record) else "")


def is_real(record: Record) -> bool:
    return bool(record["settings"].get("namespace"))


MESSAGE_SECONDS = 0.26e-3
"""A small message each way over gRPC with mutual TLS between idle processes of one machine: measured."""


def bound_seconds(record: Record) -> float:
    """rounds x round-trip time + online bytes / bandwidth + CPU: as if no two messages were under way at a time."""
    terms, raw = model_seconds(record), record["settings"]["network"]
    waiting: float = record["rounds"] * (raw["round_trip"] if raw else MESSAGE_SECONDS)
    return waiting + terms["bytes"] + terms["CPU"]


HEADER = (
    "policy",
    "tokens",
    "network",
    "measured s",
    "rounds x RTT + bytes + CPU",
    "ratio",
    "model s",
    "ratio",
    "latency s",
    "bytes s",
    "CPU s",
    "rounds",
    "online MB",
)


def network_rows(records: Sequence[Record]) -> Rows:
    out = []
    for r in done(records):
        terms = model_seconds(r)
        model = sum(terms.values())
        out.append(
            [
                r["policy"],
                f"{r['tokens']:,}",
                network_name(r),
                seconds(r["seconds"]),
                seconds(bound_seconds(r)),
                f"{r['seconds'] / bound_seconds(r):.2f}",
                seconds(model),
                f"{r['seconds'] / model:.2f}",
                *(seconds(value) for value in terms.values()),
                str(r["rounds"]),
                megabytes(r["online_bytes"]),
            ]
        )
    return out
