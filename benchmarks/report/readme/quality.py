"""The README's table of answers by policy and budget."""

from __future__ import annotations

from collections.abc import Sequence

from mpcache.benchmarks.cases.quality import PLACED
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.selection import largest_run
from mpcache.benchmarks.records.tables import markdown
from mpcache.benchmarks.report.readme.cells import prose
from mpcache.policies import available_policies, policy_settings

QUALITY_TOKENS = 1024
MIDDLE = policy_settings().budget
"""The share that policies attend to by default."""
ABLATED = ("mpcache-static", "mpcache-dynamic")


def quality(records: Sequence[Record]) -> str:
    named = [r for r in records if r["bench"] == "quality" and r["policy"] in (*available_policies(), *ABLATED)]
    where = ("day-sheet", QUALITY_TOKENS, "demo")
    found = largest_run(r for r in named if (r["task"], r["tokens"], r["settings"]["model"]) == where)
    if not found:
        return ""
    budgets = sorted({r["budget"] for r in found if r["budget"] is not None})
    match = {(r["policy"], r["placement"], r["budget"]): r["exact_match"] for r in found}
    names = list(dict.fromkeys(r["policy"] for r in found))
    rows = []
    for name in names:
        cells = (match.get((name, p, b), match.get((name, p, None))) for p in PLACED for b in budgets or [None])
        rows.append([name, *("" if cell is None else f"{cell:.3f}" for cell in cells)])
    error = max(r["standard_error"] for r in found)
    command = _quality_command(found[0]["settings"]["documents"], budgets, names)
    note = (
        f"`{command}`: {found[0]['asked']} questions a cell about sheets of {QUALITY_TOKENS:,} tokens, "
        f"standard error up to {error:.3f}.{_kept(match)}"
    )
    return f"{markdown(_quality_header(budgets), rows)}\n{prose(note)}"


def _quality_header(budgets: Sequence[float]) -> list[str]:
    """The full cache alone has no budget: then one column for each place of the question."""
    header = ["policy"]
    for where in PLACED.values():
        first, *others = [f"{budget * 100:.3g}%" for budget in budgets] or [""]
        header += [f"{where}: {first}" if first else where, *others]
    return header


def _quality_command(documents: int, budgets: Sequence[float], names: Sequence[str]) -> str:
    every = set(available_policies()) <= set(names)
    shown = ["all", *(name for name in names if name not in available_policies())] if every else names
    budget = f" --budget {','.join(f'{b:g}' for b in budgets)}" if budgets else ""
    options = f"--tokens {QUALITY_TOKENS} --documents {documents}{budget} --policy {','.join(shown)}"
    return f"mpcache bench quality {options}"


def _kept(match: dict[tuple[str, str, float | None], float]) -> str:
    """What mpcache's defaults keep of the full cache's answers."""
    kept = []
    for placement, where in PLACED.items():
        full, own = match.get(("full", placement, None)), match.get(("mpcache", placement, MIDDLE))
        if full and own is not None:
            kept.append(f"{own / full:.0%} with the {where}")
    return f" Of the full cache's answers, mpcache's defaults keep {' and '.join(kept)}." if kept else ""
