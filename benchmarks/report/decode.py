"""What a decode step costs by policy and cached tokens, and what it is spent on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.tables import PARTS, megabytes, seconds
from mpcache.benchmarks.report.figure import COMPARED, Figure, part_styles
from mpcache.benchmarks.report.steps import SHAPE, by_policy, decoded, total_bytes
from mpcache.benchmarks.report.svg import Axis, Bar, Legend, Point, Series, keys, line_plot, stacked_bars

GPT2_BLOCK = "GPT-2-shaped block (hidden 768, 12 heads of 64)"
STEP_HEIGHT = 380


def decode_steps(records: Sequence[Record], legend: Legend) -> list[Figure]:
    """For every shape that was measured, GPT-2's first."""
    shapes = dict.fromkeys(r["settings"]["shape"] for r in records if r["bench"] == "decode")
    found = [decoded(records, shape=shape) for shape in sorted(shapes, key=lambda shape: shape != SHAPE)]
    return [figure for own in found if own for make in STEP_FIGURES for figure in make(own, legend)]


def _a_block(record: Record) -> str:
    shape = record["settings"]["shape"]
    return GPT2_BLOCK if shape == SHAPE else f"block of the shape {Path(shape).name}"


def _tokens(value: float) -> str:
    return f"{value:,.0f}"


def _token_axis(records: Sequence[Record]) -> Axis:
    return Axis("cached tokens", True, ticks=sorted({r["tokens"] for r in records}), show=_tokens)


def time_per_token(found: Sequence[Record], legend: Legend) -> list[Figure]:
    series = [
        Series(name, [_timed(r) for r in own], legend.style(name), name in COMPARED)
        for name, own in by_policy(found).items()
    ]
    plot = line_plot(series, _token_axis(found), Axis("seconds a step", True), STEP_HEIGHT)
    title = _against_full(found, "seconds", lambda r: r["seconds"], "seconds a step")
    note = (
        f"Median wall time of a decode step of one {_a_block(found[0])}. Three processes with one thread each, gRPC "
        "with mutual TLS on loopback. Bars span the quartiles. Series stand side by side. Both axes are logarithmic."
    )
    rows = [[name, *_cells(own, found, lambda r: seconds(r["seconds"]))] for name, own in by_policy(found).items()]
    return [Figure(title, note, plot, _token_header(found), rows, legend.html([s.name for s in series]))]


def _timed(record: Record) -> Point:
    steps = record["all_seconds"]
    low, _, high = statistics.quantiles(steps, n=4, method="inclusive") if len(steps) > 1 else steps * 3
    return Point(record["tokens"], record["seconds"], low, high)


def bytes_per_token(found: Sequence[Record], legend: Legend) -> list[Figure]:
    series = [
        Series(name, [Point(r["tokens"], total_bytes(r) / 1e6) for r in own], legend.style(name), name in COMPARED)
        for name, own in by_policy(found).items()
    ]
    plot = line_plot(series, _token_axis(found), Axis("MB a step", True), STEP_HEIGHT)
    title = _against_full(found, "bytes", total_bytes, "bytes a step")
    note = (
        "Bytes of the same step: online payload in both directions, and correlations of both parties. They are exact, "
        "and do not depend on the machine. Both axes are logarithmic."
    )
    rows = [
        [name, *_cells(own, found, lambda r: f"{megabytes(r['online_bytes'])} + {megabytes(r['correlation_bytes'])}")]
        for name, own in by_policy(found).items()
    ]
    header = [h if i == 0 else f"{h}: online + correlations, MB" for i, h in enumerate(_token_header(found))]
    return [Figure(title, note, plot, header, rows, legend.html([s.name for s in series]))]


def _token_header(records: Sequence[Record]) -> list[str]:
    return ["policy", *(f"{tokens:,} tokens" for tokens in sorted({r["tokens"] for r in records}))]


def _cells(own: Sequence[Record], all_: Sequence[Record], show: Callable[[Record], str]) -> list[str]:
    at = {r["tokens"]: r for r in own}
    return [show(at[t]) if t in at else "" for t in sorted({r["tokens"] for r in all_})]


def _against_full(records: Sequence[Record], what: str, value: Callable[[Record], float], plain: str) -> str:
    """The finding at the most tokens: mpcache, and the policy that takes the least, against the full cache."""
    tokens = max(r["tokens"] for r in records)
    at = {r["policy"]: r for r in records if r["tokens"] == tokens}
    if "full" not in at:
        return f"{plain.capitalize()} by policy"
    share = {name: value(r) / value(at["full"]) for name, r in at.items()}
    least = min(share, key=lambda name: share[name])
    title = f"At {tokens:,} tokens "
    if "mpcache" in share:
        title += f"mpcache takes {share['mpcache']:.2f} of the full cache's {what}"
        return title if least == "mpcache" else f"{title}; {least}, the least, {share[least]:.2f}"
    return f"{title}{least} takes the least: {share[least]:.2f} of the full cache's {what}"


def parts(found: Sequence[Record], legend: Legend) -> list[Figure]:
    tokens = max(r["tokens"] for r in found)
    at = [r for r in found if r["tokens"] == tokens]
    used = [name for name in PARTS if any(name in r["parts"] for r in at)]
    styles = part_styles(used)

    def figure(title: str, unit: str, value: Callable[[Record], float], show: Callable[[float], str]) -> Figure:
        values = {r["policy"]: [value(r["parts"][n]) if n in r["parts"] else 0.0 for n in used] for r in at}
        values = dict(sorted(values.items(), key=lambda item: sum(item[1])))
        bars = [Bar(name, numbers) for name, numbers in values.items()]
        rows = [[name, *(show(v) for v in numbers)] for name, numbers in values.items()]
        note = f"What a decode step at {tokens:,} cached tokens spends on each part: {unit}."
        return Figure(title, note, stacked_bars(bars, styles, unit, show), ["policy", *used], rows, keys(used, styles))

    return [
        figure(
            _parts_title(at, tokens),
            "MB, online and correlations",
            lambda p: total_bytes(p) / 1e6,
            lambda v: f"{v:.2f}",
        ),
        figure(_seconds_title(at), "seconds", lambda p: p["seconds"], lambda v: f"{v:.3f}"),
    ]


def _parts_title(at: Sequence[Record], tokens: int) -> str:
    by_name = {r["policy"]: r for r in at}
    if not {"full", "mpcache"} <= by_name.keys():
        return f"Where the bytes of a step go, {tokens:,} tokens"
    attention = {n: total_bytes(by_name[n]["parts"]["attention"]) / 1e6 for n in ("full", "mpcache")}
    selection = by_name["mpcache"]["parts"].get("selection")
    spent = f", for {total_bytes(selection) / 1e6:.2f} MB of selection" if selection else ""
    return f"mpcache's attention moves {attention['mpcache']:.2f} MB instead of {attention['full']:.2f}{spent}"


def _seconds_title(at: Sequence[Record]) -> str:
    shares = [r["parts"]["linear"]["seconds"] / r["seconds"] for r in at if "linear" in r["parts"]]
    return f"Linear layers, which no policy changes, take {statistics.median(shares):.0%} of a step's seconds"


STEP_FIGURES = (time_per_token, bytes_per_token, parts)
