"""The README's table of a whole generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpcache.benchmarks.cases.generation import MAX_NEW_TOKENS
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.selection import largest_run
from mpcache.benchmarks.records.tables import markdown
from mpcache.benchmarks.report.readme.cells import COSTS, POLICIES, costs, peak_memory, prose
from mpcache.demo import DEMO_MODEL

DEMO = ("demo", DEMO_MODEL.name)
"""What its folder was called, and is."""


def generation(records: Sequence[Record]) -> str:
    made = [r for r in records if r["bench"] == "generate" and r["settings"]["model"] in DEMO]
    found = _by_policy(largest_run(r for r in made if r["policy"] in POLICIES))
    if not found:
        return ""
    first = next(iter(found.values()))
    header = (f"demo model, day sheet of {first['tokens']} tokens", *COSTS)
    rows = [[f"prefill, to the first token: {POLICIES[n]}", *costs(r["prefill"])] for n, r in found.items()]
    for name, r in found.items():
        if r["token"] is not None:
            rows.append([f"each token after it: {POLICIES[name]}", *costs(r["token"])])
    peaks = "; ".join(f"{POLICIES[name]}: {peak_memory(r)}" for name, r in found.items())
    same = [POLICIES[name] for name, r in found.items() if r["same"]]
    agrees = f"with {' and '.join(same)}" if same else "with neither"
    settings = first["settings"]
    command = f"mpcache bench generate --policy {','.join(found)} --repeat {settings['repeat']}"
    if settings["max_new_tokens"] != MAX_NEW_TOKENS:
        command += f" --max-new-tokens {settings['max_new_tokens']}"
    note = f"`{command}`. Peak memory: {peaks}. The private answer was that of plaintext {agrees}."
    return f"{markdown(header, rows)}\n{prose(note)}"


def _by_policy(records: Iterable[Record]) -> dict[str, Record]:
    found = {r["policy"]: r for r in records}
    return {name: found[name] for name in POLICIES if name in found}
