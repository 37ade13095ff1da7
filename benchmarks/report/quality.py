"""Answers by policy: on day sheets by budget, on needles by depth, and on the other tasks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mpcache.benchmarks.cases.quality import CAN, PLACED
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.report.figure import COMPARED, Figure
from mpcache.benchmarks.report.html import table
from mpcache.benchmarks.report.svg import Axis, Legend, Point, Series, line_plot
from mpcache.policies import policy_settings

BUDGET = policy_settings().budget
"""The share of the prompt that policies attend to by default."""


def quality_by_budget(records: Sequence[Record], legend: Legend) -> list[Figure]:
    out = []
    found = [r for r in records if r["bench"] == "quality" and r["task"] == "day-sheet"]
    for tokens in sorted({r["tokens"] for r in found}):
        for placement in ("end", "later"):
            group = [r for r in found if (r["tokens"], r["placement"]) == (tokens, placement)]
            if group:
                out.append(_quality(group, tokens, placement, legend))
    return out


def _quality(group: Sequence[Record], tokens: int, placement: str, legend: Legend) -> Figure:
    budgets = sorted({r["budget"] for r in group if r["budget"] is not None})
    series = []
    for name in dict.fromkeys(r["policy"] for r in group):
        own = sorted((r for r in group if r["policy"] == name), key=lambda r: r["budget"] or 0)
        if own[0]["budget"] is None:
            points = [match_point(own[0], budget) for budget in (budgets[0], budgets[-1])]
        else:
            points = [match_point(r, r["budget"]) for r in own]
        series.append(Series(name, points, legend.style(name), name in COMPARED))
    x = Axis("tokens attended to, share of the prompt", True, ticks=budgets, show=lambda v: f"{v:.3g}")
    plot = line_plot(series, x, Axis("exact match", limits=(-0.03, 1.05), ticks=(0, 0.25, 0.5, 0.75, 1)))
    rows = []
    for one in series:
        at = {p.x: p for p in one.points}
        rows.append([one.name, *(f"{at[b].y:.3f}" if b in at else "" for b in budgets)])
    note = (
        f"Exact match of greedy answers to {group[0]['asked']} questions about held-out day sheets of {tokens:,} "
        f"tokens: {PLACED[placement]}, demo model, plaintext. Bars span a standard error to either side. Series stand "
        "side by side."
    )
    header = ["policy", *(f"{b:.1%}" for b in budgets)]
    title = _quality_title(group, tokens, placement, budgets)
    return Figure(title, note, plot, header, rows, legend.html([s.name for s in series]))


def match_point(record: Record, x: float) -> Point:
    y, error = record["exact_match"], record["standard_error"]
    return Point(x, y, max(y - error, 0), min(y + error, 1))


def _quality_title(group: Sequence[Record], tokens: int, placement: str, budgets: Sequence[float]) -> str:
    middle = min(budgets, key=lambda b: abs(b - BUDGET))
    full = next((r["exact_match"] for r in group if r["budget"] is None), None)
    at = {r["policy"]: r["exact_match"] for r in group if r["budget"] == middle}
    where = "a question in the prompt" if placement == "end" else "a question that comes later"
    if full is None or not at:
        return f"{tokens:,} tokens, {where}"
    good = sorted((n for n, y in at.items() if y >= 0.97 * full), key=lambda n: -at[n])
    kept = ", ".join(good[:5]) + (f" and {len(good) - 5} more" if len(good) > 5 else "") if good else "no policy"
    keep = "keep" if len(good) > 1 else "keeps"
    return f"{tokens:,} tokens, {where}: at {middle:.1%}, {kept} {keep} 97% of the full cache's answers"


def needles(records: Sequence[Record], legend: Legend) -> list[Figure]:
    """Depth x length for each policy, as a table with shades."""
    out = []
    found = [r for r in records if r["bench"] == "quality" and r["task"] == "needle" and r["cells"]]
    for placement in ("end", "later"):
        group = [r for r in found if r["placement"] == placement and r["budget"] in (None, BUDGET)]
        if group:
            out.append(_needles(group, placement))
    return out


def _needles(group: Sequence[Record], placement: str) -> Figure:
    tokens = sorted({r["tokens"] for r in group})
    depths = sorted({d for r in group for d in r["cells"]}, key=lambda d: int(d.split()[1].rstrip("%")))
    columns = [(t, d) for t in tokens for d in depths]
    head = "".join(f"<th>{t:,}<br>{d.removeprefix('depth ')}</th>" for t, d in columns)
    body, rows = [], []
    for name in dict.fromkeys(r["policy"] for r in group):
        cells = {r["tokens"]: r["cells"] for r in group if r["policy"] == name}
        shares = [cells[t][d][0] / cells[t][d][1] if t in cells and d in cells[t] else None for t, d in columns]
        rows.append([name, *("" if s is None else f"{s:.2f}" for s in shares)])
        body.append(f"<tr><th>{escape(name)}</th>{''.join(_shade(s) for s in shares)}</tr>")
    table = f'<div class="wide"><table class="heat"><tr><th></th>{head}</tr>{"".join(body)}</table></div>'
    whole = [row[0] for row in rows if all(cell in ("", "1.00") for cell in row[1:])]
    note = (
        "Share of needles that are found among fillers, by prompt length and depth (0%: at the beginning): "
        f"{PLACED[placement]}, budget of {BUDGET:.1%}. Darker is better."
    )
    where = "in the prompt" if placement == "end" else "after eviction"
    title = f"Needles, question {where}: found at every depth by {', '.join(whole) or 'no policy'}"
    return Figure(title, note, table, ["policy", *(f"{t:,}, {d}" for t, d in columns)], rows)


def _shade(share: float | None) -> str:
    if share is None:
        return "<td></td>"
    light = 97 - 55 * share
    ink = "#fff" if light < 60 else "#222"
    return f'<td style="background:hsl(202 80% {light:.0f}%);color:{ink}">{share:.2f}</td>'


def other_tasks(records: Sequence[Record], legend: Legend) -> list[Figure]:
    """The full cache's result decides whether a task says anything of policies."""
    found = [
        r for r in records if r["bench"] == "quality" and r["budget"] in (None, BUDGET) and r["placement"] == "later"
    ]
    tasks = dict.fromkeys((r["task"], r["tokens"]) for r in found)
    if len({task for task, _ in tasks}) < 2:
        return []
    header = ["policy", *(f"{task}, {tokens:,}" for task, tokens in tasks)]
    names = dict.fromkeys(r["policy"] for r in found)
    at = {(r["policy"], r["task"], r["tokens"]): r for r in found}
    rows = [[name, *(_result(at.get((name, *task))) for task in tasks)] for name in names]
    beyond = dict.fromkeys(r["task"] for r in found if r["policy"] == "full" and r.get("exact_match", 1.0) < CAN)
    title = "Tasks beyond day sheets"
    if beyond:
        title += f": the model itself fails at {', '.join(beyond)}"
    note = (
        f"Exact match at a budget of {BUDGET:.1%}, question after eviction. A task without an answer to match has its "
        "perplexity: lower is better. A column whose full cache fails says nothing about policies."
    )
    return [Figure(title, note, table(header, rows), header, rows)]


def _result(record: Record | None) -> str:
    if record is None:
        return ""
    return f"{record['perplexity']:.2f}" if "perplexity" in record else f"{record['exact_match']:.2f}"
