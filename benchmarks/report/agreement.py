"""In how many cases the answers under MPC are those of plaintext."""

from __future__ import annotations

from collections.abc import Sequence

from mpcache.benchmarks.cases.agreement import DIFFERENCES, HEADER, agreement_rows
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.report.figure import Figure
from mpcache.benchmarks.report.html import table
from mpcache.benchmarks.report.svg import Legend


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
        f"The first question about the first documents of {tokens} tokens of each quality task, after eviction, in "
        "plaintext and on shares. Answers should agree, right or wrong. The last column has the seeds of documents "
        "whose answers differ. Perplexity is left out: its tokens are given, so there is no answer to compare. "
        f"{DIFFERENCES}"
    )
    return [Figure(title, note, _agreement_table(found), HEADER, rows)]


def _agreement_table(found: Sequence[Record]) -> str:
    """How many cases agree, a row for each policy, a column for each task and length."""
    columns = list(dict.fromkeys((r["task"], r["tokens"]) for r in found))
    at = {(r["policy"], r["task"], r["tokens"]): f"{r['same']} of {r['asked']}" for r in found}
    rows = [[name, *(at.get((name, *c), "") for c in columns)] for name in dict.fromkeys(r["policy"] for r in found)]
    return table(["policy", *(f"{task}, {tokens:,}" for task, tokens in columns)], rows)
