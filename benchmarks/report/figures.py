"""The report's figures from records: each has a title that says what was found, a plot, and the numbers as a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from mpcache.benchmarks.cases.agreement import DIFFERENCES, agreement_rows
from mpcache.benchmarks.cases.agreement import HEADER as AGREEMENT
from mpcache.benchmarks.cases.generation import HEADER as GENERATION
from mpcache.benchmarks.cases.generation import generation_rows
from mpcache.benchmarks.cases.quality_cases import CAN, PLACED
from mpcache.benchmarks.records.records import Record, is_whole_model
from mpcache.benchmarks.records.tables import PARTS, mebibytes, megabytes, seconds
from mpcache.benchmarks.report.figure import SHAPE, Figure, Maker, decoded, keys, steps_of
from mpcache.benchmarks.report.html import table
from mpcache.benchmarks.report.networks import computed_networks, measured_networks
from mpcache.benchmarks.report.svg import (
    Axis,
    Bar,
    Legend,
    Point,
    Series,
    Style,
    line_plot,
    scatter_plot,
    stacked_bars,
)
from mpcache.policies import PolicySettings

BUDGET = PolicySettings().budget
"""The share of the prompt that policies attend to by default."""


def _whole_models(records: Sequence[Record]) -> list[Record]:
    """Decode steps of a whole model on loopback, from the token to the next one."""
    return [r for r in steps_of(records, SHAPE) if r["backend"] == "mpc" and is_whole_model(r)]


def decode_steps(records: Sequence[Record], legend: Legend) -> list[Figure]:
    """For every shape that was measured, GPT-2's first."""
    shapes = dict.fromkeys(r["settings"]["shape"] for r in records if r["bench"] == "decode")
    found = [decoded(records, shape=shape) for shape in sorted(shapes, key=lambda shape: shape != SHAPE)]
    return [figure for own in found if own for make in STEP_FIGURES for figure in make(own, legend)]


def _a_block(record: Record) -> str:
    shape = record["settings"]["shape"]
    return GPT2_BLOCK if shape == SHAPE else f"block of the shape {Path(shape).name}"


GPT2_BLOCK = "GPT-2-shaped block (hidden 768, 12 heads of 64)"


def _by_policy(records: Sequence[Record]) -> dict[str, list[Record]]:
    out: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r["tokens"]):
        out.setdefault(record["policy"], []).append(record)
    return out


def _bytes(record: Record) -> int:
    return int(record["online_bytes"] + record["correlation_bytes"])


def _tokens(value: float) -> str:
    return f"{value:,.0f}"


def _token_axis(records: Sequence[Record]) -> Axis:
    return Axis("cached tokens", True, ticks=sorted({r["tokens"] for r in records}), show=_tokens)


COMPARED = ("full", "mpcache")
"""What a reader looks for first: drawn thick, and set beside others' systems."""
SYSTEMS = {"spu": "SPU", "crypten": "CrypTen"}
STEP_HEIGHT = 380


# ------------------------------------------------------------ cost against cached tokens


def time_per_token(found: Sequence[Record], legend: Legend) -> list[Figure]:
    series = [
        Series(name, [_timed(r) for r in own], legend.style(name), name in COMPARED)
        for name, own in _by_policy(found).items()
    ]
    plot = line_plot(series, _token_axis(found), Axis("seconds a step", True), STEP_HEIGHT)
    title = _against_full(found, "seconds", lambda r: r["seconds"], "seconds a step")
    note = (
        f"Median wall time of a decode step of one {_a_block(found[0])}, three processes, "
        "gRPC with mutual TLS on loopback, one thread each. Bars: from the lower quartile to the upper; series side by "
        "side. Logarithmic axes."
    )
    rows = [[name, *_cells(own, found, lambda r: seconds(r["seconds"]))] for name, own in _by_policy(found).items()]
    return [Figure(title, note, plot, _token_header(found), rows, legend.html([s.name for s in series]))]


def _timed(record: Record) -> Point:
    steps = record["all_seconds"]
    low, _, high = statistics.quantiles(steps, n=4, method="inclusive") if len(steps) > 1 else steps * 3
    return Point(record["tokens"], record["seconds"], low, high)


def bytes_per_token(found: Sequence[Record], legend: Legend) -> list[Figure]:
    series = [
        Series(name, [Point(r["tokens"], _bytes(r) / 1e6) for r in own], legend.style(name), name in COMPARED)
        for name, own in _by_policy(found).items()
    ]
    plot = line_plot(series, _token_axis(found), Axis("MB a step", True), STEP_HEIGHT)
    title = _against_full(found, "bytes", _bytes, "bytes a step")
    note = (
        "Online payload in both directions and correlations of both parties, together, of the same step. Exact: bytes "
        "do not depend on the machine. Logarithmic axes."
    )
    rows = [
        [name, *_cells(own, found, lambda r: f"{megabytes(r['online_bytes'])} + {megabytes(r['correlation_bytes'])}")]
        for name, own in _by_policy(found).items()
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


# ------------------------------------------------------------ parts


PART_STYLES = [Style.of(i) for i in range(len(PARTS))]


def parts(found: Sequence[Record], legend: Legend) -> list[Figure]:
    tokens = max(r["tokens"] for r in found)
    at = [r for r in found if r["tokens"] == tokens]
    used = [name for name in PARTS if any(name in r["parts"] for r in at)]
    styles = [PART_STYLES[PARTS.index(name)] for name in used]

    def figure(title: str, unit: str, value: Callable[[Record], float], show: Callable[[float], str]) -> Figure:
        values = {r["policy"]: [value(r["parts"][n]) if n in r["parts"] else 0.0 for n in used] for r in at}
        values = dict(sorted(values.items(), key=lambda item: sum(item[1])))
        bars = [Bar(name, numbers) for name, numbers in values.items()]
        rows = [[name, *(show(v) for v in numbers)] for name, numbers in values.items()]
        note = f"{unit} of a decode step at {tokens:,} cached tokens, by what it is spent on."
        return Figure(title, note, stacked_bars(bars, styles, unit, show), ["policy", *used], rows, keys(used, styles))

    return [
        figure(
            _parts_title(at, tokens), "MB, online and correlations", lambda p: _bytes(p) / 1e6, lambda v: f"{v:.2f}"
        ),
        figure(_seconds_title(at), "seconds", lambda p: p["seconds"], lambda v: f"{v:.3f}"),
    ]


def _parts_title(at: Sequence[Record], tokens: int) -> str:
    by_name = {r["policy"]: r for r in at}
    if not {"full", "mpcache"} <= by_name.keys():
        return f"Where the bytes of a step go, {tokens:,} tokens"
    attention = {n: _bytes(by_name[n]["parts"]["attention"]) / 1e6 for n in ("full", "mpcache")}
    selection = by_name["mpcache"]["parts"].get("selection")
    spent = f", for {_bytes(selection) / 1e6:.2f} MB of selection" if selection else ""
    return f"mpcache's attention moves {attention['mpcache']:.2f} MB instead of {attention['full']:.2f}{spent}"


def _seconds_title(at: Sequence[Record]) -> str:
    shares = [r["parts"]["linear"]["seconds"] / r["seconds"] for r in at if "linear" in r["parts"]]
    return f"Linear layers, which no policy changes, are {statistics.median(shares):.0%} of a step's seconds"


STEP_FIGURES = (time_per_token, bytes_per_token, parts)


# ------------------------------------------------------------ quality


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
            points = [_match(own[0], budget) for budget in (budgets[0], budgets[-1])]
        else:
            points = [_match(r, r["budget"]) for r in own]
        series.append(Series(name, points, legend.style(name), name in COMPARED))
    x = Axis("tokens attended to, share of the prompt", True, ticks=budgets, show=lambda v: f"{v:.3g}")
    plot = line_plot(series, x, Axis("exact match", limits=(-0.03, 1.05), ticks=(0, 0.25, 0.5, 0.75, 1)))
    rows = []
    for one in series:
        at = {p.x: p for p in one.points}
        rows.append([one.name, *(f"{at[b].y:.3f}" if b in at else "" for b in budgets)])
    note = (
        f"Exact match of greedy answers on held-out day sheets of {tokens:,} tokens, {PLACED[placement]}, demo model, "
        f"plaintext, {group[0]['asked']} questions. Bars: a standard error to either side; series side by side."
    )
    header = ["policy", *(f"{b:.1%}" for b in budgets)]
    title = _quality_title(group, tokens, placement, budgets)
    return Figure(title, note, plot, header, rows, legend.html([s.name for s in series]))


def _match(record: Record, x: float) -> Point:
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
        (r["policy"], str(r["settings"]["policy"]["budget"])): _bytes(r) / 1e6
        for r in decoded(records)
        if r["tokens"] == tokens
    }
    out = {}
    for r in records:
        if r["bench"] != "quality" or (r["task"], r["tokens"], r["placement"]) != ("day-sheet", tokens, placement):
            continue
        key = (r["policy"], str(r["settings"]["policy"]["budget"]))
        if key in cost:
            match = _match(r, 0)
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
        "GPT-2-shaped block with as many cached tokens, each policy at its default budget. Up and to the left is "
        "better; the dashed line joins those that no other beats in both."
    )
    rows = [[p.name, f"{p.x:.2f}", f"{p.y:.3f}"] for p in sorted(points.values(), key=lambda p: p.x)]
    where = "Question in the prompt" if placement == "end" else "Question after eviction"
    title = f"{where}, {tokens:,} tokens: unbeaten: {names}"
    return Figure(title, note, plot, ["policy", "MB", "exact match"], rows, name=f"{placement}-{tokens}")


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
        "Share of needles found among fillers, by prompt length and depth (0%: at the beginning), at a budget of "
        f"{BUDGET:.1%}, {PLACED[placement]}. Darker is better."
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
        title += (
            f": {', '.join(beyond)} {'are' if len(beyond) > 1 else 'is'} more than this model does, whatever the policy"
        )
    note = (
        f"Exact match at a budget of {BUDGET:.1%}, question after eviction; perplexity (lower is better) where a task "
        "has no answer to match. Read nothing into a column whose full cache fails."
    )
    return [Figure(title, note, table(header, rows), header, rows)]


def _result(record: Record | None) -> str:
    if record is None:
        return ""
    return f"{record['perplexity']:.2f}" if "perplexity" in record else f"{record['exact_match']:.2f}"


# ------------------------------------------------------------ networks, CrypTen, prefill


def against_crypten(records: Sequence[Record], legend: Legend) -> list[Figure]:
    theirs = decoded(records, "crypten")
    ours = {(r["policy"], r["tokens"]): r for r in decoded(records)}
    pairs = [(ours[r["policy"], r["tokens"]], r) for r in theirs if (r["policy"], r["tokens"]) in ours]
    if not pairs:
        return []
    styles = [Style.of(0), Style.of(1)]
    bars = []
    for mine, other in pairs:
        for name, r in (("mpc", mine), ("CrypTen", other)):
            bars.append(
                Bar(
                    f"{name}, {r['policy']}, {r['tokens']:,} tokens",
                    [r["online_bytes"] / 1e6, r["correlation_bytes"] / 1e6],
                )
            )
    mine, other = pairs[-1]
    title = (
        f"CrypTen's own protocols take {other['seconds'] / mine['seconds']:.0f} times the seconds, "
        f"{other['online_bytes'] / mine['online_bytes']:.0f} times the online bytes and "
        f"{other['rounds'] / mine['rounds']:.1f} times the rounds"
    )
    rows = [
        [
            name,
            r["policy"],
            f"{r['tokens']:,}",
            seconds(r["seconds"]),
            megabytes(r["online_bytes"]),
            megabytes(r["correlation_bytes"]),
            str(r["rounds"]),
        ]
        for pair in pairs
        for name, r in zip(("mpc", "CrypTen"), pair, strict=True)
    ]
    note = "The same decode step on CrypTen's protocols, over our transport and dealer, in the same run. MB a step."
    header = ["protocols", "policy", "tokens", "s", "online MB", "correlation MB", "rounds"]
    plot = stacked_bars(bars, styles, "MB a step", lambda v: f"{v:.1f}")
    return [Figure(title, note, plot, header, rows, keys(["online", "correlations"], styles))]


def prefills(records: Sequence[Record], legend: Legend) -> list[Figure]:
    ours = [r for r in records if r["bench"] == "prefill" and r["backend"] == "mpc"]
    found = sorted((r for r in ours if r["settings"]["shape"] == SHAPE), key=lambda r: r["tokens"])
    if not found:
        return []
    names = [n for n in PARTS if any(n in r["parts"] for r in found)]
    styles = [PART_STYLES[PARTS.index(n)] for n in names]
    bars = [
        Bar(_prompt_name(r), [_bytes(r["parts"][n]) / 1e6 if n in r["parts"] else 0.0 for n in names]) for r in found
    ]
    last = found[-1]
    title = (
        f"A prompt of {last['tokens']:,} tokens takes {_prefilled(last)} {last['seconds']:.0f} s and "
        f"{_bytes(last) / 1e6:,.0f} MB"
    )
    rows = [
        [
            bar.name,
            seconds(r["seconds"]),
            megabytes(r["online_bytes"]),
            megabytes(r["correlation_bytes"]),
            f"{r['rounds']:,}",
            *(mebibytes(r["peak_memory_bytes"].get(p)) for p in ("owner", "client", "dealer")),
        ]
        for bar, r in zip(bars, found, strict=True)
    ]
    header = ["prompt", "s", "online MB", "correlation MB", "rounds", "owner MiB", "client MiB", "dealer MiB"]
    note = (
        "Prefill of a GPT-2 shape: MB, online and correlations, by part. Whole model: all layers with embedding, and "
        "logits and arg max of the first token; layers alone: without these."
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


def generations(records: Sequence[Record], legend: Legend) -> list[Figure]:
    found = [r for r in records if r["bench"] == "generate"]
    if not found:
        return []
    names = ["before the prefill", "prefill", "the other tokens"]
    styles = [Style.of(i) for i in range(len(names))]
    bars = [Bar(r["policy"], _stretches(r)) for r in found]
    firsts = ", ".join(f"{r['prefill']['seconds']:.1f} s ({r['policy']})" for r in found)
    title = f"The first token of a prompt of {found[0]['tokens']:,} tokens comes {firsts} after the prefill began"
    others = [r for r in found if r["token"] is not None]
    if others:
        title += "; each other takes " + ", ".join(f"{r['token']['seconds']:.2f} s ({r['policy']})" for r in others)
    note = (
        f"A whole generation by the {found[0]['settings']['model']} model between three processes, gRPC with mutual "
        "TLS on loopback: seconds from the request to the answer's last token. Before the prefill: plans, handshake "
        "and the masked weights, which a new client is sent once."
    )
    plot = stacked_bars(bars, styles, "seconds", lambda v: f"{v:.1f}")
    return [Figure(title, note, plot, GENERATION, generation_rows(found), keys(names, styles))]


def _stretches(record: Record) -> list[float]:
    """Seconds of a new client's first generation, its tokens at the median."""
    prefill, token = record["prefill"]["all_seconds"][0], record["token"]
    others = token["seconds"] * (record["new_tokens"] - 1) if token else 0.0
    return [record["first_token_seconds"] - prefill, prefill, others]


def agreements(records: Sequence[Record], legend: Legend) -> list[Figure]:
    found = [r for r in records if r["bench"] == "agreement"]
    if not found:
        return []
    same, asked = sum(r["same"] for r in found), sum(r["asked"] for r in found)
    rows = agreement_rows(found)
    title = f"Secure decoding gives the answers of plaintext in {same} of {asked} cases"
    differing = [f"{r['task']}, {r['policy']}" for r in found if r["same"] < r["asked"]]
    if differing:
        title += f"; not in {'; '.join(differing)}"
    tokens = ", ".join(f"{n:,}" for n in sorted({r["tokens"] for r in found}))
    note = (
        f"The quality tasks' first documents of {tokens} tokens, first question, in plaintext and on shares, question "
        "after eviction; differing: by the document's seed. Right or wrong, answers should agree. Perplexity is left "
        f"out: its tokens are given, so there is no answer to compare. {DIFFERENCES}"
    )
    return [Figure(title, note, _agreement_table(found), AGREEMENT, rows)]


def _agreement_table(found: Sequence[Record]) -> str:
    """How many cases agree, a row for each policy, a column for each task and length."""
    columns = list(dict.fromkeys((r["task"], r["tokens"]) for r in found))
    at = {(r["policy"], r["task"], r["tokens"]): f"{r['same']} of {r['asked']}" for r in found}
    rows = [[name, *(at.get((name, *c), "") for c in columns)] for name in dict.fromkeys(r["policy"] for r in found)]
    return table(["policy", *(f"{task}, {tokens:,}" for task, tokens in columns)], rows)


def peers(records: Sequence[Record], legend: Legend) -> list[Figure]:
    """Others' systems beside ours (`python -m mpcache.benchmarks.peers`): a block, its parts, the whole model."""
    out, steps = [], decoded(records)
    attention, selection = _of_part(steps, "attention", "full"), _of_part(steps, "selection", "mpcache")
    measured = {"block": steps, "attention": attention, "selection": selection, "model": _whole_models(records)}
    for what, own in measured.items():
        found = [r for r in records if "system" in r and r["what"] == what]
        for tokens in sorted({r["tokens"] for r in found}):
            at = [r for r in found if r["tokens"] == tokens]
            theirs = {f"{SYSTEMS[r['system']]} {r['protocol']}, {r['policy']}{_wrong(r)}": r for r in at}
            ours = {f"MPCache, {r['policy']}": r for r in own if r["tokens"] == tokens}
            out.append(_peers(what, tokens, {n: r for n, r in ours.items() if r["policy"] in COMPARED}, theirs))
    return out


WRONG = 0.1
"""From this error on, against plaintext, a peer's result is another one, and its seconds count for nothing."""


def _wrong(record: Record) -> str:
    error = record.get("error") or 0.0
    return f" (off by {error:.1g})" if error >= WRONG else ""


def _of_part(steps: Sequence[Record], part: str, policy: str) -> list[Record]:
    """What a part of a policy's steps took, as records of their own."""
    return [{**r, **r["parts"][part]} for r in steps if r["policy"] == policy and part in r["parts"]]


PEERS_NOTE = {
    "attention": "Attention over the full cache, of a decode step of a GPT-2-shaped block (ours: a part of that step)",
    "selection": "mpcache's selection, of the same step, with its default settings (ours: one choice for all heads, a "
    "part of that step; theirs: one for each head)",
    "block": "A decode step of a GPT-2-shaped block",
    "model": "A decode step of GPT-2 small's shape, 12 layers, final norm, logits and arg max of 50,257 (ours: the "
    "token's embedding as well)",
}


def _peers(what: str, tokens: int, ours: dict[str, Record], theirs: dict[str, Record]) -> Figure:
    ordered = sorted({**theirs, **ours}.items(), key=lambda item: item[1]["seconds"])
    note = (
        f"{PEERS_NOTE[what]}, median seconds, real processes on loopback; what is secret and who "
        "computes differs: see benchmarks/peers/README.md. Off by: the largest error against plaintext, if it is large."
    )
    rows = [
        [
            name,
            seconds(r["seconds"]),
            megabytes(r["online_bytes"]),
            "" if r["correlation_bytes"] is None else megabytes(r["correlation_bytes"]),
            str(r.get("rounds") or r.get("messages_per_party") or ""),
        ]
        for name, r in ordered
    ]
    header = ["system", "s", "online MB", "correlation MB", "rounds, or messages of a party"]
    plot = stacked_bars([Bar(n, [r["seconds"]]) for n, r in ordered], [Style.of(0)], "seconds a step", _brief)
    return Figure(_peers_title(what, tokens, ours, theirs), note, plot, header, rows)


def _peers_title(what: str, tokens: int, ours: dict[str, Record], theirs: dict[str, Record]) -> str:
    """The fastest right one of theirs against each of ours."""
    unit = {
        "block": "a block",
        "attention": "for attention",
        "selection": "for selection",
        "model": "a whole model's step",
    }[what]
    other = min(theirs, key=lambda name: (bool(_wrong(theirs[name])), theirs[name]["seconds"]))
    title = f"{tokens:,} tokens: {other} takes {_brief(theirs[other]['seconds'])} s {unit}"
    for name, r in ours.items():
        title += f"; {name} {_brief(r['seconds'])} s ({_times(theirs[other]['seconds'] / r['seconds'])} times as fast)"
    return title


def _brief(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


FIGURES: dict[str, Maker] = {
    "Quality against cost": quality_against_cost,
    "A decode step": decode_steps,
    "Quality": lambda records, legend: [
        *quality_by_budget(records, legend),
        *needles(records, legend),
        *other_tasks(records, legend),
    ],
    "Plaintext and MPC": agreements,
    "Networks": lambda records, legend: [*measured_networks(records, legend), *computed_networks(records, legend)],
    "CrypTen": against_crypten,
    "Peers": peers,
    "Prefill": prefills,
    "A whole generation": generations,
}
