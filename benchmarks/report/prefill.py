"""What a prompt's prefill costs by its length."""

from __future__ import annotations

from collections.abc import Sequence

from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.selection import is_whole_model
from mpcache.benchmarks.records.tables import PARTS, PEAKS, megabytes, peak_cells, seconds
from mpcache.benchmarks.report.figure import Figure, part_styles
from mpcache.benchmarks.report.steps import SHAPE, total_bytes
from mpcache.benchmarks.report.svg import Bar, Legend, keys, stacked_bars


def prefills(records: Sequence[Record], legend: Legend) -> list[Figure]:
    ours = [r for r in records if r["bench"] == "prefill" and r["backend"] == "mpc"]
    found = sorted((r for r in ours if r["settings"]["shape"] == SHAPE), key=lambda r: r["tokens"])
    if not found:
        return []
    names = [n for n in PARTS if any(n in r["parts"] for r in found)]
    styles = part_styles(names)
    bars = [
        Bar(_prompt_name(r), [total_bytes(r["parts"][n]) / 1e6 if n in r["parts"] else 0.0 for n in names])
        for r in found
    ]
    last = found[-1]
    title = (
        f"A prompt of {last['tokens']:,} tokens takes {_prefilled(last)} {last['seconds']:.0f} s and "
        f"{total_bytes(last) / 1e6:,.0f} MB"
    )
    rows = [
        [
            bar.name,
            seconds(r["seconds"]),
            megabytes(r["online_bytes"]),
            megabytes(r["correlation_bytes"]),
            f"{r['rounds']:,}",
            *peak_cells(r["peak_memory_bytes"]),
        ]
        for bar, r in zip(bars, found, strict=True)
    ]
    header = ["prompt", "s", "online MB", "correlation MB", "rounds", *PEAKS]
    note = (
        "MB of the prefill of a GPT-2 shape, online and correlations, by part. The whole model is all layers with "
        "embedding, and with logits and arg max of the first token. Layers alone are without these."
    )
    return [
        Figure(title, note, stacked_bars(bars, styles, "MB", lambda v: f"{v:,.0f}"), header, rows, keys(names, styles))
    ]


def _prompt_name(record: Record) -> str:
    policy = "" if record["policy"] == "full" else f", {record['policy']}"
    return f"{record['tokens']:,} tokens, {_prefilled(record).removeprefix('the ')}{policy}"


def _prefilled(record: Record) -> str:
    layers = record["settings"]["layers"]
    return "the whole model" if is_whole_model(record) else f"{layers} layer{'s' if layers > 1 else ''} alone"
