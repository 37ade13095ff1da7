"""Answers against the cost of a decode step: which policies no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence

from mpcache.benchmarks.cases.quality import PLACED
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.report.figure import Figure
from mpcache.benchmarks.report.quality import match_point
from mpcache.benchmarks.report.steps import decoded, total_bytes
from mpcache.benchmarks.report.svg import Axis, Legend, Point, Series, scatter_plot


def quality_against_cost(records: Sequence[Record], legend: Legend) -> list[Figure]:
    out = []
    for placement in ("end", "later"):
        for tokens in sorted({r["tokens"] for r in records if r["bench"] == "quality"}):
            points = _priced(records, tokens, placement)
            if len(points) >= 3:
                out.append(_pareto(points, tokens, placement, legend))
    return out


def _priced(records: Sequence[Record], tokens: int, placement: str) -> dict[str, Point]:
    """By policy: (MB a step, exact match), where both were measured at the same settings and length."""
    cost = {
        (r["policy"], str(r["settings"]["policy"]["budget"])): total_bytes(r) / 1e6
        for r in decoded(records)
        if r["tokens"] == tokens
    }
    out = {}
    for r in records:
        if r["bench"] != "quality" or (r["task"], r["tokens"], r["placement"]) != ("day-sheet", tokens, placement):
            continue
        key = (r["policy"], str(r["settings"]["policy"]["budget"]))
        if key in cost:
            match = match_point(r, 0)
            out[r["policy"]] = Point(cost[key], match.y, match.low, match.high, r["policy"])
    return out


def _pareto(points: dict[str, Point], tokens: int, placement: str, legend: Legend) -> Figure:
    front: list[Point] = []
    for point in sorted(points.values(), key=lambda p: (p.x, -p.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    series = [Series(name, [point], legend.style(name)) for name, point in points.items()]
    y = Axis("exact match", limits=(-0.05, 1.08), ticks=(0, 0.25, 0.5, 0.75, 1))
    plot = scatter_plot(series, Axis("MB a decode step, online and correlations", True), y, front)
    names = ", ".join(p.name for p in front)
    note = (
        f"Exact match ({tokens:,} tokens, {PLACED[placement]}, demo model) against the bytes of a decode step of a "
        "GPT-2-shaped block with as many cached tokens, each policy at its default budget. Better is up and to the "
        "left. The dashed line joins the policies that no other beats in both."
    )
    rows = [[p.name, f"{p.x:.2f}", f"{p.y:.3f}"] for p in sorted(points.values(), key=lambda p: p.x)]
    where = "Question in the prompt" if placement == "end" else "Question after eviction"
    title = f"{where}, {tokens:,} tokens: no other policy beats {names}"
    return Figure(title, note, plot, ["policy", "MB", "exact match"], rows, name=f"{placement}-{tokens}")
