"""Other systems beside ours: CrypTen's protocols on our transport, and the peers (benchmarks/peers)."""

from __future__ import annotations

from collections.abc import Sequence

from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.tables import megabytes, seconds
from mpcache.benchmarks.report.figure import COMPARED, Figure
from mpcache.benchmarks.report.steps import decoded, whole_models
from mpcache.benchmarks.report.svg import Bar, Legend, Style, keys, stacked_bars

SYSTEMS = {"spu": "SPU", "crypten": "CrypTen"}
WRONG = 0.1
"""From this error on, against plaintext, a peer's result is another one, and its seconds count for nothing."""
PEERS_NOTE = {
    "attention": "Attention over the full cache in a decode step of a GPT-2-shaped block (ours: a part of that step)",
    "selection": "mpcache's selection in the same step, with its default settings (ours: one choice for all heads, a "
    "part of that step; theirs: one for each head)",
    "block": "A decode step of a GPT-2-shaped block",
    "model": "A decode step of GPT-2 small's shape, 12 layers, final norm, logits and arg max of 50,257 (ours: the "
    "token's embedding as well)",
}


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
    note = "MB of the same decode step on CrypTen's protocols, over our transport and dealer, in the same run."
    header = ["protocols", "policy", "tokens", "s", "online MB", "correlation MB", "rounds"]
    plot = stacked_bars(bars, styles, "MB a step", lambda v: f"{v:.1f}")
    return [Figure(title, note, plot, header, rows, keys(["online", "correlations"], styles))]


def peers(records: Sequence[Record], legend: Legend) -> list[Figure]:
    """Others' systems beside ours (`python -m mpcache.benchmarks.peers`): a block, its parts, the whole model."""
    out, steps = [], decoded(records)
    attention, selection = _of_part(steps, "attention", "full"), _of_part(steps, "selection", "mpcache")
    measured = {"block": steps, "attention": attention, "selection": selection, "model": whole_models(records)}
    for what, own in measured.items():
        found = [r for r in records if "system" in r and r["what"] == what]
        for tokens in sorted({r["tokens"] for r in found}):
            at = [r for r in found if r["tokens"] == tokens]
            theirs = {f"{SYSTEMS[r['system']]} {r['protocol']}, {r['policy']}{_wrong(r)}": r for r in at}
            ours = {f"MPCache, {r['policy']}": r for r in own if r["tokens"] == tokens}
            out.append(_peers(what, tokens, {n: r for n, r in ours.items() if r["policy"] in COMPARED}, theirs))
    return out


def _wrong(record: Record) -> str:
    error = record.get("error") or 0.0
    return f" (off by {error:.1g})" if error >= WRONG else ""


def _of_part(steps: Sequence[Record], part: str, policy: str) -> list[Record]:
    """What a part of a policy's steps took, as records of their own."""
    return [{**r, **r["parts"][part]} for r in steps if r["policy"] == policy and part in r["parts"]]


def _peers(what: str, tokens: int, ours: dict[str, Record], theirs: dict[str, Record]) -> Figure:
    ordered = sorted({**theirs, **ours}.items(), key=lambda item: item[1]["seconds"])
    note = (
        f"{PEERS_NOTE[what]}: median seconds between real processes on loopback. What is secret and who computes "
        "differs: see benchmarks/peers/README.md. A result that is far from plaintext is marked: off by its error."
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
