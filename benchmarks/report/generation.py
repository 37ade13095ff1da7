"""How long whole generations take, and where the time goes."""

from __future__ import annotations

from collections.abc import Sequence

from mpcache.benchmarks.cases.generation import HEADER, generation_rows
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.report.figure import Figure
from mpcache.benchmarks.report.svg import Bar, Legend, Style, keys, stacked_bars


def generations(records: Sequence[Record], legend: Legend) -> list[Figure]:
    found = [r for r in records if r["bench"] == "generate"]
    if not found:
        return []
    names = ["before the prefill", "prefill", "the other tokens"]
    styles = [Style.of(i) for i in range(len(names))]
    bars = [Bar(r["policy"], _phases(r)) for r in found]
    firsts = ", ".join(f"{r['prefill']['seconds']:.1f} s ({r['policy']})" for r in found)
    title = f"The first token of a prompt of {found[0]['tokens']:,} tokens takes {firsts} from the start of the prefill"
    others = [r for r in found if r["token"] is not None]
    if others:
        title += "; each further token takes " + ", ".join(
            f"{r['token']['seconds']:.2f} s ({r['policy']})" for r in others
        )
    note = (
        f"Seconds from the request to the last token of the answer, by the {found[0]['settings']['model']} model "
        "between three processes, gRPC with mutual TLS on loopback. Before the prefill come plans, handshake, and the "
        "masked weights, which a new client receives once."
    )
    plot = stacked_bars(bars, styles, "seconds", lambda v: f"{v:.1f}")
    return [Figure(title, note, plot, HEADER, generation_rows(found), keys(names, styles))]


def _phases(record: Record) -> list[float]:
    """Seconds of a new client's first generation, its tokens at the median."""
    prefill, token = record["prefill"]["all_seconds"][0], record["token"]
    others = token["seconds"] * (record["new_tokens"] - 1) if token else 0.0
    return [record["first_token_seconds"] - prefill, prefill, others]
