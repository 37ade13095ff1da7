"""Records as tables: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.selection import done

Rows = list[list[str]]


def show(title: str, header: Sequence[str], rows: Rows, note: str = "") -> None:
    """Print a table; the first columns, which name things, to the left."""
    table = Table(title=title, title_justify="left", caption=note or None, caption_justify="left", box=box.SIMPLE)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console.width = 150
    console.print(table)


def markdown(header: Sequence[str], rows: Rows) -> str:
    """The same as Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def megabytes(count: float) -> str:
    return f"{count / 1e6:.2f}"


def mebibytes(count: float | None) -> str:
    """Blank where the system did not say how many."""
    return f"{count / 2**20:,.0f}" if count else ""


def seconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


PROCESSES = ("owner", "client", "dealer")
PEAKS = tuple(f"{role} MiB" for role in PROCESSES)
COSTS = ("policy", "tokens", "backend", "s", "CPU s", "online MB", "corr. MB", "rounds", "s / full", "bytes / full")
PARTS = ("linear", "selection", "attention", "other", "head")
FIGURES = ("seconds", "online MB", "correlation MB", "rounds")


def cost_rows(records: Sequence[Record]) -> Rows:
    """Of decode records; the last two columns against the full cache of the same run."""
    full = {_where(r): r for r in done(records) if r["policy"] == "full"}
    return [_cost_row(r, full.get(_where(r))) for r in done(records)]


def _where(record: Record) -> tuple[object, ...]:
    return record["tokens"], record["backend"], str(record["settings"]["network"])


def _cost_row(r: Record, full: Record | None) -> list[str]:
    total = r["online_bytes"] + r["correlation_bytes"]
    of_full = full["online_bytes"] + full["correlation_bytes"] if full else 0
    return [
        *cost_cells(r),
        f"{r['seconds'] / full['seconds']:.2f}" if full else "",
        f"{total / of_full:.2f}" if of_full else "",
    ]


def cost_cells(r: Record) -> list[str]:
    """What was run, its seconds, CPU seconds, online and correlation megabytes, and rounds."""
    return [
        r["policy"],
        f"{r['tokens']:,}",
        r["backend"],
        seconds(r["seconds"]),
        seconds(r["cpu_seconds"]),
        megabytes(r["online_bytes"]),
        megabytes(r["correlation_bytes"]),
        f"{r['rounds']:,}",
    ]


def part_rows(records: Sequence[Record]) -> Rows:
    """A line for each figure of a record, a column for each part; static eviction, which comes once, in the last."""
    out = []
    for r in done(records):
        if not r["parts"]:
            continue
        parts = [*(r["parts"].get(name) for name in PARTS), r["eviction"]]
        for i, figure in enumerate(FIGURES):
            names = [r["policy"], f"{r['tokens']:,}"] if i == 0 else ["", ""]
            out.append([*names, figure, *(_cell(part, i) for part in parts)])
    return out


def _cell(part: Record | None, figure: int) -> str:
    if part is None or not part["rounds"]:
        return "-"
    online, correlations = megabytes(part["online_bytes"]), megabytes(part["correlation_bytes"])
    return (seconds(part["seconds"]), online, correlations, str(part["rounds"]))[figure]


def peak_cells(peaks: Mapping[str, int | None]) -> list[str]:
    """Each process's peak memory, under PEAKS."""
    return [mebibytes(peaks.get(role)) for role in PROCESSES]


def process_rows(records: Sequence[Record]) -> Rows:
    """The dealer's lead and the processes' CPU and memory."""
    out = []
    for r in done(records):
        if "peak_memory_bytes" not in r:
            continue
        cpu, peak = r["cpu_seconds_by_process"], r["peak_memory_bytes"]
        cells = [*(seconds(cpu.get(role, 0.0)) for role in PROCESSES), *peak_cells(peak)]
        out.append([r["policy"], f"{r['tokens']:,}", r["backend"], *cells, seconds(r["dealer"]["waited_seconds"])])
    return out
