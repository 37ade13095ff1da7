"""Decode steps on slower networks: measured on some, and computed for every policy from what loopback gave."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mpcache.benchmarks.cases.networks import is_real, model_seconds, network_name, network_of
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.tables import Rows, seconds
from mpcache.benchmarks.report.figure import Figure
from mpcache.benchmarks.report.steps import SHAPE, decoded
from mpcache.benchmarks.report.svg import Bar, Legend, Style, keys, stacked_bars
from mpcache.generation.network import NETWORKS, Network

NETWORK_TERMS = {"latency": Style.of(0), "bytes": Style.of(1), "CPU": Style.of(2)}
NETWORK_TOKENS = 1024
MODEL = "rounds x (half a round trip + 0.26 ms) + online bytes / bandwidth + CPU of the busier party"


def measured_networks(records: Sequence[Record], legend: Legend) -> list[Figure]:
    found = [r for r in records if r["bench"] == "network"]
    if not found:
        return []
    bars = [_network_bar(_network_name(r), model_seconds(r), r["seconds"]) for r in found]
    slow = [r for r in found if r["settings"]["network"]]
    worst = max((r["seconds"] / sum(model_seconds(r).values()) for r in slow), default=None)
    title = "On a slow network, rounds decide"
    if worst is not None:
        title += f": measured seconds are at most {worst:.2f} times the model's"
    note = (
        f"A decode step of a GPT-2-shaped block. {_how_slowed(found)} Bars show the model: {MODEL}. Black "
        "marks show what was measured."
    )
    header = ["policy, tokens, network", *(f"{n}, s" for n in NETWORK_TERMS), "measured, s", "rounds"]
    rows = [
        [_network_name(r), *(seconds(v) for v in model_seconds(r).values()), seconds(r["seconds"]), str(r["rounds"])]
        for r in found
    ]
    return [_network_figure(title, note, bars, header, rows)]


def _how_slowed(found: Sequence[Record]) -> str:
    held = "Both parties hold messages back as long as the network would take."
    real = "The messages cross a real link between network namespaces, delayed by the system."
    kinds = {is_real(r) for r in found if r["settings"]["network"] or is_real(r)}
    if kinds == {True, False}:
        return f"{held} Where it says real link, they cross one between network namespaces, delayed by the system."
    return real if kinds == {True} else held


def _network_name(record: Record) -> str:
    settings = record["settings"]
    name = f"{record['policy']}, {record['tokens']:,}, {network_name(record)}"
    if (settings["shape"], settings["layers"]) == (SHAPE, 1):
        return name
    return f"{name}, {Path(settings['shape']).name}, layers: {settings['layers']}"


def _network_bar(name: str, terms: dict[str, float], measured: float | None) -> Bar:
    return Bar(name, [terms[n] for n in NETWORK_TERMS], measured)


def _network_figure(title: str, note: str, bars: Sequence[Bar], header: Sequence[str], rows: Rows) -> Figure:
    styles = list(NETWORK_TERMS.values())
    plot = stacked_bars(bars, styles, "seconds a step", lambda v: f"{v:.3f}")
    return Figure(title, note, plot, header, rows, keys(list(NETWORK_TERMS), styles))


def computed_networks(records: Sequence[Record], legend: Legend) -> list[Figure]:
    """Every policy's step on each slow network, by the model, from what was measured on loopback."""
    found = decoded(records)
    if not found:
        return []
    tokens = _compared_tokens(found)
    at = [r for r in found if r["tokens"] == tokens]
    return [
        _computed(at, network, _measured_on(records, network, tokens))
        for network in NETWORKS.values()
        if network.round_trip
    ]


def _compared_tokens(found: Sequence[Record]) -> int:
    """The length that most policies were measured at; of several, the one nearest to what networks are measured at."""
    count: Counter[int] = Counter(r["tokens"] for r in found)
    return min(count, key=lambda tokens: (-count[tokens], abs(tokens - NETWORK_TOKENS)))


def _measured_on(records: Sequence[Record], network: Network, tokens: int) -> dict[str, float]:
    """Seconds by policy; over a real link, where there is one."""
    found = [r for r in records if r["bench"] == "network" and network_of(r) == network and r["tokens"] == tokens]
    blocks = [r for r in found if (r["settings"]["shape"], r["settings"]["layers"]) == (SHAPE, 1)]
    return {r["policy"]: r["seconds"] for r in sorted(blocks, key=is_real)}


def _computed(at: Sequence[Record], network: Network, measured: dict[str, float]) -> Figure:
    terms = {r["policy"]: model_seconds(r, network) for r in at}
    names = sorted(terms, key=lambda name: sum(terms[name].values()))
    bars = [_network_bar(name, terms[name], measured.get(name)) for name in names]
    note = (
        f"Computed, not measured: a decode step of a GPT-2-shaped block at {at[0]['tokens']:,} cached tokens, from "
        f"rounds, bytes and CPU measured on loopback: {MODEL}. {network.name}: round trip "
        f"{network.round_trip * 1e3:g} ms, {network.bandwidth * 8 / 1e6:,.0f} Mbit/s."
    )
    if measured:
        note += " Black marks show what was measured on this network."
    rounds = {r["policy"]: r["rounds"] for r in at}
    rows = [
        [
            name,
            *(seconds(v) for v in terms[name].values()),
            seconds(sum(terms[name].values())),
            seconds(measured[name]) if name in measured else "",
            str(rounds[name]),
        ]
        for name in names
    ]
    header = ["policy", *(f"{n}, s" for n in NETWORK_TERMS), "computed, s", "measured, s", "rounds"]
    return _network_figure(_computed_title(terms, network), note, bars, header, rows)


def _computed_title(terms: dict[str, dict[str, float]], network: Network) -> str:
    share = statistics.median(t["latency"] / sum(t.values()) for t in terms.values())
    where = network.name.upper()
    title = f"Computed: a step on a {where} spends {share:.0%} of its time waiting for rounds (the median policy)"
    if {"full", "mpcache"} <= terms.keys():
        own, full = (sum(terms[name].values()) for name in ("mpcache", "full"))
        title += f"; mpcache takes {own / full:.2f} of the full cache's seconds"
    return title
